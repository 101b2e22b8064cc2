"""What a lab with accelerators should run next: mixing at the scale of the literature.

PGD-AT of a PreActResNet-18 on CIFAR-10, L-inf 8/255, 200 epochs, with weight averaging: without
mixing, with pairs of one class, with pairs of any classes in the same equal parts, with pairs
every other image, with strengths that follow the validation risk at the same mean probability,
and with pairs except in the last 20 epochs. Five seeds; clean, PGD-20 and AutoAttack on all
10,000 test images. 35 runs; the training of one takes about 40 minutes on an H100 (the step
measured, 200 epochs reckoned; see `configs/cifar10.py`), the evaluation apart.

Command:  TFDS_DATA_DIR=DIR python launch.py --mode=sweep --backend=slurm \
              --config=configs/studies/study_accelerator.py

Result: not run.
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs import cifar10
from fairmix_jax.lab.configs.studies import study_mixing
from fairmix_jax.lab.configs.studies.study_mixing import MIXINGS

# As robust accuracies of CIFAR-10's classes are commonly reported; not looked at here.
EASY = ("airplane", "automobile", "horse", "ship", "truck")
HARD = ("bird", "cat", "deer", "dog", "frog")

ARMS = {
    "none": MIXINGS[""],
    "k=2": MIXINGS[" k=2"],
    "any two": "mixing.name=cross_class mixing.num_samples=2",
    **study_mixing.half_as_often(MIXINGS[" k=2"]),
    "k=2 then none": f"{MIXINGS[' k=2']} mixing.off_epochs=20",
}

# docs/theory/statements.md: S4 and S6 of pairs, S9 of half, S16 of strengths where most risks are
# above 15.9 %; and whether the class has to be the same.
PREDICTIONS = (
    "P1: easy_minus_hard(pgd20): k=2 < none",
    "P1: gap(pgd20): k=2 < none",
    "P15: easy_minus_hard(pgd20): half < none",
    "P6: easy_minus_hard(pgd20): adaptive boundary < half",
    "P6: easy_minus_hard(pgd20): adaptive boundary < adaptive easy",
    "control: easy_minus_hard(pgd20): k=2 < any two",
    "control: worst_class(pgd20): k=2 then none > k=2",
    "control: easy_minus_hard(pgd20): k=2 then none < none",
)


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains three arms of a narrow network on 500 images."""
    smoke = is_smoke(arg)
    config = cifar10.get_config(arg).unlock()
    config.mixing.law = "uniform"
    config.evaluate.weights = "last"
    config.study.easy_classes, config.study.hard_classes = EASY, HARD
    config.study.arms = ARMS
    config.study.predictions = PREDICTIONS
    config.evaluate.attacks = "clean,pgd20" if smoke else "clean,pgd20,autoattack"
    arms = {name: ARMS[name] for name in ("none", "k=2", "any two")} if smoke else ARMS
    config.sweep = study_mixing.grid(arms, range(2 if smoke else 5))
    return config.lock()
