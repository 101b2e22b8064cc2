"""A small network after adversarial training, for tests that need an honest one."""

from pathlib import Path

import numpy as np
from jax.tree_util import Partial

from fairmix_jax.data import digits
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run
from fairmix_jax.lab.configs import digits as digits_config
from fairmix_jax.training import loop, task
from fairmix_jax.types import Weights


def digit_network(seed: int, workdir: Path) -> tuple[Partial, Weights, dict]:
    """Returns a network as a function of images, trained for seconds, its weights and its card."""
    config = digits_config.get_config().copy_and_resolve_references().unlock()
    config.update(seed=seed, total_epochs=12)
    config.validation.every_epochs = 12
    built = task.build(config_lib.settings(config))
    loop.fit(config_lib.settings(config), built, workdir)
    weights, _ = evaluate_run.load_weights(workdir, config.evaluate.weights, built)

    def logits_fn(weights, images):
        return built.model.apply(weights.params, weights.batch_stats, images, train=False)[0]

    return Partial(logits_fn, weights), weights, built.model_card


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Returns the 500 test images `[500, 8, 8, 1]` in [0, 1] and their labels."""
    test = digits.make().test
    return test.images.astype(np.float32) / 255, test.labels
