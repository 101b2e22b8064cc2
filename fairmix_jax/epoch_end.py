"""What happens between two epochs: validation, rule, averaging, best weights, log."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fairmix_jax import cluster, metrics
from fairmix_jax.checkpoint import Checkpoints
from fairmix_jax.experiment import Experiment
from fairmix_jax.progress import TrainProgress, console
from fairmix_jax.train_step import StepMetrics
from fairmix_jax.trainer import Trainer
from fairmix_jax.types import (
    VALIDATION,
    ClassCounts,
    ClassStatistics,
    EpochStatistics,
    TrainState,
    Weights,
)
from fairmix_jax.validation import Seen, Validator, overfits_single_step
from fairmix_jax.writers import JsonlWriter, MultiWriter, TensorBoardWriter

_PGD = "val_single_step/pgd_average"


class EpochEnd:
    """What happens after an epoch: validation, the rule's update, best weights, the log.

    A context manager, which closes the files. Called as `(state, totals, epoch, progress)`
    with the epoch counted from 1, it returns the state with the rule's and the average's
    new states.
    """

    def __init__(
        self,
        config: ConfigDict,
        experiment: Experiment,
        trainer: Trainer,
        workdir: Path,
        step: int,
        mesh: Mesh,
    ):
        self._config, self._trainer = config, trainer
        self._directory = workdir / "checkpoints"
        self._best = Checkpoints(self._directory / "best", max_to_keep=1)
        self._best_pgd, self._writer = 0.0, MultiWriter()
        if cluster.is_main():
            log = JsonlWriter(workdir / "metrics.jsonl", last_step=step)
            self._best_pgd = max([0.0, *(line.get(_PGD, 0.0) for line in log.earlier)])
            self._writer = MultiWriter(log, TensorBoardWriter(workdir, last_step=step))
        self._class_names = experiment.dataset.class_names
        self._validator = Validator(
            experiment,
            trainer.frozen_base,
            num_steps=config.validation.num_steps,
            step_size=config.attack.step_size,
            seed=config.seed,
            batch_size=config.evaluate.batch_size,
            base_batch_size=config.batch_size,
            mesh=mesh,
        )
        self._update = jax.jit(trainer.rule.update)
        self._end_epoch = jax.jit(trainer.averaging.end_epoch or (lambda average, *_: average))
        found = self._best.restore_latest(trainer.evaluated_weights(trainer.initial_state))
        self._best_score = found[1]["score"] if found else -1.0

    def __enter__(self) -> "EpochEnd":
        return self

    def __exit__(self, *_) -> None:
        self._writer.close()
        self._best.__exit__()

    def __call__(
        self, state: TrainState, totals: StepMetrics, epoch: int, progress: TrainProgress
    ) -> TrainState:
        step, train = int(state.step), totals.statistics
        loss = float(totals.loss) / int(train.counts.total.sum())
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} after epoch {epoch}; lower optim.learning_rate"
            )
        scalars = {"epoch": epoch, "loss": loss} | self._scalars("train", train.counts)
        is_last = epoch == self._config.total_epochs
        is_due = epoch % self._config.validation.every_epochs == 0 or is_last
        is_validated = is_due and not self._validator.is_empty
        reads = self._trainer.reads if is_validated else frozenset()
        seen = self._validator.read(Weights(state.params, state.batch_stats), reads)
        state = self._feed_back(state, train, epoch, seen, is_validated)
        weights = self._trainer.evaluated_weights(state)
        if is_last:
            with Checkpoints(self._directory / "last", max_to_keep=1) as last:
                last.save(step, weights)
        if is_validated:
            is_current = seen.counts is not None and weights.params is state.params
            counts = seen.counts if is_current else self._validator.counts(weights)
            scalars |= self._scalars("val_clean", counts.clean)
            scalars |= self._scalars("val_robust", counts.robust)
            score = scalars["val_robust/average"] + scalars["val_robust/worst_class"]
            self._keep_best(step, weights, score)
        scalars |= self._knobs(state) | self._single_step(seen)
        scalars["images_per_second"] = round(progress.images_per_second, 1)
        self._writer.write_scalars(step, scalars)
        clean, robust = (scalars.get(f"val_{kind}/average") for kind in ("clean", "robust"))
        progress.end_epoch(epoch, loss=loss, clean=clean, robust=robust)
        return state

    def _feed_back(
        self,
        state: TrainState,
        train: ClassStatistics,
        epoch: int,
        seen: Seen,
        is_validated: bool,
    ) -> TrainState:
        """Tells the rule and the average what was seen of the epoch."""
        rule, averaging = self._trainer.rule, self._trainer.averaging
        counts, base = self._validator.filled(seen)
        if is_validated or not set(rule.reads) & VALIDATION:
            statistics = EpochStatistics(jnp.asarray(epoch, jnp.int32), train, *counts, base)
            state = state.replace(rule_state=self._update(state.rule_state, statistics))
        if is_validated and averaging.end_epoch is not None:
            current = Weights(state.params, state.batch_stats)
            average = self._end_epoch(state.average, current, counts.robust)
            state = state.replace(average=average)
        return state

    def _single_step(self, seen: Seen) -> dict[str, float]:
        """Reports a base that takes one step, and catastrophic overfitting to it."""
        if not self._trainer.frozen_base.single_step or seen.base is None or seen.counts is None:
            return {}
        both = seen.base.counts, seen.counts.robust
        own, pgd = (float(metrics.summarize(*counts)["average"]) for counts in both)
        is_overfitted = overfits_single_step(own, pgd, self._best_pgd)
        self._best_pgd = max(self._best_pgd, pgd)
        if is_overfitted:
            console.print(
                "catastrophic overfitting: the network withstands its own single-step attack, "
                "not PGD; try base.name=n_fgsm or pgd_at, or a smaller attack.epsilon"
            )
        scalars = self._scalars("val_single_step", seen.base.counts)
        return scalars | {_PGD: pgd, "catastrophic_overfitting": float(is_overfitted)}

    def _knobs(self, state: TrainState) -> dict[str, float]:
        """The knobs of the next epoch, those that the rule sets."""
        rule = self._trainer.rule
        knobs = rule.knobs(state.rule_state)._asdict() if rule.sets else {}
        return {
            f"rule/{knob}/class_{name}": float(value)
            for knob in rule.sets
            for name, value in zip(self._class_names, np.asarray(knobs[knob]), strict=True)
        }

    def _scalars(self, prefix: str, counts: ClassCounts) -> dict[str, float]:
        summary = metrics.summarize(*counts)
        del summary["worst_class_index"]
        per_class = {
            f"class_{name}": float(correct / total)
            for name, total, correct in zip(
                self._class_names, *map(np.asarray, counts), strict=True
            )
            if total
        }
        return {f"{prefix}/{name}": value for name, value in (summary | per_class).items()}

    def _keep_best(self, step: int, weights: Weights, score: float) -> None:
        if score > self._best_score:
            self._best.save(step, weights, score=score)
            self._best_score = score
