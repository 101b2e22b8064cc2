"""Differences between methods whose runs are paired: to the first method, and as predicted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairmix_jax.classwise import metrics, paired, predictions
from fairmix_jax.classwise.paired import ClassVerdicts, Difference
from fairmix_jax.classwise.predictions import EASY_MINUS_HARD, Prediction
from fairmix_jax.report.comparable import Comparable, Method
from fairmix_jax.report.tables import class_numbers, interval, probability
from fairmix_jax.runtime.tables import MISSING, Table


class AgainstFirst(NamedTuple):
    """A method less the first one, `baseline`, under an attack, from so many pairs of runs."""

    attack: str
    method: str
    baseline: str
    seeds: int
    differences: Mapping[str, Difference]  # by name in `metrics.STATISTICS`
    adjusted: Mapping[str, float] = {}  # their p-values after Holm, for all of the set together


class CheckedPrediction(NamedTuple):
    """A prediction and what the runs say of it."""

    prediction: Prediction
    seeds: int  # of how many runs of each method
    difference: Difference | None = None  # left side less right one; `None` where runs are missing
    adjusted: float = 1.0  # p-value after Holm, for all predictions of the study together
    alone: float = 1.0  # p-value, not adjusted, that trusts the noise of its own runs only

    @property
    def verdict(self) -> str:
        """`"holds"` or `"fails"` where the difference is significant, else `"open"`."""
        if self.difference is None:
            return "not answered"
        if self.adjusted >= 0.05:
            return "open"
        is_right = self.difference.interval.estimate * self.prediction.sign > 0
        return "holds" if is_right else "fails"


def against_first(runs: Comparable) -> list[AgainstFirst]:
    """Returns each method against the first, under every attack both have been through.

    Runs are paired by seed. Pairs need the verdicts on the same images; methods without
    such pairs are left out.
    """
    first, *others = runs.methods
    pairs = []
    for attack in runs.attacks:
        for method in others:
            both = [first.under(attack), method.under(attack)]
            seeds = _shared_seeds(both)
            verdicts = list(_verdicts(both[::-1], seeds).values())
            if len(verdicts) == 2:
                found = paired.differences(*verdicts)
                pairs.append(AgainstFirst(attack, method.label, first.label, len(seeds), found))
    p_values = [d.p_value for pair in pairs for d in pair.differences.values()]
    adjusted = iter(paired.holm(p_values))
    return [pair._replace(adjusted={n: next(adjusted) for n in pair.differences}) for pair in pairs]


def checked_predictions(runs: Comparable, study: Mapping[str, Any]) -> list[CheckedPrediction]:
    """Returns what the runs say of each prediction of `config.study`; none if nothing of any.

    Methods are labelled with the arms of the study. Runs are paired by seed, and need the verdicts
    on the same images. How far runs differ is estimated from all methods of the set together, see
    `paired.pooled_noise`. One run a method says nothing of methods, and leaves a prediction
    unanswered. Raises a `UsageError` as `predictions.parse` and `class_numbers` do.
    """
    found = [_checked(one, runs, study) for one in (predictions.parse(study) if study else ())]
    if all(one.difference is None for one in found):
        return []
    adjusted = paired.holm([f.difference.p_value if f.difference else 1.0 for f in found])
    return [one._replace(adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def _checked(one: Prediction, runs: Comparable, study: Mapping[str, Any]) -> CheckedPrediction:
    if one.statistic == EASY_MINUS_HARD:
        groups = (class_numbers(study, runs.classes, kind) for kind in ("easy", "hard"))
        statistic = metrics.easy_minus_hard(*groups)
    else:
        statistic = metrics.STATISTICS[one.statistic]
    methods = {method.label: method.under(one.attack) for method in runs.methods}
    seeds = _shared_seeds([methods[arm] for arm in one.arms if arm in methods])
    verdicts = _verdicts([m for m in methods.values() if set(seeds) <= set(m.draws)], seeds)
    unanswered = CheckedPrediction(one, len(seeds))
    if len(seeds) < 2 or not verdicts.keys() >= set(one.arms):
        return unanswered
    noise = paired.pooled_noise(list(verdicts.values()), statistic)
    chosen = [verdicts[arm] for arm in one.arms]
    found = paired.contrast(chosen, one.weights, statistic, noise=noise)
    alone = paired.contrast(chosen, one.weights, statistic).p_value
    return unanswered._replace(difference=found, alone=alone)


def _shared_seeds(methods: Sequence[Method]) -> list[Any]:
    """The seeds, with those of data, that all methods have, in the order of the first."""
    every = [method.draws for method in methods]
    return [draw for draw in every[0] if all(draw in draws for draws in every)] if every else []


def _verdicts(methods: Sequence[Method], seeds: Sequence[Any]) -> dict[str, ClassVerdicts]:
    """Returns the verdicts of the runs of these seeds by method; none if their images differ."""
    chosen = [m._replace(runs=[m.runs[m.draws.index(seed)] for seed in seeds]) for m in methods]
    if len({run.evaluation.get("images_sha256") for method in chosen for run in method.runs}) > 1:
        return {}
    return {m.label: verdicts for m in chosen if (verdicts := m.verdicts) is not None}


def table(rows: Sequence[AgainstFirst], *, is_aside: bool) -> Table:
    """Returns `rows`, at least one, as a table; with `is_aside` it refers to the predictions'."""
    caption = (
        f"Each method less '{rows[0].baseline}' on the same images, with runs paired by seed: "
        "points of accuracy with [95 % intervals], worst class and gap as observed. p is the "
        "p-value of no difference, adjusted (Holm) for all differences of the table; intervals are "
        "not adjusted, so one may exclude 0 where p is above 0.05."
    )
    if any(row.seeds == 1 for row in rows):
        caption += " Where seeds is 1, the intervals do not cover what another seed would give."
    if is_aside:
        caption += " This table explores; what the study predicted has a table of its own."
    header = ["attack", "method", "seeds"]
    lines = [[row.attack, row.method, str(row.seeds)] for row in rows]
    for name in rows[0].differences:
        header += [name.replace("_", " "), "p"]
        for line, row in zip(lines, rows, strict=True):
            found = interval(row.differences[name].interval, sign="+")
            line += [found, probability(row.adjusted[name])]
    return Table(caption, header, lines)


def predictions_table(rows: Sequence[CheckedPrediction]) -> Table:
    """Returns what became of a study's predictions."""
    header = (
        "prediction", "statistic", "attack", "claim", "seeds", "difference", "p", "p alone",
        "verdict",
    )  # fmt: skip
    lines = []
    for row in rows:
        stated, numbers = row.prediction, [MISSING] * 3
        if row.difference is not None:
            p_values = probability(row.adjusted), probability(row.alone)
            numbers = [interval(row.difference.interval, sign="+"), *p_values]
        lines.append([
            stated.name, stated.statistic.replace("_", " "), stated.attack, stated.claim,
            str(row.seeds), *numbers, row.verdict,
        ])  # fmt: skip
    caption = (
        "What the study predicted. A difference is the left side of the claim less its right side, "
        "in points of accuracy with [95 % intervals], from runs paired by seed. The noise between "
        "runs is estimated from all methods together, unless it is larger in the runs of the "
        "prediction. p is adjusted for all predictions (Holm), unlike the intervals: a prediction "
        "holds or fails where p < 0.05, and is open otherwise. 'p alone' is not adjusted, and its "
        "noise is that of the prediction's own runs."
    )
    return Table(caption, header, lines)
