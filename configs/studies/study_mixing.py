"""Study 1: does mixing within a class make robust classifiers fairer?

{PGD-AT, TRADES} x {no mixing, same-class mixing of 2 and of 4 images with equal weights,
ordinary mixup of classes} on Fashion-MNIST, small CNN, L-inf 0.1, three seeds. All have
one learning rate, chosen on validation data by `study_tuning.py`; whether the answer
depends on it is asked by `study_rate.py`.
Clean and PGD-20 on all 10,000 test images, AutoAttack on the first 30 of each class.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/studies/study_mixing.py --mode=sweep
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs.studies import study_tuning

SEEDS = (0, 1, 2)
MIXINGS = {
    "": "mixing.name=none",
    " k=2": "mixing.name=same_class mixing.num_samples=2",
    " k=4": "mixing.name=same_class mixing.num_samples=4",
    " mixup": "mixing.name=cross_class mixing.law=dirichlet",
}

# The classes that PGD-AT without mixing has least and most trouble with on validation data.
EASY = ("Trouser", "Sandal", "Sneaker", "Bag", "Ankle boot")
HARD = ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt")


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains two methods for one epoch on 1,000 images, two seeds."""
    smoke = is_smoke(arg)
    config = study_tuning.get_config().unlock()
    config.seed = 0
    config.optim.learning_rate = 0.1
    config.evaluate.num_examples = 0
    config.evaluate.attacks = "clean,pgd20,autoattack@300"
    config.study.easy_classes, config.study.hard_classes = EASY, HARD
    config.study.arms = {
        f"{name}{mixed}": f"base.name={name} {fields}"
        for name in ("pgd_at", "trades")
        for mixed, fields in MIXINGS.items()
    }
    config.study.predictions = tuple(
        prediction for name in ("pgd_at", "trades") for prediction in _predictions(name)
    )
    config.sweep = grid(config.study.arms, SEEDS)

    if smoke:
        shrink(config)
        config.sweep = grid({a: config.study.arms[a] for a in ("pgd_at", "pgd_at k=2")}, (0, 1))
    return config.lock()


def grid(arms, seeds) -> str:
    """Returns the sweep of all arms, one seed after the other."""
    return " | ".join(f"{fields} seed={seed}" for seed in seeds for fields in arms.values())


def follow_up(arg, arms, predictions, *, runs, smoke_runs, seeds=SEEDS):
    """Returns an unlocked config of a study that trains as this one; clean and PGD-20.

    It compares `arms` and trains those named in `runs`: the others may be another study's.
    `:smoke` trains `smoke_runs` for one epoch on 1,000 images, with two seeds.
    """
    smoke = is_smoke(arg)
    config = get_config().unlock()
    config.evaluate.attacks = "clean,pgd20"
    config.study.arms, config.study.predictions = arms, predictions
    if smoke:
        shrink(config)
    chosen = {name: arms[name] for name in (smoke_runs if smoke else runs)}
    config.sweep = grid(chosen, seeds[:2] if smoke else seeds)
    return config


def half_as_often(pairs: str) -> dict[str, str]:
    """Returns arms that mix half as often: equally, and with strengths after each signal."""
    half = f"{pairs} mixing.probability=0.5"
    adaptive = f"{half} rule.name=fairmix_adaptive rule.signal="
    return {
        "half": half,
        "adaptive easy": f"{adaptive}easy",
        "adaptive boundary": f"{adaptive}boundary",
    }


def shrink(config) -> None:
    """Turns a study of this kind into a smoke test."""
    study_tuning.shrink(config)
    config.evaluate.attacks = "clean,pgd20,fast@20"
    config.evaluate.num_examples = 200


def _predictions(name: str) -> tuple[str, ...]:
    """What theory says of a base loss (docs/theory/statements.md, S4, S6 and S7)."""
    return (
        f"P1: easy_minus_hard(pgd20): {name} k=2 < {name}",
        f"P1: easy_minus_hard(pgd20): {name} k=4 < {name} k=2",
        f"P1: gap(pgd20): {name} k=2 < {name}",
        f"P2: worst_class(pgd20): {name} k=2 > {name}",
        f"P2: average(pgd20): {name} k=2 < {name}",
        f"P3: easy_minus_hard(clean): {name} k=2 < {name}",
        f"P4: average(clean): {name} k=2 > {name}",
        f"control: gap(pgd20): {name} k=2 < {name} mixup",
    )
