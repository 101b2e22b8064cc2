"""Does the answer of study 1 depend on its learning rate?

PGD-AT without mixing and with pairs, as in `study_mixing.py`, at twice its rate: where
the tuning was repeated on another processor, PGD-AT without mixing was better there.

Result (docs/evidence/study_rate.md): no; what study 1 found holds again.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/studies/study_rate.py --mode=sweep
"""

from fairmix_jax.lab.configs.studies import study_mixing
from fairmix_jax.lab.configs.studies.study_mixing import MIXINGS

# The first is theory's (P1), the others are what study 1 found at half the rate.
PREDICTIONS = (
    "P1: easy_minus_hard(pgd20): pgd_at k=2 < pgd_at",
    "study 1: gap(pgd20): pgd_at k=2 > pgd_at",
    "study 1: worst_class(pgd20): pgd_at k=2 < pgd_at",
    "study 1: average(pgd20): pgd_at k=2 < pgd_at",
)


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains both methods for one epoch on 1,000 images, two seeds."""
    arms = {f"pgd_at{mixed}": f"base.name=pgd_at {MIXINGS[mixed]}" for mixed in ("", " k=2")}
    config = study_mixing.follow_up(arg, arms, PREDICTIONS, runs=arms, smoke_runs=arms)
    config.optim.learning_rate = 0.2
    return config.lock()
