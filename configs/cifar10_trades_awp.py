"""TRADES with adversarial weight perturbation on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_trades_awp.py

Recipe of the official code of Wu et al. 2020 (arXiv 2004.05884): PreActResNet-18, beta 6,
L-inf 8/255, 10 steps of 2/255, 200 epochs, weight decay 5e-4, gamma 0.005 after 10 epochs.

Published: class-wise numbers are not available. Ours: not run.
"""

from configs import cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.base.name = "trades"
    config.base.beta = 6.0
    config.attack.batch_norm = "eval"
    config.awp.gamma = 0.005
    config.awp.warmup_epochs = 10
    return config.lock()
