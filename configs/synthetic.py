"""A linear classifier on the two-Gaussian mixture of the theory.

Command:  python launch.py --config=configs/synthetic.py
"""

from configs import base


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains one epoch on less data."""
    smoke = base.variant(arg)
    config = base.get_config()
    config.data.name = "gaussian"
    config.total_epochs = 20
    config.batch_size = 500
    config.model.name = "linear"
    config.attack.epsilon = 1 / 10**0.5  # e = sqrt(d) epsilon = 1 at d = 10
    config.attack.step_size = 1 / 10**0.5
    config.attack.num_steps = 1
    config.optim.weight_decay = 0.0
    config.optim.schedule = "cosine"
    config.evaluate.batch_size = 5_000

    if smoke:
        config.total_epochs = 1
        config.data.examples_per_class = 1_000
        config.data.test_per_class = 1_000
    return config.lock()
