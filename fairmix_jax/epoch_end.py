"""What happens between two epochs: validation, rule, best weights, log."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import attacks, evaluate, metrics
from fairmix_jax.checkpoint import Checkpoints
from fairmix_jax.data import batches
from fairmix_jax.experiment import Experiment
from fairmix_jax.progress import TrainProgress
from fairmix_jax.train_step import StepMetrics
from fairmix_jax.trainer import Trainer
from fairmix_jax.types import ClassCounts, TrainState, Weights
from fairmix_jax.writers import JsonlWriter, MultiWriter, TensorBoardWriter


class EpochEnd:
    """What happens after an epoch: validation, the rule's update, best weights, the log.

    A context manager, which closes the files. Called as `(state, totals, epoch, progress)`
    with the epoch counted from 1, it returns the state with the rule's new state.
    """

    def __init__(
        self, config: ConfigDict, experiment: Experiment, trainer: Trainer, workdir: Path, step: int
    ):
        self._config, self._trainer = config, trainer
        self._directory = workdir / "checkpoints"
        self._best = Checkpoints(self._directory / "best", max_to_keep=1)
        self._writer = MultiWriter(
            JsonlWriter(workdir / "metrics.jsonl", last_step=step),
            TensorBoardWriter(workdir, last_step=step),
        )
        self._class_names = experiment.dataset.class_names
        self._split = batches.to_device(experiment.validation)
        num_classes = len(self._class_names)
        attack = partial(
            attacks.pgd,
            threat=experiment.threat,
            num_steps=config.validation.num_steps,
            step_size=config.attack.step_size,
        )
        apply_fn = experiment.model.apply
        self._clean = evaluate.make_counter(apply_fn, None, num_classes)
        self._robust = evaluate.make_counter(apply_fn, attack, num_classes)
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
        step, seen = int(state.step), int(totals.counts.total.sum())
        loss = float(totals.loss) / seen
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} after epoch {epoch}; lower optim.learning_rate"
            )
        scalars = {"epoch": epoch, "loss": loss} | self._scalars("train", totals.counts)
        clean = robust = None
        weights = self._trainer.evaluated_weights(state)
        is_last = epoch == self._config.total_epochs
        if is_last:
            with Checkpoints(self._directory / "last", max_to_keep=1) as last:
                last.save(step, weights)
        is_due = epoch % self._config.validation.every_epochs == 0 or is_last
        if len(self._split.labels) and is_due:
            counts = [self._measure(counter, weights) for counter in (self._clean, self._robust)]
            scalars |= self._scalars("val_clean", counts[0]) | self._scalars(
                "val_robust", counts[1]
            )
            clean, robust = scalars["val_clean/average"], scalars["val_robust/average"]
            self._keep_best(step, weights, robust + scalars["val_robust/worst_class"])
            rule_state = self._trainer.rule.update(state.rule_state, counts[1])
            state = state.replace(rule_state=rule_state)
        scalars["images_per_second"] = round(progress.images_per_second, 1)
        self._writer.write_scalars(step, scalars)
        progress.end_epoch(epoch, loss=loss, clean=clean, robust=robust)
        return state

    def _measure(self, counter, weights: Weights) -> ClassCounts:
        key = jax.random.key(self._config.seed)
        return evaluate.count_split(
            counter, weights, self._split, key, batch_size=self._config.evaluate.batch_size
        )

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
