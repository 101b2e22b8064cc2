"""fairmix_adaptive on CIFAR-10: mixing strength per class from validation risk.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10_fairmix_adaptive.py

The recipe of `cifar10_same_class` with a mixing probability of 0.5, raised for the classes
of low robust validation risk and lowered for the others; see `rules/fairmix_adaptive.py`.
Robust risks on CIFAR-10 are mostly above 15.9 %, where the theory favours mixing the hard
classes: `--config.rule.signal=boundary`.

Published: not available, this method is ours. Ours: not run.
"""

from configs import cifar10_same_class


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains a narrow network on 500 images and tests on 100."""
    config = cifar10_same_class.get_config(arg).unlock()
    config.mixing.probability = 0.5
    config.rule.name = "fairmix_adaptive"
    return config.lock()
