"""PGD adversarial training on scikit-learn's digits: real images, no download.

Command:  python launch.py --config=configs/digits.py
"""

from fairmix_jax.lab.config import default_config, is_smoke


def get_config(arg: str = ""):
    """Returns the config; `:smoke` runs two epochs on a part of the data."""
    smoke = is_smoke(arg)
    config = default_config()
    config.data.val_fraction = 0.15

    config.total_epochs = 60
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.05
    config.optim.learning_rate = 0.05
    config.averaging.name = "ema"
    config.averaging.decay = 0.95
    config.validation.every_epochs = 2
    config.checkpoint.every_epochs = 10
    config.evaluate.radii = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

    if smoke:
        config.total_epochs = 2
        config.data.num_train = 500
        config.evaluate.num_examples = 200
        config.evaluate.radii = (0.5, 1.0, 1.5)
    return config.lock()
