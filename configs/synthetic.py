"""Theory against training: linear classifiers on two Gaussians of unequal variance.

Command:  python launch.py --config=configs/synthetic.py

Same-class mixing of k = 1, 2, 4 samples, adversarial training through the ordinary train
loop, three draws of data each. What the theory promises: for the smooth 0-1 loss more
mixing lowers the disparity, for the logistic loss too, but less. Where it breaks: with
weight decay mixing raises it, and with the squared loss it does nothing. A bias fitted on
validation points gives the minimax rule, with mixing or without.
"""

from fairmix_jax.lab.config import default_config, is_smoke

_SEEDS = "seed+data.draw=0,1,2"
_GRIDS = (
    f"base.loss=ce optim.weight_decay=0.0,0.1 mixing.num_samples=1,2,4 {_SEEDS}",
    f"base.loss=zero_one optim.learning_rate=4.0 mixing.num_samples=1,4 {_SEEDS}",
    f"base.loss=squared optim.learning_rate=0.02 mixing.num_samples=1,4 {_SEEDS}",
    # another model: K = 1.5, m = 2, e = 0.5
    "data.ratio=1.5 data.separation=2.0 attack.epsilon=0.35355339 base.loss=ce "
    f"mixing.num_samples=1,4 {_SEEDS}",
    "base.loss=ce data.val_fraction=0.1 calibration.name=class_bias calibration.t=1.0 "
    f"mixing.num_samples=1,4 {_SEEDS}",
)


def get_config(arg: str = ""):
    """Returns the config; `:smoke` is one short run of each loss."""
    smoke = is_smoke(arg)
    config = default_config()
    config.data.name = "gaussian"
    config.data.dimension = 2
    config.data.examples_per_class = 20_000
    config.data.val_fraction = 0.0
    config.total_epochs = 14
    config.batch_size = 1_000
    config.model.name = "linear"
    config.base.name = "pgd_at"
    config.mixing.name = "same_class"
    config.mixing.law = "uniform"
    config.attack.epsilon = 1 / 2**0.5  # e = sqrt(d) epsilon = 1
    config.attack.step_size = 2**0.5  # one step of 2 epsilon reaches the worst point exactly
    config.attack.num_steps = 1
    config.optim.learning_rate = 0.5
    config.optim.weight_decay = 0.0
    config.optim.decay_biases = False
    config.optim.schedule = "cosine"
    config.validation.every_epochs = config.checkpoint.every_epochs = 1_000
    config.evaluate.weights = "last"
    config.evaluate.batch_size = 10_000
    config.report = "gaussian"
    config.sweep = " | ".join(_GRIDS)

    if smoke:
        config.total_epochs = 1
        config.data.examples_per_class = 2_000
        config.data.test_per_class = 1_000
        config.sweep = (
            "base.loss=ce,zero_one mixing.num_samples=1,2 | "
            "base.loss=squared optim.learning_rate=0.02 mixing.num_samples=1,2 | "
            "base.loss=ce data.val_fraction=0.2 calibration.name=class_bias calibration.t=1.0"
        )
    return config.lock()
