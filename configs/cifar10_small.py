"""PGD-AT on CIFAR-10 with a network that two CPU cores can train.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_small.py

The recipe is that of `configs/cifar10.py`, on a PreActResNet-10 of width 16 (0.3 million
parameters) and with a cosine schedule over 15 epochs.

Runtime: about 1.5 s a training step on two cores of an Intel Xeon with AVX-512 (jax 0.10.2,
2026-11-23), so about 9 minutes an epoch. Result: not run.
"""

from configs import base, cifar10


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains one epoch on 1,000 images and tests on 200."""
    smoke = base.variant(arg)
    config = cifar10.get_config().unlock()
    config.total_epochs = 15
    config.model.depth = 10
    config.model.width = 16
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.05
    config.averaging.decay = 0.998
    config.checkpoint.every_epochs = 1

    if smoke:
        config.total_epochs = 1
        config.attack.num_steps = 3
        config.data.num_train = 1_000
        config.data.val_fraction = 0.1
        config.validation.num_steps = 2
        config.evaluate.num_examples = 200
        config.averaging.decay = 0.9
    return config.lock()
