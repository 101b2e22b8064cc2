"""From a config to the pure parts of a run."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from fairmix_jax import attacks, mixing, optim, plugins
from fairmix_jax.data import batches
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.train_step import TrainStep, make_train_step
from fairmix_jax.types import Averaging, Key, Rule, TrainState, Weights


class Trainer(NamedTuple):
    """A run's pure parts.

    Attributes:
      initial_state: before the first step.
      train_step: see `train_step.make_train_step`.
      rule, averaging: as given to the step; the loop calls their other functions.
    """

    initial_state: TrainState
    train_step: TrainStep
    rule: Rule
    averaging: Averaging

    def evaluated_weights(self, state: TrainState) -> Weights:
        """Returns the weights to evaluate: averaged, if there is an average."""
        return self.averaging.weights(state.average, Weights(state.params, state.batch_stats))


def assemble(config: ConfigDict, experiment: Experiment, *, total_steps: int, key: Key) -> Trainer:
    """Returns the training step and the initial state of a config; the key is consumed."""
    num_classes = len(experiment.dataset.class_names)
    attack = partial(
        attacks.pgd,
        threat=experiment.threat,
        num_steps=config.attack.num_steps,
        step_size=config.attack.step_size,
    )
    base = _member("bases", config.base, experiment.model.apply, attack)
    rule = _member("rules", config.rule, num_classes)
    averaging = _member("averaging", config.averaging)
    options = config.mixing.to_dict()
    off_epochs = options.pop("off_epochs")
    tx = optim.make(total_steps=total_steps, **config.optim)
    train_step = make_train_step(
        augment=partial(
            batches.augment, crop_padding=config.data.crop_padding, flip=config.data.flip
        ),
        mixing=_built(mixing.make, num_classes=num_classes, **options),
        base=base,
        rule=rule,
        averaging=averaging,
        tx=tx,
        mixing_steps=round(total_steps * (1 - off_epochs / config.total_epochs)),
    )
    params, batch_stats = experiment.model.init(key)
    state = TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        rule_state=rule.init(),
        average=averaging.init(Weights(params, batch_stats)),
    )
    return Trainer(state, train_step, rule, averaging)


def _member(axis: str, section: ConfigDict, *arguments: Any) -> Any:
    make = plugins.load(axis, section.name)
    return _built(make, *arguments, **plugins.arguments(axis, section))


def _built(make: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    try:
        return make(*arguments, **fields)
    except ValueError as error:
        raise UsageError(str(error)) from error
