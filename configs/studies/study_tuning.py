"""Learning rate of the studies' training, by validation accuracy only.

PGD-AT of the small CNN on Fashion-MNIST without mixing and with pairs of one class. Three epochs
are what lets `study_mixing.py` end within four hours of two cores. What counts is the
last line of each `metrics.jsonl`; of the test set ten images are looked at, and nothing is read
off them.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/studies/study_tuning.py --mode=sweep
"""

from fairmix_jax.lab.config import is_smoke
from fairmix_jax.lab.configs import fashion_mnist


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains two narrow networks on 1,000 images."""
    smoke = is_smoke(arg)
    config = fashion_mnist.get_config().unlock()
    config.seed = 100
    config.total_epochs = 3
    config.averaging.decay = 0.995
    config.mixing.law = "uniform"
    config.evaluate.weights = "last"
    config.evaluate.attacks = "clean"
    config.evaluate.num_examples = 10
    config.sweep = "optim.learning_rate=0.05,0.1,0.2 mixing.name=none,same_class"
    if smoke:
        shrink(config)
        config.sweep = "optim.learning_rate=0.1 mixing.name=none,same_class"
    return config.lock()


def shrink(config) -> None:
    """Turns a study of this kind into a smoke test."""
    config.total_epochs = 1
    config.model.width = 8
    config.attack.num_steps = config.validation.num_steps = 2
    config.data.num_train = 1_000
    config.averaging.decay = 0.9
