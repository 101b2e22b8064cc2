"""Does the class matter at equal strength, and does study 1 repeat with other seeds?

PGD-AT as in `study_mixing.py` without mixing, with two images in equal parts, and with two
in the shares of mixup, which are weaker (the covariance of a class shrinks by 2/3, not 1/2): each
of one class, and of any classes. Seeds of their own, clean and PGD-20, 10,000 test images.

Result (docs/evidence/study_strength.md): study 1 repeats; under PGD-20 partners of the same class
do not measurably narrow the gap.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/studies/study_strength.py --mode=sweep
"""

from fairmix_jax.lab.configs.studies import study_mixing
from fairmix_jax.lab.configs.studies.study_mixing import MIXINGS

SEEDS = (3, 4, 5)
_MIXINGS = {
    "any two": "mixing.name=cross_class mixing.law=uniform",
    "k=2": MIXINGS[" k=2"],
    "k=2 weaker": f"{MIXINGS[' k=2']} mixing.law=dirichlet",
    "mixup": MIXINGS[" mixup"],
    "none": MIXINGS[""],
}
ARMS = {name: f"base.name=pgd_at {fields}" for name, fields in _MIXINGS.items()}

PREDICTIONS = (
    # What study 1 found with seeds 0, 1 and 2.
    "study 1: gap(pgd20): k=2 > none",
    "study 1: worst_class(pgd20): k=2 < none",
    "study 1: average(pgd20): k=2 < none",
    "study 1: gap(pgd20): k=2 > mixup",
    # What the idea says: mixing narrows the gap because the class is the same.
    "same class: gap(pgd20): k=2 < any two",
    "same class: gap(pgd20): k=2 weaker < mixup",
    "same class: worst_class(pgd20): k=2 > any two",
    "same class: worst_class(pgd20): k=2 weaker > mixup",
    # docs/theory/statements.md: S4, and S8, by which the stronger mixing narrows the gap more.
    "P1: easy_minus_hard(pgd20): k=2 < none",
    "P1: easy_minus_hard(pgd20): k=2 weaker < none",
    "P7: easy_minus_hard(pgd20): k=2 < k=2 weaker",
)


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains three methods for an epoch on 1,000 images, two seeds."""
    config = study_mixing.follow_up(
        arg, ARMS, PREDICTIONS, runs=ARMS, smoke_runs=("none", "k=2", "any two"), seeds=SEEDS
    )
    return config.lock()
