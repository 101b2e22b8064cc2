"""DAFA on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_dafa.py

Recipe of the official code of Lee et al. 2024 (arXiv 2401.12532): ResNet-18, TRADES with
beta 6, L-inf 0.031, 10 steps of 0.007, 110 epochs, learning rate 0.1, divided by ten for the
last 11 and the last 6 epochs, weight decay 5e-4, Nesterov momentum (a flag of the code is
inverted), class weights of strength 1 after 70 epochs. The original does not normalise its inputs.

Published: not available (the table is an image, not read). Ours: not run.
"""

from configs import base, cifar10_trades


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_trades.get_config(arg).unlock()
    config.rule.name = "dafa"
    config.rule.warmup_epochs = 1 if smoke else 70
    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4
    config.optim.milestones = (99 / 110, 104 / 110)
    if not smoke:
        config.total_epochs = 110
    return config.lock()
