"""Same-class mixup before PGD-AT on CIFAR-10: the idea of the seed paper.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_same_class.py

After Zhong and Tandon 2024 (arXiv 2411.14424), whose details are not available to us: the
recipe of `cifar10_pgd_at` with averages of two images of a class, and weight averaging.

Published: not available. Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.mixing.name = "same_class"
    config.mixing.num_samples = 2
    config.mixing.law = "uniform"
    config.averaging.name, config.averaging.decay = "ema", 0.9 if smoke else 0.999
    return config.lock()
