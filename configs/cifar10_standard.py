"""Standard training on CIFAR-10: what adversarial training is measured against.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_standard.py

The recipe of `cifar10_pgd_at` without the attack.

Published: class-wise numbers are not available. Ours: not run.
"""

from configs import cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.base.name = "standard"
    return config.lock()
