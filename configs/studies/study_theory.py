"""Study 2: what the theory of two Gaussians predicts about mixing, on Fashion-MNIST.

PGD-AT as in `study_mixing.py`, whose runs without mixing and with pairs are compared
with those made here: only easy or only hard classes mixed, mixing with probability one half,
strengths that follow the validation risk, other weight decays, and as controls a last epoch
without mixing and three times as many epochs. Three seeds each. The theory is of the 0-1 loss and
linear; what fails here is its transfer to networks trained with cross entropy.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/studies/study_theory.py --mode=sweep
Report:   python launch.py --mode=report --workdir=runs/study_theory \
              runs/study_mixing runs/study_theory
"""

from fairmix_jax.lab.configs.studies import study_mixing
from fairmix_jax.lab.configs.studies.study_mixing import EASY, HARD, MIXINGS

_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
_NONE, _PAIRS = (f"base.name=pgd_at {MIXINGS[mixed]}" for mixed in ("", " k=2"))
_LOW, _HIGH = 0.0, 5e-3

# Validation risks of PGD-AT without mixing (`study_tuning.py`, 0.1): 8 to 17 % of the easy
# classes, 20 to 79 % of the hard ones. What follows depends on them.
PREDICTIONS = (
    # S13: mixing a class below 15.9 % moves boundaries against it, above in its favour. With the
    # hard classes below, too, mixing them alone would widen the gap: that is P5 as it is mostly
    # put, and its second half is the opposite of what these risks let S13 predict.
    "P5 at these risks: easy_minus_hard(pgd20): easy < none",
    "P5 at these risks: easy_minus_hard(pgd20): hard < none",
    # S16: strength that follows the signal narrows the gap more than the same for all where
    # z^2 of both kinds sum to more than 2, and here it is about 1.4, so that P6 as it is mostly
    # put is reversed, too; the other signal always.
    "P6 at these risks: easy_minus_hard(pgd20): adaptive easy > half",
    "P6 at these risks: easy_minus_hard(pgd20): adaptive boundary < half",
    # S15 c: with a logistic loss mixing helps under weak decay, and the reverse under strong.
    "P10: easy_minus_hard(pgd20): k=2 wd=0 < none wd=0",
    "P10: easy_minus_hard(pgd20): k=2 wd=5e-3 > none wd=5e-3",
    "P10: easy_minus_hard(pgd20): k=2 wd=0 - none wd=0 < k=2 wd=5e-3 - none wd=5e-3",
    # S9: with probability one half it is weaker than always, and stronger than never.
    "P15: easy_minus_hard(pgd20): half < none",
    "P15: easy_minus_hard(pgd20): k=2 < half",
    # If what mixing costs is that the network never saw single images, an epoch of them mends it
    # and leaves the narrower gap.
    "control: average(pgd20): k=2 then none > k=2",
    "control: worst_class(pgd20): k=2 then none > k=2",
    "control: easy_minus_hard(pgd20): k=2 then none < none",
    # If it is that three epochs are too few for a harder task, three times as many mend it.
    "control: average(pgd20): k=2 9 epochs - none 9 epochs > k=2 - none",
    "control: worst_class(pgd20): k=2 9 epochs > none 9 epochs",
    "control: easy_minus_hard(pgd20): k=2 9 epochs < none 9 epochs",
)


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains two methods for one epoch on 1,000 images, two seeds."""
    new = {
        "easy": f"{_PAIRS} mixing.class_strength={_strength(EASY)}",
        "hard": f"{_PAIRS} mixing.class_strength={_strength(HARD)}",
        **study_mixing.half_as_often(_PAIRS),
        "k=2 then none": f"{_PAIRS} mixing.off_epochs=1",
        "none wd=0": f"{_NONE} optim.weight_decay={_LOW}",
        "k=2 wd=0": f"{_PAIRS} optim.weight_decay={_LOW}",
        "none wd=5e-3": f"{_NONE} optim.weight_decay={_HIGH}",
        "k=2 wd=5e-3": f"{_PAIRS} optim.weight_decay={_HIGH}",
        "none 9 epochs": f"{_NONE} total_epochs=9",
        "k=2 9 epochs": f"{_PAIRS} total_epochs=9",
    }
    arms = {"none": _NONE, "k=2": _PAIRS} | new
    config = study_mixing.follow_up(arg, arms, PREDICTIONS, runs=new, smoke_runs=("none", "easy"))
    return config.lock()


def _strength(classes) -> str:
    return f"({','.join(str(int(name in classes)) for name in _CLASSES)})"
