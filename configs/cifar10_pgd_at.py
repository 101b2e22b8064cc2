"""PGD-AT on CIFAR-10, the published recipe: the reference of most methods here.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_pgd_at.py

Recipe of Rice et al. 2020 (arXiv 2002.11569) for the method of Madry et al. 2018:
PreActResNet-18, 200 epochs, batches of 128, SGD with momentum 0.9 and learning rate 0.1,
divided by ten at epochs 100 and 150, weight decay 5e-4, PGD-10 with step 2/255 at L-inf
8/255, batch norm in training mode inside the attack.

Differs from the original: crops are padded with zeros, not reflected; 2 % of the training
set validate; the best weights are chosen there; no further clean pass updates the batch
statistics.

Published: average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460,
table 1, best chosen on the test set, PreActResNet-18, 5 seeds): best 82.3 / 63.9; 46.7 /
20.1, last 84.1 / 65.1; 43.0 / 15.5. Ours: not run.
"""

from configs import base, cifar10


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10.get_config(arg).unlock()
    config.attack.batch_norm = "train"
    config.optim.nesterov = False
    config.averaging.name, config.averaging.decay = "none", None
    if not smoke:
        config.evaluate.attacks = "clean,pgd20,autoattack"
    return config.lock()
