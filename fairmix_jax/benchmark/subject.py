"""What there is to time in one member of a grid: passes, attacks, training steps."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from ml_collections import ConfigDict

from fairmix_jax import attacks, grid
from fairmix_jax.attacks import ThreatModel
from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.autoattack import autoattack
from fairmix_jax.attacks.fab import make_targeted as make_fab
from fairmix_jax.attacks.pool import run as run_attack
from fairmix_jax.attacks.square import make as make_square
from fairmix_jax.attacks.stepwise import Stepwise
from fairmix_jax.benchmark.steps import training_steps
from fairmix_jax.benchmark.timing import Contender
from fairmix_jax.data import batches
from fairmix_jax.errors import UsageError
from fairmix_jax.evaluate import logits_partial
from fairmix_jax.experiment import Experiment, build
from fairmix_jax.trainer import hot_start
from fairmix_jax.types import Array, Weights

FORWARD, INPUT_GRADIENT, PARAMETER_GRADIENT = "forward", "input gradient", "parameter gradient"
MATRIX_PRODUCT, TRAINING_STEP = "matrix product", "training step, "
PEAK_SIZE = 2048
_STEPWISE: dict[str, Callable[..., Stepwise]] = {
    "apgd": lambda number, **threat: make_apgd(num_steps=number, **threat),
    "fab-t": lambda number, **threat: make_fab(num_steps=number, num_targets=1, **threat),
    "square": lambda number, **threat: make_square(num_queries=number, **threat),
}
_HARMLESS = 1e-6  # a radius in which no attack succeeds, so that every example stays to the end


class Passes(NamedTuple):
    """What cannot be avoided: passes over the batch.

    Attributes:
      forward, gradient, parameter: forward passes, gradients in the images (a forward and a
        backward pass), and gradients in the parameters with batch statistics.
    """

    forward: float = 0
    gradient: float = 0
    parameter: float = 0


class Subject(NamedTuple):
    """What is timed in one member of the grid.

    Attributes:
      config, experiment, weights: of the member.
      images, labels: the batch, `[B, H, W, C]` and `[B]`.
      threat: a radius at which all examples survive, unless the weights are trained.
      contenders: by name.
      passes: of each.
      compile_seconds, temporary_bytes: of each that is a single program.
      robust: images that survived, of each that counts them.
    """

    config: ConfigDict
    experiment: Experiment
    weights: Weights
    images: Array
    labels: Array
    threat: ThreatModel
    contenders: dict[str, Contender]
    passes: dict[str, Passes]
    compile_seconds: dict[str, float]
    temporary_bytes: dict[str, int]
    robust: dict[str, int]


def subject_of(config: ConfigDict) -> Subject:
    """Compiles what `benchmark.attacks` and `benchmark.bases` name, for one batch.

    Raises:
      UsageError: the config is not valid, or names an unknown attack.
    """
    names, bases = (
        [name.strip() for name in given.split(",") if name.strip()]
        for given in (config.benchmark.attacks, config.benchmark.bases)
    )
    for name in names:
        _parse(name)
    experiment = build(config)
    weights, is_trained = _weights(config, experiment)
    dtype = jnp.dtype(config.evaluate.search_dtype)
    logits_fn = logits_partial(experiment.model.apply, weights, dtype)
    split = experiment.train.take(np.arange(config.batch_size))
    images = jnp.asarray(batches.as_float(split.images))
    labels = jnp.asarray(split.labels)
    threat = experiment.threat
    if not is_trained:
        labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
        threat = ThreatModel(threat.norm, _HARMLESS, threat.bounds)
    subject = Subject(config, experiment, weights, images, labels, threat, {}, {}, {}, {}, {})
    _add_passes(subject, logits_fn)
    for name in names:
        _add_attack(subject, logits_fn, name)
    for name in bases:
        _add_steps(subject, name)
    return subject


def _parse(name: str) -> tuple[str, int]:
    """Kind and number of steps of an attack; AutoAttack has its own."""
    if name == "autoattack":
        return name, 0
    if match := re.fullmatch(r"(pgd|apgd|fab-t|square)(\d+)", name):
        return match[1], int(match[2])
    raise UsageError(
        f"benchmark.attacks: {name!r} is unknown; give autoattack, or pgd, apgd, fab-t or "
        "square and a number of steps, e.g. pgd20"
    )


def _weights(config: ConfigDict, experiment: Experiment) -> tuple[Weights, bool]:
    """Trained weights, if `hot_start` names some, else random ones."""
    if trained := hot_start(config, experiment):
        return trained, True
    return Weights(*experiment.model.init(jax.random.key(config.seed))), False


def _add(subject: Subject, name: str, passes: Passes, function: Callable, *arguments: Any) -> None:
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    subject.compile_seconds[name] = time.perf_counter() - start
    if memory := program.memory_analysis():
        subject.temporary_bytes[name] = memory.temp_size_in_bytes
    subject.contenders[name] = partial(program, *arguments)
    subject.passes[name] = passes


def passes_of(subject: Subject, logits_fn: Partial) -> dict[str, tuple[Callable, tuple]]:
    """Returns the passes by name, as functions to compile and their arguments."""
    images, labels, apply = subject.images, subject.labels, subject.experiment.model.apply
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def input_loss(images: Array, labels: Array, logits_fn: Partial) -> Array:
        return jnp.sum(cross_entropy(logits_fn(images), labels))

    def parameter_loss(params: Any, batch_stats: Any, images: Array, labels: Array) -> Any:
        logits, batch_stats = apply(params, batch_stats, images, train=True)
        return jnp.mean(cross_entropy(logits, labels)), batch_stats

    return {
        FORWARD: (lambda logits_fn, images: logits_fn(images), (logits_fn, images)),
        INPUT_GRADIENT: (jax.value_and_grad(input_loss), (images, labels, logits_fn)),
        PARAMETER_GRADIENT: (
            jax.value_and_grad(parameter_loss, has_aux=True), (*subject.weights, images, labels)
        ),
    }  # fmt: skip


def _add_passes(subject: Subject, logits_fn: Partial) -> None:
    """The passes themselves, which everything else is made of."""
    own = Passes(forward=1), Passes(gradient=1), Passes(parameter=1)
    for passes, (name, (function, arguments)) in zip(
        own, passes_of(subject, logits_fn).items(), strict=True
    ):
        _add(subject, name, passes, function, *arguments)
    matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE), subject.config.evaluate.search_dtype)
    _add(subject, MATRIX_PRODUCT, Passes(), jnp.matmul, matrix, matrix)


def _add_attack(subject: Subject, logits_fn: Partial, name: str) -> None:
    images, labels, threat = subject.images, subject.labels, subject.threat
    key = jax.random.key(subject.config.seed)
    kind, number = _parse(name)
    if kind == "autoattack":
        _add_autoattack(subject, logits_fn)
        return
    if kind == "pgd":

        def attack(logits_fn: Partial, key: Array, images: Array, labels: Array) -> Array:
            return attacks.pgd(
                logits_fn, key, images, labels, threat=threat, num_steps=number,
                step_size=threat.epsilon / 4,
            )  # fmt: skip

        _add(subject, name, Passes(gradient=number), attack, logits_fn, key, images, labels)
        return
    stepwise = _STEPWISE[kind](number, norm=threat.norm, bounds=threat.bounds)
    num_classes = len(subject.experiment.dataset.class_names)
    forward, gradient = stepwise.passes(num_classes)
    steps = stepwise.num_steps * stepwise.num_runs(num_classes)
    passes = Passes(forward=forward * steps + 1, gradient=gradient * steps)  # 1: clean logits
    attack = partial(run_attack, stepwise, epsilon=threat.epsilon)
    _add(subject, name, passes, attack, logits_fn, key, images, labels)


def _add_autoattack(subject: Subject, logits_fn: Partial) -> None:
    """AutoAttack, whose passes depend on the verdicts: those of the last run count."""

    def attack() -> None:
        report = autoattack(
            logits_fn, subject.images, subject.labels, threat=subject.threat,
            seed=subject.config.seed, batch_size=len(subject.images),
        )  # fmt: skip
        forward, gradient = (
            float(spent.sum()) / len(subject.images)
            for spent in (report.forward_passes, report.gradient_passes)
        )
        subject.robust["autoattack"] = int(report.robust.sum())
        subject.passes["autoattack"] = Passes(forward=forward, gradient=gradient)

    subject.contenders["autoattack"] = attack


def _add_steps(subject: Subject, base: str) -> None:
    config = grid.override(subject.config, {"base.name": base})
    start = time.perf_counter()
    name = TRAINING_STEP + base
    subject.contenders[name] = training_steps(config, subject.experiment, 1)
    subject.compile_seconds[name] = time.perf_counter() - start
    if base in ("standard", "pgd_at"):
        num_steps = config.attack.num_steps if base == "pgd_at" else 0
        subject.passes[name] = Passes(gradient=num_steps, parameter=1)
