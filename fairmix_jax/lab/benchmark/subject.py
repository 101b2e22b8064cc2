"""The things to time in one member of a grid: passes, attacks, training steps."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from ml_collections import ConfigDict

from fairmix_jax import attacks
from fairmix_jax.attacks.autoattack import attack_makers, autoattack
from fairmix_jax.attacks.one_batch import attack_batch
from fairmix_jax.data import batches
from fairmix_jax.lab import config as config_lib
from fairmix_jax.models.described import logits_partial
from fairmix_jax.runtime import sharding
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training import assembly, loop
from fairmix_jax.training.task import Task, build
from fairmix_jax.types import Array, Weights

FORWARD, INPUT_GRADIENT, PARAMETER_GRADIENT = "forward", "input gradient", "parameter gradient"
MATRIX_PRODUCT, TRAINING_STEP = "matrix product", "training step, "
PEAK_SIZE = 2048
_ATTACK = re.compile(r"(pgd|apgd|fab-t|square)(\d+)")
_HARMLESS = 1e-6  # a radius in which no attack succeeds, so that every example stays to the end


class Passes(NamedTuple):
    """Passes over the batch that cannot be avoided; all zero if they are not known."""

    forward: float = 0
    gradient: float = 0  # in the images: a forward and a backward pass
    parameter: float = 0  # gradients in the parameters, with batch statistics


_UNKNOWN = Passes()


@dataclass
class Contender:
    """Something to time."""

    run: Callable[[], Any]  # does it once and returns what to wait for
    passes: Passes = _UNKNOWN
    facts: dict[str, Any] = field(default_factory=dict)  # what else `benchmark.json` has of it


class Subject(NamedTuple):
    """The contenders of one member of the grid: all run on one batch of one network."""

    config: ConfigDict
    task: Task
    weights: Weights
    logits_fn: Partial  # the network with these weights, in `evaluate.search_dtype`
    images: Array
    labels: Array
    threat: attacks.ThreatModel  # all examples survive it, unless the weights are trained
    contenders: dict[str, Contender]


def subject_of(config: ConfigDict) -> Subject:
    """Compiles what `benchmark.attacks` and `benchmark.bases` name, for one batch."""
    names, bases = (
        [name.strip() for name in given.split(",") if name.strip()]
        for given in (config.benchmark.attacks, config.benchmark.bases)
    )
    for name in names:
        if name != "autoattack" and not _ATTACK.fullmatch(name):
            raise UsageError(
                f"benchmark.attacks: {name!r} is unknown; give autoattack, or pgd, apgd, fab-t or "
                "square and a number of steps, e.g. pgd20"
            )
    task = build(config_lib.settings(config))
    trained = assembly.hot_start(config_lib.settings(config), task)
    weights = trained or Weights(*task.model.init(jax.random.key(config.seed)))
    logits_fn = logits_partial(task.model.apply, weights, jnp.dtype(config.evaluate.search_dtype))
    split = task.train.take(np.arange(config.batch_size))
    images, labels = jnp.asarray(batches.as_float(split.images)), jnp.asarray(split.labels)
    threat = task.threat
    if not trained:
        labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
        threat = attacks.ThreatModel(threat.norm, _HARMLESS, threat.bounds)
    subject = Subject(config, task, weights, logits_fn, images, labels, threat, {})
    contenders, programs = subject.contenders, passes_of(subject, logits_fn)
    own = Passes(forward=1), Passes(gradient=1), Passes(parameter=1)
    for passes, (name, program) in zip(own, programs.items(), strict=True):
        contenders[name] = _compiled(passes, *program)
    matrix = jnp.ones((PEAK_SIZE, PEAK_SIZE), config.evaluate.search_dtype)
    contenders[MATRIX_PRODUCT] = _compiled(_UNKNOWN, jnp.matmul, matrix, matrix)
    contenders.update({name: _attack(subject, name) for name in names})
    contenders.update({TRAINING_STEP + base: _step(subject, base) for base in bases})
    return subject


def _compiled(passes: Passes, function: Callable, *arguments: Any) -> Contender:
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    facts = {"compile_seconds": time.perf_counter() - start}
    if memory := program.memory_analysis():
        facts["temporary_bytes"] = memory.temp_size_in_bytes
    return Contender(partial(program, *arguments), passes, facts)


def passes_of(subject: Subject, logits_fn: Partial) -> dict[str, tuple]:
    """Returns the passes by name, as functions to compile, each with its arguments."""
    images, labels, apply = subject.images, subject.labels, subject.task.model.apply
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def input_loss(images: Array, labels: Array, logits_fn: Partial) -> Array:
        return jnp.sum(cross_entropy(logits_fn(images), labels))

    def parameter_loss(params: Any, batch_stats: Any, images: Array, labels: Array) -> Any:
        logits, batch_stats = apply(params, batch_stats, images, train=True)
        return jnp.mean(cross_entropy(logits, labels)), batch_stats

    parameter_gradient = jax.value_and_grad(parameter_loss, has_aux=True)
    return {
        FORWARD: (lambda logits_fn, images: logits_fn(images), logits_fn, images),
        INPUT_GRADIENT: (jax.value_and_grad(input_loss), images, labels, logits_fn),
        PARAMETER_GRADIENT: (parameter_gradient, *subject.weights, images, labels),
    }


def _attack(subject: Subject, name: str) -> Contender:
    if not (match := _ATTACK.fullmatch(name)):
        return _autoattack(subject)
    kind, number = match[1], int(match[2])
    threat, num_classes = subject.threat, len(subject.task.dataset.class_names)
    key = jax.random.key(subject.config.seed)
    arguments = (subject.logits_fn, key, subject.images, subject.labels)
    if kind == "pgd":
        attack = partial(attacks.pgd, threat=threat, num_steps=number, step_size=threat.epsilon / 4)
        return _compiled(Passes(gradient=number), attack, *arguments)
    name, options = {
        "apgd": ("apgd-ce", {"num_steps": number}),
        "fab-t": ("fab-t", {"num_steps": number, "num_targets": 1}),
        "square": ("square", {"num_queries": number}),
    }[kind]
    stepwise = attack_makers()[name](norm=threat.norm, bounds=threat.bounds, **options)
    forward, gradient = stepwise.passes(num_classes)
    steps = stepwise.num_steps * stepwise.num_runs(num_classes)
    passes = Passes(forward=forward * steps + 1, gradient=gradient * steps)  # 1: clean logits
    return _compiled(passes, partial(attack_batch, stepwise, epsilon=threat.epsilon), *arguments)


def _autoattack(subject: Subject) -> Contender:
    """AutoAttack, whose passes depend on the verdicts: those of the last run count."""
    number = len(subject.images)

    def attack() -> None:
        report = autoattack(
            subject.logits_fn, subject.images, subject.labels, threat=subject.threat,
            seed=subject.config.seed, batch_size=number,
        )  # fmt: skip
        contender.facts["robust_images"] = int(report.robust.sum())
        spent = (report.forward_passes, report.gradient_passes)
        contender.passes = Passes(*(float(passes.sum()) / number for passes in spent))

    contender = Contender(attack)
    return contender


def _step(subject: Subject, base: str) -> Contender:
    config = config_lib.override(subject.config, {"base.name": base})
    known = {"standard": Passes(parameter=1), "pgd_at": Passes(0, config.attack.num_steps, 1)}
    start = time.perf_counter()
    step = training_steps(config, subject.task, 1)
    seconds = time.perf_counter() - start
    return Contender(step, known.get(base, _UNKNOWN), {"compile_seconds": seconds})


def training_steps(config: ConfigDict, task: Task, number: int) -> Callable[[], Any]:
    """Returns a function that runs the next `number` training steps of a config."""
    size = config.batch_size
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    parts = assembly.assemble(config_lib.settings(config), task, total_steps=10**6, key=init_key)
    state = parts.initial_state
    feed = batches.feed(task.train, sharding.data_mesh(jax.devices()[:1]))
    step = loop.compile_step(parts.train_step, state, feed, size, step_key)
    rows = loop.image_order(order_key, task, parts.rule, batch_size=size)
    done = 0  # counted here, as in the loop: reading the state would wait for the device

    def steps() -> Any:
        nonlocal state, done
        for _ in range(number):
            state, measured = step(state, feed.take(rows(done, state), size), step_key)
            done += 1
        return measured

    return steps
