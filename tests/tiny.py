"""A run of the digits config that compiles in a second or two."""

import chex
import jax
import numpy as np

from fairmix_jax.data import batches
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab.configs import digits
from fairmix_jax.training import assembly as trainer_lib
from fairmix_jax.training import loop
from fairmix_jax.training import task as task_lib

TOTAL_STEPS = 20


def tiny(**changes):
    """The digits config, shrunk, with dotted fields changed (`__` for the dot)."""
    config = digits.get_config("smoke").unlock()
    config.model.width = 8
    config.batch_size = 40
    config.data.num_train = 250
    config.attack.num_steps = 2
    config.validation.num_steps = 2
    with config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def build(config):
    """The data, model and threat of a config."""
    return task_lib.build(config_lib.settings(config))


def fit(config, task, workdir):
    """Trains as a config says; returns the digest of the final state."""
    return loop.fit(config_lib.settings(config), task, workdir)


def assemble(config):
    """The trainer and three batches."""
    task = build(config)
    trainer = trainer_lib.assemble(
        config_lib.settings(config), task, total_steps=TOTAL_STEPS, key=jax.random.key(0)
    )
    split = jax.device_put(task.train)
    return trainer, [
        batches.take(split, np.arange(n, n + 40, dtype=np.int32), 40) for n in (0, 40, 80)
    ]


def run(config, *, copies=1):
    """Initial state, state and metrics after three steps (times `copies`), traced once."""
    trainer, data = assemble(config)
    chex.clear_trace_counter()  # it counts by name, over all steps of this process
    step = jax.jit(chex.assert_max_traces(trainer.train_step, n=1))
    state = trainer.initial_state
    for batch in data * copies:
        state, metrics = step(state, batch, jax.random.key(7))
    return trainer.initial_state, state, metrics


class StopAfter:
    """Asks to stop once `number` steps are done."""

    def __init__(self, number):
        self.number, self.asked = number, 0

    @property
    def received(self):
        self.asked += 1
        return "SIGTERM" if self.asked > self.number else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
