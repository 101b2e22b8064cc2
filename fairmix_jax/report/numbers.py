"""The numbers of a report: headlines of each method with intervals, and paired differences."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fairmix_jax import comparison, metrics, paired
from fairmix_jax.comparison import STATISTICS
from fairmix_jax.intervals import Interval
from fairmix_jax.paired import Difference
from fairmix_jax.report.runs import Comparable, Group


class Headline(NamedTuple):
    """One method under one attack; means over its runs.

    Attributes:
      attack, method: which.
      seeds: how many runs were evaluated under this attack; 0 leaves no numbers.
      runs: how many there are.
      plain: the statistics of `metrics.summarize` as they are, extremes with their bias.
      intervals: by name in `comparison.STATISTICS`, with estimates without that bias.
      worst_name: the class with the smallest mean accuracy.
      boundary_error: mean over classes, `None` without a clean evaluation of these images.
      rho: against the first method, see `metrics.rho`; `None` where it means nothing.
    """

    attack: str
    method: str
    seeds: int
    runs: int
    plain: Mapping[str, float]
    intervals: Mapping[str, Interval]
    worst_name: str
    boundary_error: float | None
    rho: float | None


class Paired(NamedTuple):
    """A method against the first one under one attack.

    Attributes:
      attack, method, baseline: which.
      seeds: how many pairs of runs.
      differences: by name in `comparison.STATISTICS`; `method` less `baseline`.
      adjusted: their p-values after Holm, for all differences of the set together.
    """

    attack: str
    method: str
    baseline: str
    seeds: int
    differences: Mapping[str, Difference]
    adjusted: Mapping[str, float]


def headlines(runs: Comparable) -> list[Headline]:
    """Returns a row for each attack and method, also for those that were not evaluated."""
    return [
        _headline(runs, group, attack, runs.groups[0])
        for attack in runs.attacks
        for group in runs.groups
    ]


def differences(runs: Comparable) -> list[Paired]:
    """Returns each method against the first, under every attack both have been through.

    Runs are paired by seed. Pairs need the verdicts on the same images; methods without
    such pairs are left out.
    """
    found = [
        _paired(runs.groups[0], group, attack)
        for attack in runs.attacks
        for group in runs.groups[1:]
    ]
    pairs = [pair for pair in found if pair is not None]
    p_values = [d.p_value for pair in pairs for d in pair.differences.values()]
    adjusted = iter(paired.holm(p_values))
    return [
        pair._replace(adjusted={name: next(adjusted) for name in pair.differences})
        for pair in pairs
    ]


def _headline(runs: Comparable, group: Group, attack: str, baseline: Group) -> Headline:
    results = group.results(attack)
    if not results:
        return Headline(attack, group.label, 0, len(group.runs), {}, {}, "", None, None)
    total = results[0]["class_total"]
    correct = [result["class_correct"] for result in results]
    summaries = [metrics.summarize(total, row) for row in correct]
    plain = {
        name: float(np.mean([s[name] for s in summaries]))
        for name in summaries[0]
        if name != "worst_class_index"
    }
    accuracies = group.class_accuracies(attack).mean(axis=0)
    return Headline(
        attack, group.label, len(results), len(group.runs), plain,
        {name: comparison.over_seeds(total, correct, name) for name in STATISTICS},
        runs.classes[int(np.nanargmin(accuracies))],
        _boundary_error(group, attack),
        None if group is baseline else _rho(plain, baseline, attack),
    )  # fmt: skip


def _boundary_error(group: Group, attack: str) -> float | None:
    """Of the runs that have both, of the same images."""
    both = group.under(attack).under("clean")
    if attack == "clean" or not both.runs:
        return None
    clean, attacked = (both.results(name)[0]["class_total"] for name in ("clean", attack))
    if clean != attacked:
        return None
    accuracies = both.class_accuracies("clean"), both.class_accuracies(attack)
    return float(np.nanmean(metrics.boundary_error(*accuracies)))


def _rho(plain: Mapping[str, float], baseline: Group, attack: str) -> float | None:
    summaries = [
        metrics.summarize(r["class_total"], r["class_correct"]) for r in baseline.results(attack)
    ]
    if not summaries:
        return None
    average, worst = (
        float(np.mean([s[name] for s in summaries])) for name in ("average", "worst_class")
    )
    value = metrics.rho(plain["average"], plain["worst_class"], base=(average, worst))
    return value if np.isfinite(value) else None


def _paired(baseline: Group, group: Group, attack: str) -> Paired | None:
    ours, theirs = group.under(attack), baseline.under(attack)
    seeds = [seed for seed in theirs.seeds if seed in ours.seeds]
    pairs = [group.of_seeds(seeds) for group in (ours, theirs)]
    images = {run.evaluation.get("images_sha256") for pair in pairs for run in pair.runs}
    own, other = (pair.verdicts(attack) for pair in pairs)
    if own is None or other is None or len(images) > 1:
        return None
    found = paired.differences(own, other)
    return Paired(attack, group.label, baseline.label, len(seeds), found, {})
