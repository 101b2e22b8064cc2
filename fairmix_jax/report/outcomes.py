"""What became of the predictions of a study."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairmix_jax import comparison, paired, predictions
from fairmix_jax.comparison import Statistic
from fairmix_jax.errors import UsageError
from fairmix_jax.paired import Difference
from fairmix_jax.predictions import EASY_MINUS_HARD, Prediction
from fairmix_jax.report.runs import Comparable, Group

_SIGNIFICANT = 0.05


class Outcome(NamedTuple):
    """A prediction and what the runs say of it.

    Attributes:
      prediction: the statement.
      seeds: of how many runs of each method.
      difference: its left side less its right one; `None` where runs are missing.
      adjusted: p-value after Holm, for all predictions of the study together.
      alone: p-value, not adjusted, that trusts the noise of its own runs only.
    """

    prediction: Prediction
    seeds: int
    difference: Difference | None
    adjusted: float = 1.0
    alone: float = 1.0

    @property
    def verdict(self) -> str:
        """`"holds"` or `"fails"` where the difference is significant, else `"open"`."""
        if self.difference is None:
            return "not answered"
        if self.adjusted >= _SIGNIFICANT:
            return "open"
        is_right = self.difference.interval.estimate * self.prediction.sign > 0
        return "holds" if is_right else "fails"


def outcomes(runs: Comparable, study: Mapping[str, Any]) -> list[Outcome]:
    """Returns what the runs say of each prediction; nothing if they say nothing of any.

    Runs are paired by seed, and need the verdicts on the same images. How far runs differ is
    estimated from all methods of the set together, see `paired.pooled_noise`. One run a method
    says nothing of methods, and leaves a prediction unanswered.

    Args:
      runs: whose methods are labelled with the arms of the study.
      study: as in `config.study`.

    Raises:
      UsageError: as in `predictions.parse`, or an easy or hard class is none of the data's.
    """
    stated = predictions.parse(study) if study else []
    groups = {group.label: group for group in runs.groups}
    found = [_outcome(one, groups, _statistic(one, study, runs.classes)) for one in stated]
    if all(one.difference is None for one in found):
        return []
    p_values = [1.0 if one.difference is None else one.difference.p_value for one in found]
    return [
        one._replace(adjusted=p_value)
        for one, p_value in zip(found, paired.holm(p_values), strict=True)
    ]


def _statistic(one: Prediction, study: Mapping[str, Any], classes: Sequence[str]) -> Statistic:
    if one.statistic != EASY_MINUS_HARD:
        return comparison.STATISTICS[one.statistic]
    return comparison.easy_minus_hard(*(class_numbers(study, classes, k) for k in ("easy", "hard")))


def class_numbers(study: Mapping[str, Any], classes: Sequence[str], kind: str) -> list[int]:
    """Returns the numbers of a study's `"easy"` or `"hard"` classes; none if it names none.

    Raises:
      UsageError: one of them is none of the data's.
    """
    field = f"{kind}_classes"
    chosen = study.get(field, ())
    if unknown := [name for name in chosen if name not in classes]:
        raise UsageError(f"study.{field}: {unknown[0]!r} is not one of {', '.join(classes)}")
    return [classes.index(name) for name in chosen]


def _outcome(one: Prediction, groups: Mapping[str, Group], statistic: Statistic) -> Outcome:
    arms = [groups[arm].under(one.attack) for arm in one.arms if arm in groups]
    seeds = [s for s in arms[0].seeds if all(s in arm.seeds for arm in arms)] if arms else []
    if len(arms) < len(one.arms) or len(seeds) < 2:
        return Outcome(one, len(seeds), None)
    every = [group.under(one.attack) for group in groups.values()]
    alike = [group.of_seeds(seeds) for group in every if set(seeds) <= set(group.seeds)]
    images = {run.evaluation.get("images_sha256") for group in alike for run in group.runs}
    verdicts = {g.label: v for g in alike if (v := g.verdicts(one.attack)) is not None}
    if len(images) > 1 or not verdicts.keys() >= set(one.arms):
        return Outcome(one, len(seeds), None)
    noise = paired.pooled_noise(list(verdicts.values()), statistic)
    chosen = [verdicts[arm] for arm in one.arms]
    found = paired.contrast(chosen, one.weights, statistic, noise=noise)
    alone = paired.contrast(chosen, one.weights, statistic).p_value
    return Outcome(one, len(seeds), found, alone=alone)
