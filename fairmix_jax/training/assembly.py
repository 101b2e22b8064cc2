"""From settings to the pure parts of a run."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairmix_jax import types as t
from fairmix_jax.data import batches
from fairmix_jax.methods import mixing
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.models import exported
from fairmix_jax.models.described import weights_template
from fairmix_jax.runtime import processes, registry
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import read_json
from fairmix_jax.training.checkpoints import stored_weights
from fairmix_jax.training.settings import Data, Member, Optimizer, Settings
from fairmix_jax.training.step import TrainStep, initial_state, make_train_step
from fairmix_jax.training.task import Task


class Trainer(NamedTuple):
    """A run's pure parts."""

    initial_state: t.TrainState
    train_step: TrainStep
    rule: t.Rule  # as in the step; the loop calls its other functions
    averaging: t.Averaging  # the same
    frozen_base: t.Base  # with the model in evaluation mode and no rule in its attack

    def evaluated_weights(self, state: t.TrainState) -> t.Weights:
        """Returns the weights to evaluate: averaged, if there is an average."""
        return self.averaging.weights(state.average, t.Weights(state.params, state.batch_stats))


def hot_start(settings: Settings, task: Task) -> t.Weights | None:
    """Returns the weights of the run or file that `hot_start.workdir` names, `None` for none.

    A `UsageError` if they do not fit, or were trained on images that this run validates with.
    """
    chosen, source = settings.hot_start, Path(os.path.expanduser(settings.hot_start.workdir))
    if not chosen.workdir:
        return None
    is_file = source.suffix == ".safetensors"
    if is_file:
        facts = processes.from_main(partial(exported.read_card, source))
    else:
        facts = read_json(source / "config.json") or {}
    require_unseen(f"hot_start.workdir={chosen.workdir!r}", facts.get("data", {}), settings.data)
    try:
        if is_file:
            template = weights_template(task.model)
            return processes.from_main(partial(exported.read_weights, source, template))
        restored = stored_weights(source, chosen.weights, task.model)
    except (OSError, ValueError, UsageError) as error:
        raise UsageError(f"hot_start.workdir={chosen.workdir!r}: {error}") from error
    if restored is None:
        raise UsageError(
            f"hot_start.workdir={chosen.workdir!r} holds no {chosen.weights!r} weights; name the "
            "folder of a finished run with the same model and classes"
        )
    return restored[0]


def require_unseen(source: str, theirs: Mapping[str, Any], ours: Data) -> None:
    """Raises a `UsageError` if a network was trained on images that these settings validate with.

    `theirs` are the `data` of the config that trained it; without them it is said to be unknown.
    """
    if not ours.val_fraction:
        return
    if not theirs:
        told = "does not say on which images it was trained, maybe on those that validate here"
        return console.print(f"{source} {told}", soft_wrap=True)
    # Validation parts of the same images are nested, so the larger one holds the smaller.
    wanted = {"num_train": ours.num_train, "val_fraction": ours.val_fraction}
    is_apart = theirs.get("num_train") == ours.num_train and (
        theirs["val_fraction"] >= ours.val_fraction
    )
    if theirs.get("name") == ours.name and not is_apart:
        differing = next(k for k in wanted if theirs.get(k) != wanted[k])
        raise UsageError(
            f"{source} was trained with data.{differing}={theirs.get(differing)} on images that "
            f"this run validates with; train it with data.{differing}={wanted[differing]}, or "
            "change it here"
        )


def calibration(settings: Settings, task: Task) -> t.Calibration:
    """Returns what is done to the weights before they are evaluated.

    Raises:
      UsageError: a number or the model does not fit, or it reads a validation set that is not
        there.
    """
    made = _member("calibrations", settings.calibration, len(task.dataset.class_names))
    if made.reads_validation and np.bincount(task.validation.labels, minlength=1).max() < 2:
        raise UsageError(
            f"calibration.name={settings.calibration.name!r} reads a validation set and there are "
            "not two images of any class in it; raise "
            f"data.val_fraction={settings.data.val_fraction}"
        )
    _built(lambda: made.check(weights_template(task.model)))
    return made


def assemble(settings: Settings, task: Task, *, total_steps: int, key: t.Key) -> Trainer:
    """Returns the training step and the initial state of a run; the key is consumed.

    A `UsageError` if a number does not fit, or a member reads a validation set that is not there.
    """
    num_classes = len(task.dataset.class_names)
    rule = _member("rules", settings.rule, num_classes)
    averaging = _member("averaging", settings.averaging)
    readers = {"rule": set(rule.reads) & t.VALIDATION, "averaging": averaging.end_epoch}
    lacking = np.setdiff1d(task.train.labels, task.validation.labels)
    for reader, what in readers.items():
        if what and len(lacking):
            name = task.dataset.class_names[lacking[0]]
            is_some = len(task.validation.labels) > 0
            which = f"no image of {name!r} is in it" if is_some else "there is none"
            raise UsageError(
                f"{reader}.name={getattr(settings, reader).name!r} reads a validation set and "
                f"{which}; raise data.val_fraction={settings.data.val_fraction}"
            )
    given, apply_fn = settings.attack, task.model.apply
    untargeted = TrainingAttack(task.threat, given.num_steps, given.step_size, given.batch_norm)
    attack = dataclasses.replace(untargeted, targets=rule.targets)
    base = _member("bases", settings.base, apply_fn, attack)

    def frozen_apply(params, batch_stats, images, *, train, **options):
        del train  # it normalises with running statistics whatever it is asked to do
        return apply_fn(params, batch_stats, images, train=False, **options)

    frozen_base = _member("bases", settings.base, frozen_apply, untargeted)
    options = dataclasses.asdict(settings.mixing)
    part_mixed = 1 - options.pop("off_epochs") / settings.total_epochs
    crop_padding, flip = settings.data.crop_padding, settings.data.flip
    tx = _built(optimizer, settings.optim, total_steps=total_steps)
    train_step = make_train_step(
        augment=partial(batches.augment, crop_padding=crop_padding, flip=flip),
        mixing=_built(mixing.make, num_classes=num_classes, **options),
        base=base, rule=rule, averaging=averaging, tx=tx, num_parts=settings.num_parts,
        mixing_steps=round(total_steps * part_mixed), awp_gamma=settings.awp.gamma,
        awp_from_step=round(total_steps * settings.awp.warmup_epochs / settings.total_epochs),
    )  # fmt: skip
    weights = t.Weights(*_built(task.model.init, key))
    state = initial_state(weights, tx=tx, rule=rule, averaging=averaging)
    return Trainer(state, train_step, rule, averaging, frozen_base)


def optimizer(given: Optimizer, *, total_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of so many steps; schedules are in parts of it.

    Weight decay is the L2 penalty of the robust-training literature, as in PyTorch's SGD:
    `weight_decay` times the parameters (without `decay_biases` those of several dimensions) is
    added to the gradient, before momentum. Cosine and linear schedules end at zero; a warm-up
    rises linearly from it. ValueError if `decays` is given and has not one number a milestone.
    """
    milestones, decays, largest = given.milestones, given.decays, given.learning_rate
    if decays and len(decays) != len(milestones):
        raise ValueError(
            f"optim.decays has {len(decays)} numbers for {len(milestones)} optim.milestones"
        )
    warmup_steps = round(given.warmup * total_steps)
    rest = max(total_steps - warmup_steps, 1)
    steps = [round(fraction * total_steps) - warmup_steps for fraction in milestones]
    factors = dict(zip(steps, decays or [given.decay] * len(milestones), strict=True))
    rate = {
        "piecewise": optax.piecewise_constant_schedule(largest, factors),
        "cosine": optax.cosine_decay_schedule(largest, rest),
        "linear": optax.linear_schedule(largest, 0.0, rest),
        "constant": optax.constant_schedule(largest),
    }[given.schedule]
    if warmup_steps:
        ramp = optax.linear_schedule(0.0, largest, warmup_steps)
        rate = optax.join_schedules([ramp, rate], [warmup_steps])

    def rate_at(count: Any) -> Any:  # optax's schedules mix types if given integers
        return rate(jnp.asarray(count, jnp.float32))

    sgd = optax.sgd(rate_at, momentum=given.momentum, nesterov=given.nesterov)
    update = sgd if given.name == "sgd" else optax.adam(rate_at)
    mask = None if given.decay_biases else partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(optax.add_decayed_weights(given.weight_decay, mask), update)


def _member(axis: str, chosen: Member, *arguments: Any) -> Any:
    fields = registry.arguments(axis, {**chosen.arguments, "name": chosen.name})
    return _built(registry.load(axis, chosen.name), *arguments, **fields)


def _built(make: Callable[..., Any], *arguments: Any, **fields: Any) -> Any:
    try:
        return make(*arguments, **fields)
    except ValueError as error:
        raise UsageError(str(error)) from error
