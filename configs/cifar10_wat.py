"""WAT on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_wat.py

Recipe of the official code of Li and Liu 2023 (arXiv 2302.04025): ResNet-18, TRADES with
beta 6, L-inf 0.031, 10 steps of 0.007, 100 epochs, learning rate 0.1, divided by ten from
epochs 75, 90 and 100 on, counted from 1, weight decay 2e-4, eta 0.1, 6 % of the training
set validate.

Published: not available (the paper's tables were not read). Ours: not run.
"""

from configs import base, cifar10_trades


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_trades.get_config(arg).unlock()
    config.rule.name = "wat"
    config.optim.milestones = (0.74, 0.89, 0.99)
    config.data.val_fraction = 0.06
    if not smoke:
        config.total_epochs = 100
    return config.lock()
