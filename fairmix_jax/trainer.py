"""From a config to the pure parts of a run."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from fairmix_jax import cluster, evaluate, mixing, optim, plugins, workdir
from fairmix_jax.checkpoint import Checkpoints
from fairmix_jax.data import batches
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.train_step import TrainStep, make_train_step
from fairmix_jax.training_attack import TrainingAttack
from fairmix_jax.types import (
    VALIDATION,
    ApplyFn,
    Averaging,
    Base,
    Key,
    Rule,
    TrainState,
    Weights,
)


class Trainer(NamedTuple):
    """A run's pure parts.

    Attributes:
      initial_state: before the first step.
      train_step: see `train_step.make_train_step`.
      rule, averaging: as given to the step; the loop calls their other functions.
      frozen_base: the base with the model in evaluation mode and nothing of the rule in its
        attack, for validation.
    """

    initial_state: TrainState
    train_step: TrainStep
    rule: Rule
    averaging: Averaging
    frozen_base: Base

    @property
    def reads(self) -> frozenset[str]:
        """What is to be measured of the current weights on the validation set."""
        reads = set(self.rule.reads) & VALIDATION
        if self.averaging.end_epoch is not None:
            reads |= {"robust"}
        if self.frozen_base.single_step:
            reads |= {"robust", "base"}
        return frozenset(reads)

    def evaluated_weights(self, state: TrainState) -> Weights:
        """Returns the weights to evaluate: averaged, if there is an average, and finished."""
        weights = Weights(state.params, state.batch_stats)
        return self.rule.finish(self.averaging.weights(state.average, weights))

    def restarted(self, weights: Weights) -> TrainState:
        """Returns the initial state with other weights."""
        return self.initial_state.replace(
            params=weights.params,
            batch_stats=weights.batch_stats,
            average=self.averaging.init(weights),
        )


def hot_start(config: ConfigDict, experiment: Experiment) -> Weights | None:
    """Returns the weights of another run that `hot_start.workdir` names, `None` for none.

    Raises:
      UsageError: they are not there, belong to another network, or were trained on images
        that this run validates with.
    """
    chosen = config.hot_start
    if not chosen.workdir:
        return None
    _require_unseen(config, Path(chosen.workdir))
    directory = Path(chosen.workdir) / "checkpoints" / chosen.weights
    template, restored = evaluate.weights_template(experiment), None
    if cluster.from_main(directory.is_dir):
        with Checkpoints(directory, max_to_keep=1) as checkpoints:
            restored = checkpoints.restore_latest(template) if checkpoints.fits(template) else None
    if restored is None:
        raise UsageError(
            f"hot_start.workdir={chosen.workdir!r} holds no {chosen.weights!r} weights of this "
            "network; name the folder of a finished run with the same model and classes"
        )
    return restored[0]


def _require_unseen(config: ConfigDict, source: Path) -> None:
    """Validation parts of one data set are nested, so the larger one holds the smaller."""
    recorded = workdir.read_json(source / "config.json")
    if recorded is None:
        return
    theirs = ConfigDict(recorded).data
    is_same = (theirs.name, theirs.num_train) == (config.data.name, config.data.num_train)
    if is_same and theirs.val_fraction < config.data.val_fraction:
        raise UsageError(
            f"hot_start.workdir={str(source)!r} was trained with data.val_fraction="
            f"{theirs.val_fraction} on images that this run validates with; train it with "
            f"data.val_fraction={config.data.val_fraction}, or lower it here"
        )


def assemble(config: ConfigDict, experiment: Experiment, *, total_steps: int, key: Key) -> Trainer:
    """Returns the training step and the initial state of a config; the key is consumed.

    Raises:
      UsageError: a member or a number does not fit, or a member reads a validation set that
        is not there.
    """
    num_classes = len(experiment.dataset.class_names)
    rule = _member("rules", config.rule, num_classes)
    averaging = _member("averaging", config.averaging)
    if not len(experiment.validation.labels):
        _forbid_validation(config, rule, averaging)
    attack = TrainingAttack(
        threat=experiment.threat,
        num_steps=config.attack.num_steps,
        step_size=config.attack.step_size,
        batch_norm=config.attack.batch_norm,
        targets=rule.targets,
    )
    apply_fn = experiment.model.apply
    base = _member("bases", config.base, apply_fn, attack)
    untargeted = dataclasses.replace(attack, targets=None)
    frozen_base = _member("bases", config.base, _frozen(apply_fn), untargeted)
    options = config.mixing.to_dict()
    off_epochs = options.pop("off_epochs")
    total_epochs = config.total_epochs
    tx = _built(optim.make, total_steps=total_steps, **config.optim)
    train_step = make_train_step(
        augment=partial(
            batches.augment, crop_padding=config.data.crop_padding, flip=config.data.flip
        ),
        mixing=_built(mixing.make, num_classes=num_classes, **options),
        base=base,
        rule=rule,
        averaging=averaging,
        tx=tx,
        mixing_steps=round(total_steps * (1 - off_epochs / total_epochs)),
        awp_gamma=config.awp.gamma,
        awp_from_step=round(total_steps * config.awp.warmup_epochs / total_epochs),
        num_parts=config.num_parts,
    )
    params, batch_stats = experiment.model.init(key)
    _built(rule.finish, Weights(params, batch_stats))  # raises if it does not fit the model
    state = TrainState(
        step=jnp.asarray(0, jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        rule_state=rule.init(),
        average=averaging.init(Weights(params, batch_stats)),
    )
    return Trainer(state, train_step, rule, averaging, frozen_base)


def _forbid_validation(config: ConfigDict, rule: Rule, averaging: Averaging) -> None:
    gate = "averaging" if averaging.end_epoch is not None else None
    reader = "rule" if set(rule.reads) & VALIDATION else gate
    if reader:
        raise UsageError(
            f"{reader}.name={config[reader].name!r} reads a validation set and there is none; "
            "set data.val_fraction above 0"
        )


def _frozen(apply_fn: ApplyFn) -> ApplyFn:
    """The model that normalises with running statistics whatever it is asked to do."""

    def apply(params, batch_stats, images, *, train, **options):
        del train
        return apply_fn(params, batch_stats, images, train=False, **options)

    return apply


def _member(axis: str, section: ConfigDict, *arguments: Any) -> Any:
    make = plugins.load(axis, section.name)
    return _built(make, *arguments, **plugins.arguments(axis, section))


def _built(make: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    try:
        return make(*arguments, **fields)
    except ValueError as error:
        raise UsageError(str(error)) from error
