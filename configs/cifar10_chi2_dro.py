"""Chi-square DRO over classes on CIFAR-10.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_chi2_dro.py

The recipe of `cifar10_pgd_at` with the worst class weights in a chi-square ball around each
batch. The ball radius of 0.05 is our choice. The method nearest to it, CODAT 2025 (arXiv
2501.04527), was not read.

Published: not available. Ours: not run.
"""

from configs import cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.rule.name = "chi2_dro"
    config.rule.ball_radius = 0.05
    return config.lock()
