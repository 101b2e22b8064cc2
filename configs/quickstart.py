"""Does mixing within the class narrow the gap? PGD-AT with and without it, three seeds each.

Scikit-learn's 1,797 digits, a small CNN, L-inf radius 0.2; ends in a class-wise table.

Command:  python launch.py --config=configs/quickstart.py
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs import digits


def get_config(arg: str = ""):
    """Returns the config; `:smoke` runs two epochs of one seed each."""
    smoke = is_smoke(arg)
    config = digits.get_config(arg).unlock()
    config.total_epochs = 40
    config.mixing.num_samples = 2
    config.mixing.law = "uniform"
    config.sweep = "mixing.name=none,same_class seed=0,1,2"

    if smoke:
        config.total_epochs = 2
        config.sweep = "mixing.name=none,same_class"
    return config.lock()
