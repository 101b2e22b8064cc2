"""Study 3: the path on CIFAR-10, an hour a run; one seed claims nothing.

PGD-AT of `configs/cifar10.py:small` without mixing and with pairs of one class.

Result: docs/evidence/study_cifar10.md.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/studies/study_cifar10.py --mode=sweep
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs import cifar10
from fairmix_jax.lab.configs.studies import study_mixing


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains for one epoch on 1,000 images."""
    smoke = is_smoke(arg)
    config = cifar10.get_config("small-smoke" if smoke else "small").unlock()
    config.mixing.law = "uniform"
    config.evaluate.weights = "last"
    config.study.arms = {
        "pgd_at": "mixing.name=none",
        "pgd_at k=2": "mixing.name=same_class mixing.num_samples=2",
    }
    config.sweep = study_mixing.grid(config.study.arms, (0,))
    if not smoke:
        config.total_epochs = 7  # at 120 images/s an hour, with validation and evaluation
    return config.lock()
