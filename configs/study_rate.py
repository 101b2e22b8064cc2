"""Does the answer of study 1 depend on its learning rate?

PGD-AT without mixing and with pairs, as in `configs/study_mixing.py`, at twice its rate: where
the tuning was repeated on another processor, PGD-AT without mixing was better there.

Result (docs/evidence.md): no; PGD-AT gains without mixing, and what study 1 found holds again.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/study_rate.py --mode=sweep
"""

from configs import base, study_mixing
from configs.study_mixing import SEEDS


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains both methods for one epoch on 1,000 images, two seeds."""
    smoke = base.variant(arg)
    config = study_mixing.get_config().unlock()
    config.optim.learning_rate = 0.2
    config.evaluate.attacks = "clean,pgd20"
    config.study.arms = {name: config.study.arms[name] for name in ("pgd_at", "pgd_at k=2")}
    # The first is theory's (P1), the others are what study 1 found at half the rate.
    config.study.predictions = (
        "P1: easy_minus_hard(pgd20): pgd_at k=2 < pgd_at",
        "study 1: gap(pgd20): pgd_at k=2 > pgd_at",
        "study 1: worst_class(pgd20): pgd_at k=2 < pgd_at",
        "study 1: average(pgd20): pgd_at k=2 < pgd_at",
    )
    config.sweep = study_mixing.grid(config.study.arms, SEEDS)
    if smoke:
        study_mixing.shrink(config)
        config.sweep = study_mixing.grid(config.study.arms, (0, 1))
    return config.lock()
