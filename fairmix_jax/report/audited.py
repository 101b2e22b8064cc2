"""What an audit says beyond the tables of all reports: before and after, and over all models."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from fairmix_jax.classwise import metrics
from fairmix_jax.report.comparable import Comparable
from fairmix_jax.report.tables import percent
from fairmix_jax.runtime.tables import MISSING, Table

_AFTER = ("overall", "average", "worst_class")


class _Audited(NamedTuple):
    """An audited model under one attack."""

    published: float  # overall accuracy; NaN if it is not known
    worst: str  # class, as the model came
    before: Mapping[str, float]  # see `_summary`
    after: Mapping[str, float]  # empty without a calibration


def tables(runs: Comparable) -> list[Table]:
    """Returns a table of the audited models, if there are any, and one of what holds over them.

    A published accuracy stands beside one of ours that means the same: without an attack, and under
    an AutoAttack.
    """
    found = {attack: _under(attack, runs) for attack in runs.attacks}
    if not any(found.values()):
        return []
    return [_each(found), _over_models(found)]


def _under(attack: str, runs: Comparable) -> dict[str, _Audited]:
    """The audited models by name."""
    results: dict[str, dict[bool, Mapping[str, Any]]] = defaultdict(dict)
    published = {}
    for method in (method.under(attack) for method in runs.methods):
        for run in method.runs:
            if told := run.evaluation.get("audit"):
                results[told["model"]]["calibration" in run.evaluation] = run.evaluation
                published[told["model"]] = told["published"]
    name = {"clean": "clean_acc", "autoattack": "autoattack_acc"}.get(attack.partition("@")[0], "")
    audited = {}
    for model, evaluations in results.items():
        stages = [evaluations.get(k, {}).get("attacks", {}).get(attack) for k in (False, True)]
        if stages[0]:
            known = published[model].get(name, np.nan)
            audited[model] = _Audited(known, stages[0]["worst_class_name"], *map(_summary, stages))
    return audited


def _summary(result: Mapping[str, Any] | None) -> dict[str, float]:
    counts = (result["class_total"], result["class_correct"]) if result else None
    return metrics.summarize(*counts) | {"gini": metrics.gini(*counts)} if counts else {}


def _each(found: Mapping[str, Mapping[str, _Audited]]) -> Table:
    """A row for each attack and model."""
    every = [audited for models in found.values() for audited in models.values()]
    has_after = any(a.after for a in every)
    has_published = any(np.isfinite(a.published) for a in every)
    header = ["attack", "model", "overall", *["published"] * has_published, "average"]
    header += ["worst class", "gap", "Gini"]
    header += [f"calibrated {name.replace('_', ' ')}" for name in _AFTER] * has_after
    rows = []
    for attack, models in found.items():
        order = sorted(models, key=lambda name: -models[name].before["worst_class"])
        for name in order:
            published, worst, before, after = models[name]
            row = [attack, name, percent(before["overall"])]
            row += [percent(published)] * has_published
            row += [percent(before["average"]), f"{percent(before['worst_class'])} ({worst})"]
            row += [percent(before["gap"]), f"{before['gini']:.3f}"]
            row += [percent(after.get(field, np.nan)) for field in _AFTER] * has_after
            rows.append(row)
    caption = (
        "The audited models, the best worst class first: accuracy in %, extremes as observed. "
        "Overall is the share of all images, which is what others publish; average is the mean "
        "over classes. Gini is the Gini coefficient of class accuracies, 0 where all are equal."
    )
    return Table(caption, header, rows)


def _over_models(found: Mapping[str, Mapping[str, _Audited]]) -> Table:
    """A row for each attack: which class is worst where, and how average and worst class go."""
    rows = []
    for attack, models in found.items():
        every = list(models.values())
        worst = Counter(audited.worst for audited in every).most_common()
        both = np.array([[a.before["average"], a.before["worst_class"]] for a in every])
        # Of three points a correlation says nothing, and equal ones have no order.
        is_ordered = len(every) > 3 and (np.ptp(both, axis=0) > 0).all()
        rho = f"{stats.spearmanr(*both.T).statistic:+.2f}" if is_ordered else MISSING
        rows.append([attack, str(len(every)), ", ".join(f"{c} {n}" for c, n in worst), rho])
        for name in ("average", "worst_class"):
            gains = [a.after[name] - a.before[name] for a in every if a.after]
            rows[-1].append(percent(float(np.mean(gains)), "+") if gains else MISSING)
    header = ["attack", "models", "worst class of how many", "rank correlation"]
    header += ["calibration: average", "calibration: worst class"]
    caption = (
        "Over all audited models: the class that is worst, with the number of models in which it "
        "is; Spearman's rank correlation of average and worst class, from four models on; what "
        "calibration changes, in points, mean over models."
    )
    return Table(caption, header, rows)
