"""The weights that a run keeps to be evaluated: those of its best epoch and the last ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.training.assembly import Trainer
from fairmix_jax.training.checkpoints import Checkpoints
from fairmix_jax.types import Weights


class KeptWeights:
    """The best weights so far and, at the end, the last ones, each in a checkpoint of its own.

    Its `facts` are saved with the state, so that a resumed run misses best weights that are gone:
    the next best must not take their place. That, or damage, is a `UsageError`.
    """

    def __init__(self, workdir: Path, trainer: Trainer, facts: Mapping[str, Any]):
        """Takes the facts of the state that the run goes on from, none at the start."""
        folder, self.facts = workdir / "checkpoints", {"best": facts.get("best", 0)}
        self._best = Checkpoints(folder / "best", max_to_keep=1)
        self._last = Checkpoints(folder / "last", max_to_keep=1)
        self._template = trainer.evaluated_weights(trainer.initial_state)
        found = self._best.restore_latest(self._template, since=self.facts["best"])
        self._best_score = found[1]["score"] if found else -1.0

    def offer(self, step: int, weights: Weights, score: float) -> None:
        """Keeps the weights if their score is the best so far."""
        if score > self._best_score:
            self._best.save(step, weights, score=score)
            self._best_score, self.facts = score, {"best": step}

    def save_last(self, step: int, weights: Weights) -> None:
        """Keeps the last weights, also in place of damaged ones."""
        if self._last.restore_latest(self._template) is None:
            self._last.save(step, weights)
