"""Ordinary mixup before PGD-AT on CIFAR-10: the control for same-class mixing.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_cross_class.py

Recipe of Rice et al. 2020 (arXiv 2002.11569): that of `cifar10_pgd_at` with one weight a
batch from Beta(1.4, 1.4), the best of those they tried.

Published: average in %, clean; PGD-10 (logs in the official repository, best chosen on the
test set): best 80.4; 53.7, last 80.5; 52.9. Class-wise numbers are not available. Ours: not
run.
"""

from configs import cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.mixing.name = "cross_class"
    config.mixing.alpha = 1.4
    config.mixing.per_batch = True
    return config.lock()
