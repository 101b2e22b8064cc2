"""Head normalisation of a PGD-AT network on CIFAR-10: no training of its own.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_head_norm.py

Starts from the last weights of `cifar10_pgd_at`, trains one epoch at learning rate zero,
and evaluates with the rows of the last layer brought to norm one. (The epoch renews the
batch statistics.)

Published: not available (the rejected submission behind it was not read). Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.rule.name = "head_norm"
    config.optim.learning_rate = 0.0
    config.total_epochs = 1
    if not smoke:
        config.hot_start.workdir = "runs/cifar10_pgd_at"
    return config.lock()
