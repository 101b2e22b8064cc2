"""Study 3: the path on CIFAR-10, an hour a run; one seed claims nothing.

PGD-AT of `configs/cifar10_small.py` without mixing and with pairs of one class.

Result: docs/evidence.md.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/study_cifar10.py --mode=sweep
"""

from configs import base, cifar10_small, study_mixing


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains for one epoch on 1,000 images."""
    smoke = base.variant(arg)
    config = cifar10_small.get_config(arg).unlock()
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
