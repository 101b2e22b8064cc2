"""The work between two epochs: validation, rule, averaging, best weights, log."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fairmix_jax import attacks
from fairmix_jax import types as t
from fairmix_jax.classwise import metrics
from fairmix_jax.data import batches
from fairmix_jax.methods import class_statistics
from fairmix_jax.methods.mixing import unmixed
from fairmix_jax.models.described import logits_partial
from fairmix_jax.runtime import processes
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.precision import at_full_precision
from fairmix_jax.training.assembly import Trainer
from fairmix_jax.training.checkpoints import KeptWeights
from fairmix_jax.training.progress import MetricLog, TrainProgress
from fairmix_jax.training.settings import Settings
from fairmix_jax.training.step import StepMetrics
from fairmix_jax.training.task import Task

_PGD = "val_single_step/pgd_average"
_COUNTS = {"clean", "robust"}


class EpochEnd:
    """The work after an epoch: validation, the rule's update, best weights, the log.

    Called as `(state, totals, epoch, progress)` with the epoch counted from 1, it returns the
    state with the rule's and the average's new states.
    """

    def __init__(
        self, settings: Settings, task: Task, trainer: Trainer, workdir: Path, step: int,
        mesh: Mesh, kept: KeptWeights,
    ):  # fmt: skip
        self._settings, self._trainer, self._kept = settings, trainer, kept
        self._log = MetricLog(workdir, last_step=step) if processes.is_main() else None
        earlier = self._log.earlier if self._log else []
        if self._log and len(earlier) < step // (len(task.train.labels) // settings.batch_size):
            told = "lacks lines of epochs that are done; the course of training begins later"
            console.print(f"{workdir / 'metrics.jsonl'} {told}", soft_wrap=True)
        self._best_pgd = max([0.0, *(line.get(_PGD, 0.0) for line in earlier)])
        self._class_names = task.dataset.class_names
        self._has_validation = len(task.validation.labels) > 0
        self._validator = Validator(settings, task, trainer.frozen_base, mesh)
        self._update = jax.jit(trainer.rule.update)
        end_epoch = trainer.averaging.end_epoch
        self._end_epoch = end_epoch and jax.jit(end_epoch)
        self._rule_reads = set(trainer.rule.reads) & t.VALIDATION
        self._reads = self._rule_reads | ({"robust"} if end_epoch else set())
        self._reads |= {"robust", "base"} if trainer.frozen_base.single_step else set()

    def __call__(
        self, state: t.TrainState, totals: StepMetrics, epoch: int, progress: TrainProgress
    ) -> t.TrainState:
        step, train = int(state.step), totals.statistics
        loss = float(totals.loss) / int(train.counts.total.sum())
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} after epoch {epoch}; lower optim.learning_rate"
            )
        scalars = {"epoch": epoch, "loss": loss} | self._scalars("train", train.counts)
        is_last = epoch == self._settings.total_epochs
        is_due = epoch % self._settings.validation.every_epochs == 0 or is_last
        is_validated = is_due and self._has_validation
        current = t.Weights(state.params, state.batch_stats)
        reads = self._reads if is_validated else set()
        measured = self._validator.read(current, reads)
        if is_validated or not self._rule_reads:
            statistics = t.EpochStatistics(jnp.asarray(epoch, jnp.int32), train, **measured)
            state = state.replace(rule_state=self._update(state.rule_state, statistics))
        if is_validated and self._end_epoch:
            average = self._end_epoch(state.average, current, measured["robust"])
            state = state.replace(average=average)
        weights = self._trainer.evaluated_weights(state)
        if is_last:
            self._kept.save_last(step, weights)
        if is_validated:
            is_known = bool(reads & _COUNTS) and weights.params is state.params
            shown = measured if is_known else self._validator.read(weights, _COUNTS)
            scalars |= self._scalars("val_clean", shown["clean"])
            scalars |= self._scalars("val_robust", shown["robust"])
            score = scalars["val_robust/average"] + scalars["val_robust/worst_class"]
            self._kept.offer(step, weights, score)
        scalars |= self._knobs(state)
        if is_validated and self._trainer.frozen_base.single_step:
            scalars |= self._single_step(measured["base"].counts, measured["robust"])
        scalars["images_per_second"] = round(progress.images_per_second, 1)
        if self._log:
            self._log.write(step, scalars)
        clean, robust = (scalars.get(f"val_{kind}/average") for kind in ("clean", "robust"))
        progress.end_epoch(epoch, loss=loss, clean=clean, robust=robust)
        return state

    def _single_step(self, own_attack: t.ClassCounts, robust: t.ClassCounts) -> dict[str, float]:
        """Reports a base that takes one step, and catastrophic overfitting to it."""
        own, pgd = (float(metrics.summarize(*each)["average"]) for each in (own_attack, robust))
        is_overfitted = overfits_single_step(own, pgd, self._best_pgd)
        self._best_pgd = max(self._best_pgd, pgd)
        if is_overfitted:
            console.print(
                "catastrophic overfitting: the network withstands its own single-step attack, "
                "not PGD; try base.name=n_fgsm or pgd_at, or a smaller attack.epsilon"
            )
        scalars = self._scalars("val_single_step", own_attack)
        return scalars | {_PGD: pgd, "catastrophic_overfitting": float(is_overfitted)}

    def _knobs(self, state: t.TrainState) -> dict[str, float]:
        """The knobs of the next epoch, those that the rule sets."""
        rule = self._trainer.rule
        knobs = rule.knobs(state.rule_state)
        return {
            f"rule/{knob}/class_{name}": float(value)
            for knob in rule.sets
            for name, value in zip(self._class_names, np.asarray(getattr(knobs, knob)), strict=True)
        }

    def _scalars(self, prefix: str, counts: t.ClassCounts) -> dict[str, float]:
        summary = metrics.summarize(*counts)
        del summary["worst_class_index"]
        classes = zip(self._class_names, *map(np.asarray, counts), strict=True)
        per_class = {f"class_{name}": float(ok / total) for name, total, ok in classes if total}
        return {f"{prefix}/{name}": value for name, value in (summary | per_class).items()}


class Validator:
    """Measures weights on the validation set; every validation draws the same noise.

    Counts are taken in batches of `evaluate.batch_size`, which changes nothing but memory and
    time; the base's statistics in batches of training, since sums depend on them by rounding.
    """

    def __init__(self, settings: Settings, task: Task, base: t.Base, mesh: Mesh):
        """Takes a `frozen_base`, and the devices that share a batch."""
        self._key = jax.random.key(settings.seed)
        self._feed = batches.feed(task.validation, mesh)
        num_classes = len(task.dataset.class_names)
        self._nothing = class_statistics.zeros(num_classes)
        step_size, num_steps = settings.attack.step_size, settings.validation.num_steps
        pgd = partial(attacks.pgd, threat=task.threat, num_steps=num_steps, step_size=step_size)
        count = partial(_counts, task.model.apply, num_classes)
        size = settings.evaluate.batch_size
        self._measures = {
            "clean": (jax.jit(partial(count, None)), size),
            "robust": (jax.jit(partial(count, pgd)), size),
            "base": (jax.jit(partial(_base_statistics, base, num_classes)), settings.batch_size),
        }

    def read(self, weights: t.Weights, reads: set[str]) -> dict[str, Any]:
        """Returns `clean`, `robust` and `base` of `EpochStatistics`, zeros for what is not read.

        See `Rule.reads` for the names; clean and robust counts are taken both or neither.
        """
        named = reads | _COUNTS if reads & _COUNTS else reads
        found = self._nothing
        measured: dict[str, Any] = {"clean": found.counts, "robust": found.counts, "base": found}
        for name, (measure, size) in self._measures.items():
            if name in named:
                parts = [measure(weights, batch, self._key) for batch in self._feed.in_order(size)]
                measured[name] = jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *parts)
        return measured


def _counts(
    apply_fn: t.ApplyFn, num_classes: int, attack: Callable[..., t.Array] | None,
    weights: t.Weights, batch: t.Batch, key: t.Key,
) -> t.ClassCounts:  # fmt: skip
    """Counts of a batch as it is, or attacked."""
    logits_fn, images = logits_partial(apply_fn, weights), batch.images
    if attack is not None:
        images = attack(logits_fn, key, images, batch.labels, index=batch.index)
    logits = at_full_precision(logits_fn)(images)
    return class_statistics.count(logits, batch, num_classes=num_classes)


def _base_statistics(
    base: t.Base, num_classes: int, weights: t.Weights, batch: t.Batch, key: t.Key
) -> t.ClassStatistics:
    inputs = unmixed(batch.images, batch.labels, num_classes)._replace(index=batch.index)
    adversarial = base.attack(*weights, key, inputs)
    result = base.loss(*weights, inputs, adversarial)
    return class_statistics.measure(result.logits, result.losses, batch, num_classes=num_classes)


def overfits_single_step(single_step: float, pgd: float, best_pgd: float) -> bool:
    """Whether a network withstands its own one-step attack, but no longer PGD.

    All three are accuracies on the validation set; `best_pgd` is the largest `pgd` of earlier
    validations, 0 if there is none. True if PGD leaves less than half the accuracy that the base's
    own attack leaves, and that is a collapse: less than half of the best, or less than a tenth of
    an accuracy above one half. The limits are our choice; in sound single-step training the two
    are within some points of each other, and after catastrophic overfitting PGD leaves next to
    nothing (Wong et al. 2020, arXiv 2001.03994).
    """
    is_collapse = pgd < 0.5 * best_pgd or (single_step > 0.5 and pgd < 0.1 * single_step)
    return pgd < 0.5 * single_step and is_collapse
