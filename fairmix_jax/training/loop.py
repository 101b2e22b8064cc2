"""Training: the loop that repeats the step, saves, resumes and stops, and the order of images."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fairmix_jax.data import Split, batches
from fairmix_jax.methods import class_statistics
from fairmix_jax.runtime import processes, sharding
from fairmix_jax.runtime.console import console, working
from fairmix_jax.runtime.errors import Interrupted, StopRequest, UsageError
from fairmix_jax.training.assembly import Trainer, assemble, hot_start
from fairmix_jax.training.checkpoints import Checkpoints, KeptWeights, digest
from fairmix_jax.training.epoch_end import EpochEnd
from fairmix_jax.training.progress import TrainProgress
from fairmix_jax.training.settings import Settings
from fairmix_jax.training.step import StepMetrics, TrainStep, apart
from fairmix_jax.training.task import Task
from fairmix_jax.types import Array, Key, Rule, TrainState

_DRAWS = 2**32 - 1  # apart from every epoch, whose orders fold their own number into the key

_add = jax.jit(functools.partial(jax.tree.map, jnp.add))


def fit(settings: Settings, task: Task, workdir: Path) -> str:
    """Trains, or goes on training, in `workdir`; returns the sha256 of the final state.

    Guarantees: a run that is stopped at any moment, by any signal, and run again ends in
    the same state, bit for bit, as a run left alone on the same number of cores and
    devices; on GPU only under `XLA_FLAGS=--xla_gpu_deterministic_ops=true`. The test set is not
    touched. Of several processes all call this; they save and stop at the same step.

    Raises:
      Interrupted: SIGTERM or SIGINT came, to any process; everything is saved.
      UsageError: the settings cannot be built, or a checkpoint in `workdir` does not fit.
      FloatingPointError: the loss is no longer finite.
    """
    mesh = devices(settings)
    data = _told_by(task.train)
    processes.require_equal("the training set", data)
    feed = batches.feed(task.train, mesh)
    steps_per_epoch = len(task.train.labels) // settings.batch_size
    total_steps = steps_per_epoch * settings.total_epochs
    init_key, order_key, step_key = jax.random.split(jax.random.key(settings.seed), 3)
    trainer = assemble(settings, task, total_steps=total_steps, key=init_key)
    rows = image_order(order_key, task, trainer.rule, batch_size=settings.batch_size)
    nothing = StepMetrics(jnp.zeros(()), class_statistics.zeros(len(task.dataset.class_names)))
    vote = processes.StopVote(mesh)
    folder = workdir / "checkpoints"
    processes.from_main(lambda: (folder / "state").mkdir(parents=True, exist_ok=True))
    saved = Checkpoints(folder / "state", max_to_keep=2)
    with StopRequest() as stop:
        restored = saved.restore_latest((trainer.initial_state, nothing))
        (state, totals), facts = restored or ((_fresh(settings, task, trainer), nothing), {})
        _require_same_data(facts, data, folder, settings.data.name)
        weights = trainer.evaluated_weights(trainer.initial_state)
        step, kept = int(state.step), KeptWeights(folder, weights, facts, task.model_card)
        if step == total_steps:
            kept.save_last(step, trainer.evaluated_weights(state))
            return digest(state)
        if step:
            console.print(f"resuming at step {step} of {total_steps}")
        state, totals, step_key = sharding.on_each(mesh, (state, totals, step_key))
        train_step = compile_step(trainer.train_step, state, feed, settings.batch_size, step_key)
        _announce(settings, task, mesh)
        epoch_end = EpochEnd(settings, task, trainer, workdir, step, mesh, kept)
        shape = dict(total_epochs=settings.total_epochs, batch_size=settings.batch_size)
        with TrainProgress(step, total_steps, **shape) as progress:
            while step < total_steps:
                batch = feed.take(rows(step, state), settings.batch_size)
                state, measured = train_step(state, batch, step_key)
                totals, step = _add(totals, measured), step + 1
                progress.advance(step)
                is_told, is_last = vote(bool(stop.received)), step == total_steps
                epoch, rest = divmod(step, steps_per_epoch)
                if rest == 0:
                    state, totals = apart(epoch_end(state, totals, epoch, progress)), nothing
                is_due = rest == 0 and epoch % settings.checkpoint.every_epochs == 0
                if is_due or is_told or is_last:
                    saved.save(step, (state, totals), data=data, **kept.facts)
                if is_last:  # others may have been told since the votes that were read
                    is_told |= vote.last(bool(stop.received))
                if is_told:
                    reason = stop.received or "told to stop"
                    raise Interrupted(f"{reason}: saved at step {step} of {total_steps}")
    return digest(state)


def _told_by(train: Split) -> str:
    """The digest of all labels and of about a thousand images, which takes no time."""
    return digest((train.labels, train.images[:: 1 + len(train.labels) // 1000]))


def _require_same_data(facts: Mapping[str, Any], data: str, folder: Path, name: str) -> None:
    if facts.get("data", data) != data:  # a checkpoint of an earlier version has none
        raise UsageError(
            f"{str(folder)!r} was trained on other images or labels than data.name={name!r} has "
            "now; put those back, or give another --workdir"
        )


def _fresh(settings: Settings, task: Task, trainer: Trainer) -> TrainState:
    """The state before the first step, with another run's weights if the settings name one."""
    state, weights = trainer.initial_state, hot_start(settings, task)
    if weights is None:
        return state
    return apart(state.replace(**weights._asdict(), average=trainer.averaging.init(weights)))


def devices(settings: Settings) -> Mesh:
    """Returns the devices that share a batch; a `UsageError` if it does not divide among them."""
    mesh = sharding.data_mesh(sharding.chosen_devices(settings.num_devices))
    if settings.batch_size % (mesh.size * settings.num_parts):
        raise UsageError(
            f"batch_size={settings.batch_size} does not divide among {mesh.size} devices and "
            f"num_parts={settings.num_parts}; give a multiple, or a divisor as num_devices"
        )
    return mesh


def image_order(
    key: Key, task: Task, rule: Rule, *, batch_size: int
) -> Callable[[int, TrainState], np.ndarray | Array]:
    """Returns `(step, state) -> [B]`: the positions of the images of a step, counted from 0.

    An epoch visits every image once, in a random order, but for the rest that fills no batch. A
    rule that sets `sampling` has the images of each step drawn instead, by class and with
    replacement, as often as it says in the state before the step. The key is only folded.
    """
    labels = task.train.labels
    steps_per_epoch = len(labels) // batch_size
    by_class = batches.by_class(labels, len(task.dataset.class_names))

    def drawn(step: int, state: TrainState) -> Array:
        step_key = jax.random.fold_in(jax.random.fold_in(key, _DRAWS), step)
        frequencies = rule.knobs(state.rule_state).sampling
        return batches.draw(step_key, by_class, frequencies, size=batch_size)

    @functools.lru_cache(maxsize=1)
    def order(epoch: int) -> np.ndarray:
        return np.asarray(epoch_order(key, epoch, size=len(labels)), np.int32)

    def visited(step: int, state: TrainState) -> np.ndarray:
        epoch, number = divmod(step, steps_per_epoch)
        return order(epoch)[number * batch_size : (number + 1) * batch_size]

    return drawn if "sampling" in rule.sets else visited


@functools.partial(jax.jit, static_argnames="size")
def epoch_order(key: Key, epoch: int, *, size: int) -> Array:
    """Returns the order `[size]` in which an epoch visits a split: a function of (key, epoch)."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), size)


def _announce(settings: Settings, task: Task, mesh: Mesh) -> None:
    """Says how the work is split, and what would cost communication in every step."""
    if mesh.size == 1:
        return
    console.print(
        f"{mesh.size} devices, {jax.process_count()} processes, "
        f"{settings.batch_size // mesh.size} images of a batch on each"
    )
    if task.model_card["model"].get("norm") == "batch":
        console.print(
            f"batch norm averages over all devices; model.norm=batch:{mesh.size} avoids that"
        )
    if settings.mixing.name != "none" and settings.mixing.num_groups % mesh.size:
        console.print(
            f"mixing exchanges images between devices; mixing.num_groups={mesh.size} avoids that"
        )


def compile_step(
    train_step: TrainStep, state: TrainState, feed: batches.Feed, batch_size: int, key: Key
) -> TrainStep:
    """Compiles ahead of time, so that the run has one shape and the wait is announced."""
    start = time.perf_counter()
    batch = feed.take(np.arange(batch_size, dtype=np.int32), batch_size)
    whole = sharding.replicated(feed.mesh)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=whole)
    with working("compiling the training step"):
        compiled = jitted.lower(state, batch, key).compile()
    size, seconds = sum(x.size for x in jax.tree.leaves(state.params)), time.perf_counter() - start
    console.print(
        f"compiled the training step in {seconds:.1f} s ({size:,} parameters, "
        f"{len(feed.split.labels):,} training images, batches of {batch_size})"
    )
    return compiled
