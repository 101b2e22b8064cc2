"""MART on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_mart.py

Recipe of the official code of Wang et al. 2020: ResNet-18, beta 5, L-inf 0.031, 10 steps of
0.007 from normal noise, 120 epochs, learning rate 0.01, divided by ten from epochs 75, 90
and 100 on, counted from 1, weight decay 3.5e-3.

Published: class-wise numbers are not available. Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.model.name = "resnet"
    config.base.name = "mart"
    config.base.beta = 5.0
    config.attack.epsilon = 0.031
    config.attack.step_size = 0.007
    config.attack.batch_norm = "eval"
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 3.5e-3
    config.optim.milestones = (74 / 120, 89 / 120, 99 / 120)
    if not smoke:
        config.total_epochs = 120
    return config.lock()
