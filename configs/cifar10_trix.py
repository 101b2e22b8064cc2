"""TRIX on CIFAR-10, the published recipe.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_trix.py

Recipe of the official code of Medi et al. 2025 (arXiv 2507.07768): that of `cifar10_dafa`
for 150 epochs, learning rate divided by ten for the last 11 and the last 6 epochs; the
original does not normalise its inputs; class weights after 70 epochs, targeted attacks on
strong classes from the first.

Published: not available (the paper was not read). Ours: not run.
"""

from configs import base, cifar10_dafa


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = cifar10_dafa.get_config(arg).unlock()
    config.rule.name = "trix"
    config.optim.milestones = (139 / 150, 144 / 150)
    if not smoke:
        config.total_epochs = 150
    return config.lock()
