"""The accelerator recipe: PGD-AT of a PreActResNet-18 on CIFAR-10, L-inf 8/255.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10.py

Recipe after Rice et al. 2020 (arXiv 2002.11569), with weight averaging and Nesterov
momentum: 200 epochs, learning rate 0.1 divided by ten at epochs 100 and 150, PGD-10 with
step 2/255, random crop and flip.

Runtime: one training step takes 30 ms on an H100 (80 GB; jax 0.11.2, 2026-11-23; random
images), so an epoch about 12 s and the run about 40 minutes, the evaluation apart. Result:
not run.
"""

from configs import base


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    smoke = base.variant(arg)
    config = base.get_config()
    config.data.name = "cifar10"
    config.data.val_fraction = 0.02
    config.data.crop_padding = 4
    config.data.flip = True

    config.total_epochs = 200
    config.model.name = "preact_resnet"
    config.model.depth = 18
    config.model.width = 64
    config.attack.epsilon = 8 / 255
    config.attack.step_size = 2 / 255
    config.attack.num_steps = 10
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = 5e-4
    config.optim.milestones = (0.5, 0.75)
    config.averaging.name = "ema"
    config.averaging.decay = 0.999
    config.checkpoint.every_epochs = 5

    if smoke:
        config.total_epochs = 1
        config.batch_size = 50
        config.model.width = 8
        config.attack.num_steps = 2
        config.data.num_train = 500
        config.data.val_fraction = 0.1
        config.validation.num_steps = 2
        config.evaluate.attacks = "clean,pgd5"
        config.evaluate.num_examples = 100
        config.evaluate.batch_size = 100
        config.averaging.decay = 0.9
    return config.lock()
