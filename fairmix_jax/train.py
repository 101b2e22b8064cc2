"""Training: the loop that repeats the step, saves, resumes and stops when told."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fairmix_jax import class_statistics, cluster, sharding
from fairmix_jax.checkpoint import Checkpoints, digest
from fairmix_jax.config import resolved
from fairmix_jax.data import batches
from fairmix_jax.epoch_end import EpochEnd
from fairmix_jax.errors import Interrupted, UsageError
from fairmix_jax.experiment import Experiment
from fairmix_jax.progress import TrainProgress, console
from fairmix_jax.signals import StopRequest
from fairmix_jax.train_step import StepMetrics, TrainStep
from fairmix_jax.trainer import assemble, hot_start
from fairmix_jax.types import Array, Key, Rule, TrainState


def fit(config: ConfigDict, experiment: Experiment, workdir: Path) -> str:
    """Trains, or goes on training, in `workdir`; returns the sha256 of the final state.

    Guarantees: a run that is stopped at any moment, by any signal, and run again ends in
    the same state, bit for bit, as a run left alone on the same number of cores and
    devices; on GPU only under `XLA_FLAGS=--xla_gpu_deterministic_ops=true`, since XLA's
    gradients there are not deterministic otherwise. The test set is not touched. Of several
    processes all call this; they save and stop at the same step.

    Raises:
      Interrupted: SIGTERM or SIGINT came, to any process; everything is saved.
      UsageError: the config cannot be built.
      FloatingPointError: the loss is no longer finite.
    """
    mesh, batch_size = _mesh(config), config.batch_size
    cluster.require_equal("the training set", digest(experiment.train.labels))
    feed = batches.feed(experiment.train, mesh)
    num_images = len(experiment.train.labels)
    steps_per_epoch = num_images // batch_size
    total_steps = steps_per_epoch * config.total_epochs
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    trainer = assemble(config, experiment, total_steps=total_steps, key=init_key)
    num_classes = len(experiment.dataset.class_names)
    nothing = StepMetrics(jnp.zeros(()), class_statistics.zeros(num_classes))
    template = (trainer.initial_state, nothing)
    by_class = batches.by_class(experiment.train.labels, num_classes)
    draws = Draws(trainer.rule, order_key, by_class)
    vote = cluster.StopVote(mesh)

    with (
        Checkpoints(workdir / "checkpoints" / "state", max_to_keep=2) as saved,
        StopRequest() as stop,
    ):
        restored = saved.restore_latest(template)
        if not restored and (weights := hot_start(config, experiment)):
            template = trainer.restarted(weights), nothing
        state, totals = restored[0] if restored else template
        step = int(state.step)
        if step == total_steps:
            return digest(state)
        if step:
            console.print(f"resuming at step {step} of {total_steps}")
        state, totals, step_key = sharding.on_each(mesh, (state, totals, step_key))
        train_step = compile_step(trainer.train_step, state, feed, batch_size, step_key)
        _announce(config, mesh)
        progress = TrainProgress(
            first_step=step,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
        )
        with progress, EpochEnd(config, experiment, trainer, workdir, step, mesh) as epoch_end:
            while step < total_steps:
                epoch = step // steps_per_epoch
                order = batches.epoch_order(order_key, epoch, size=num_images)
                rows = np.asarray(order, np.int32)[: steps_per_epoch * batch_size]
                for batch_rows in rows.reshape(-1, batch_size)[step % steps_per_epoch :]:
                    if draws.are_needed:
                        batch_rows = draws(state, step, batch_size)
                    batch = feed.take(batch_rows, batch_size)
                    state, measured = train_step(state, batch, step_key)
                    totals, step = _add(totals, measured), step + 1
                    progress.advance(step)
                    if is_told := vote(bool(stop.received)):
                        break
                is_epoch_over = step % steps_per_epoch == 0
                if is_epoch_over:
                    state = epoch_end(state, totals, epoch + 1, progress)
                    totals = nothing
                is_due = is_epoch_over and (epoch + 1) % config.checkpoint.every_epochs == 0
                if is_due or is_told or step == total_steps:
                    saved.save(step, (state, totals))
                if step == total_steps:
                    is_told |= vote.last(bool(stop.received))
                if is_told:
                    reason = stop.received or "told to stop"
                    raise Interrupted(f"{reason}: saved at step {step} of {total_steps}")
    return digest(state)


class Draws(NamedTuple):
    """Batches of a rule that sets how often each class is drawn, instead of epochs in order.

    Attributes:
      rule: its knobs are followed.
      key: the draws of a step depend on it, the step and the rule's state.
      classes: the split's rows by class.
    """

    rule: Rule
    key: Key
    classes: batches.ClassRows

    @property
    def are_needed(self) -> bool:
        """Whether the rule sets them; else epochs visit every example once."""
        return "sampling" in self.rule.sets

    def __call__(self, state: TrainState, step: int, size: int) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(self.key, 2**32 - 1), step)
        frequencies = self.rule.knobs(state.rule_state).sampling
        return batches.draw(key, self.classes, frequencies, size=size)


@jax.jit
def _add(a: StepMetrics, b: StepMetrics) -> StepMetrics:
    return jax.tree.map(jnp.add, a, b)


def _mesh(config: ConfigDict) -> Mesh:
    mesh = sharding.data_mesh(sharding.chosen_devices(config.num_devices))
    if config.batch_size % (mesh.size * config.num_parts):
        raise UsageError(
            f"batch_size={config.batch_size} does not divide among {mesh.size} devices and "
            f"num_parts={config.num_parts}; give a multiple, or a divisor as num_devices"
        )
    return mesh


def _announce(config: ConfigDict, mesh: Mesh) -> None:
    """Says how the work is split, and what would cost communication in every step."""
    if mesh.size == 1:
        return
    console.print(
        f"{mesh.size} devices, {jax.process_count()} processes, "
        f"{config.batch_size // mesh.size} images of a batch on each"
    )
    if resolved(config)["model"].get("norm") == "batch":
        console.print(
            f"batch norm averages over all devices; model.norm=batch:{mesh.size} does not"
        )
    if config.mixing.name != "none" and config.mixing.num_groups % mesh.size:
        console.print(
            f"mixing exchanges images between devices; mixing.num_groups={mesh.size} does not"
        )


def compile_step(
    train_step: TrainStep,
    state: TrainState,
    feed: batches.Feed,
    batch_size: int,
    key: Key,
) -> TrainStep:
    """Compiles ahead of time, so that the run has one shape and the wait is announced."""
    start = time.perf_counter()
    batch = feed.take(np.arange(batch_size, dtype=np.int32), batch_size)
    whole = sharding.replicated(feed.mesh)
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=whole)
    compiled = jitted.lower(state, batch, key).compile()
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    num_images = len(feed.split.labels)
    console.print(
        f"compiled the training step in {time.perf_counter() - start:.1f} s "
        f"({size:,} parameters, {num_images:,} training images, batches of {batch_size})"
    )
    return compiled
