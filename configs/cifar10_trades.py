"""TRADES on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_trades.py

Recipe of the official code of Zhang et al. 2019 (arXiv 1901.08573) on a ResNet-18: beta 6,
L-inf 0.031, 10 steps of 0.007 from normal noise, weight decay 2e-4, 76 epochs (the code's
default), learning rate 0.1, divided by ten from epoch 75 on, counted from 1.

Published: average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460,
table 1, best chosen on the test set, PreActResNet-18, 200 epochs and the loss divided by
7): best 82.3 / 67.8; 48.3 / 21.7, last 83.9 / 66.9; 46.9 / 18.5. PGD-20 average of a
ResNet-18 after 100 epochs (logs in the repository of Rice et al. 2020, their evaluation):
best 82.2 clean; 53.5, last 82.0; 53.3. Ours: not run.
"""

from configs import base, cifar10_pgd_at


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_pgd_at.get_config(arg).unlock()
    config.model.name = "resnet"
    config.base.name = "trades"
    config.base.beta = 6.0
    config.attack.epsilon = 0.031
    config.attack.step_size = 0.007
    config.attack.batch_norm = "eval"
    config.optim.weight_decay = 2e-4
    config.optim.milestones = (74 / 76,)
    if not smoke:
        config.total_epochs = 76
    return config.lock()
