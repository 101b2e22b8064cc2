"""PGD-AT against TRADES on scikit-learn's digits, five seeds each: a study in miniature.

Killed, it goes on where it was; a member that fails is listed, and the others complete.

Command:  python launch.py --config=configs/studies/digits_study.py --mode=sweep
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs import digits


def get_config(arg: str = ""):
    """Returns the config; `:smoke` runs two epochs of two seeds each."""
    smoke = is_smoke(arg)
    config = digits.get_config(arg).unlock()
    config.sweep = "base.name=pgd_at,trades seed=0,1,2,3,4"

    if smoke:
        config.sweep = "base.name=pgd_at,trades seed=0,1"
    return config.lock()
