"""PGD adversarial training of a small CNN on Fashion-MNIST, L-inf radius 0.1.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/fashion_mnist.py
Runtime:  26 minutes on two cores of an Intel Xeon with AVX-512, beside other work
Result:   average / worst class (Shirt): clean 84.6 / 47.9 %, PGD-20 75.6 / 30.1 %
          (seed 0, 10,000 test images, jax 0.10.2, 2026-11-23)
"""

from fairmix_jax.lab.config import default_config, is_smoke


def get_config(arg: str = ""):
    """Returns the config; `:smoke` trains one epoch on 2,000 images and tests on 1,000."""
    smoke = is_smoke(arg)
    config = default_config()
    config.data.name = "fashion_mnist"
    config.data.val_fraction = 0.05

    config.total_epochs = 8
    config.model.name = "small_cnn"
    config.model.width = 16
    config.attack.epsilon = 0.1
    config.attack.step_size = 0.025
    config.optim.learning_rate = 0.05
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.05
    config.averaging.name = "ema"

    if smoke:
        config.total_epochs = 1
        config.data.num_train = 2_000
        config.validation.num_steps = 5
        config.evaluate.num_examples = 1_000
        config.averaging.decay = 0.9
    return config.lock()
