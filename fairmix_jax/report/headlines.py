"""The headline numbers of each method under each attack, as a table and in words."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairmix_jax.classwise import metrics
from fairmix_jax.report.comparable import Comparable, Method
from fairmix_jax.report.differences import AgainstFirst
from fairmix_jax.report.tables import interval, percent
from fairmix_jax.runtime.tables import MISSING, Table

_SHORT = ("attack", "method", "average", "overall", "worst class")
_FEW = 3


def headlines(runs: Comparable) -> list[dict[str, Any]]:
    """Returns a row for each `attack` and `method`, also for those that were not evaluated.

    `seeds` is how many of the method's `runs` were evaluated under the attack. If any was, the row
    has means over them:

    * `plain`: the statistics of `metrics.summarize` as they are, extremes with their bias.
    * `intervals`: by name in `metrics.STATISTICS`, with estimates without that bias.
    * `worst_name`: the class with the smallest mean accuracy.
    * `boundary_error`: mean over classes, NaN without a clean evaluation of these images.
    * `rho`: against the first method, see `metrics.rho`; NaN where it means nothing.
    """
    rows = []
    for attack, every in itertools.product(runs.attacks, runs.methods):
        method, first = every.under(attack), runs.methods[0]
        row: dict[str, Any] = {"attack": attack, "method": every.label, "rho": np.nan}
        row |= {"seeds": len(method.runs), "runs": len(every.runs)}
        rows.append(row)
        if not method.runs:
            continue
        plain, base, results = _plain(method), _plain(first.under(attack)), method.results
        total, correct = results[0]["class_total"], [result["class_correct"] for result in results]
        row |= {
            "plain": plain,
            "intervals": {n: metrics.over_seeds(total, correct, n) for n in metrics.STATISTICS},
            "worst_name": runs.classes[int(np.nanargmin(method.accuracies.mean(axis=0)))],
            "boundary_error": _boundary_error(method),
        }
        if base and every is not first:
            both = base["average"], base["worst_class"]
            row["rho"] = metrics.rho(plain["average"], plain["worst_class"], base=both)
    return rows


def _plain(method: Method) -> dict[str, float]:
    """See `headlines`; empty without runs."""
    summaries = [metrics.summarize(r["class_total"], r["class_correct"]) for r in method.results]
    names = summaries[0] if summaries else ()
    return {name: float(np.mean([summary[name] for summary in summaries])) for name in names}


def _boundary_error(method: Method) -> float:
    """Returns the mean over classes, if the same images were evaluated clean and attacked."""
    clean = method.under("clean")
    both = clean.under(method.attack)
    totals = [result["class_total"] for one in (clean, both) for result in one.results[:1]]
    if method.attack == "clean" or not totals or totals[0] != totals[1]:
        return np.nan
    return float(np.nanmean(metrics.boundary_error(clean.accuracies, both.accuracies)))


def table(runs: Comparable, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the rows of `headlines` as a table."""
    overall = [] if all(method.is_balanced for method in runs.attacked) else ["overall"]
    header = [
        "attack", "method", "seeds", "average", *overall, "worst class", "corrected",
        f"worst {metrics.worst_count(len(runs.classes))}", "gap", "corrected gap", "NSD",
        "boundary error", "rho",
    ]  # fmt: skip
    over = "seeds and test images" if any(row["seeds"] > 1 for row in rows) else "test images"
    weights = dict.fromkeys(run.evaluation["weights"] for m in runs.methods for run in m.runs)
    caption = (
        f"{runs.title}, {' and '.join(weights)} weights. Accuracy is in %, with [95 % intervals "
        f"over {over}]. Average is the mean over classes"
        f"{', overall the share of all images' if overall else ''}. The class in parentheses is "
        "the worst one. The smallest of noisy accuracies tends to be too small, and the gap too "
        "large: the corrected columns estimate the true values. NSD is the standard deviation of "
        "class accuracies divided by the mean class error; boundary error is clean less robust "
        "accuracy, in points; rho is the relative gain of the worst class plus that of the "
        f"average, both against '{runs.methods[0].label}'."
    )
    for method in runs.attacked:
        if lost := "; ".join(sorted(set(map(metrics.non_finite, method.results)) - {""})):
            caption += f" Not finite under {method.attack}, {method.label}: {lost}."
    lines = []
    for row in rows:
        attack, method, seeds = row["attack"], row["method"], row["seeds"]
        if not seeds:
            lines.append([attack, method, "not evaluated", *[MISSING] * (len(header) - 3)])
            continue
        plain = {name: percent(value) for name, value in row["plain"].items()}
        found = {name: interval(value) for name, value in row["intervals"].items()}
        lines.append([
            attack, method, str(seeds) if seeds == row["runs"] else f"{seeds} of {row['runs']}",
            found["average"], *(plain[name] for name in overall),
            f"{plain['worst_class']} ({row['worst_name']})",
            found["worst_class"], plain["worst_k"], plain["gap"], found["gap"],
            f"{row['plain']['nsd']:.2f}", percent(row["boundary_error"]),
            f"{row['rho']:+.2f}" if np.isfinite(row["rho"]) else MISSING,
        ])  # fmt: skip
    return Table(caption, header, lines)


def short(runs: Comparable, whole: Table) -> Table:
    """Returns the columns of a `table` of these runs that fit a terminal."""
    columns = [whole.header.index(name) for name in _SHORT if name in whole.header]
    header, *rows = [[row[column] for column in columns] for row in (whole.header, *whole.rows)]
    return Table(f"{runs.title}, accuracy in %", header, rows)


def outcome(
    runs: Comparable, rows: Sequence[Mapping[str, Any]], compared: Sequence[AgainstFirst]
) -> str:
    """Returns how good the first method is under the main attack, and whether others are better.

    A method is better or worse if the difference in the worst class is significant, p < 0.05 after
    Holm's adjustment. `rows` are `headlines`, `compared` all differences of the set.
    """
    attack, first = runs.main_attack, runs.methods[0].label
    (row,) = (row for row in rows if (row["attack"], row["method"]) == (attack, first))
    where = "Without an attack" if attack == "clean" else f"Under {attack}"
    if not row["seeds"]:
        return f"{where} '{first}' was not evaluated."
    plain, name = row["plain"], f"'{first}'" if len(runs.methods) > 1 else "the model"
    method = runs.methods[0].under(attack)
    means = method.accuracies.mean(axis=0)
    tied = np.count_nonzero(means == np.nanmin(means)) - 1
    worst = row["worst_name"] + (
        f" ({tied} other{'s are' if tied > 1 else ' is'} as low)" if tied else ""
    )
    average = f", {percent(plain['average'])} % on average over classes"
    said = (
        f"{where} {name} classifies {percent(plain['overall'])} % of the test images correctly"
        f"{'' if method.is_balanced else average}, and {percent(plain['worst_class'])} % of its "
        f"worst class, {worst}."
    )
    pairs = [pair for pair in compared if pair.attack == attack]
    return f"{said} {_against(pairs)}" if pairs else said


def _against(pairs: Sequence[AgainstFirst]) -> str:
    """Says which methods have a better or a worse worst class than the first one."""
    is_one = any(pair.seeds == 1 for pair in pairs)
    remedy = "to compare the methods, train at least three"
    end = f". This compares the trained networks of one seed; {remedy}." if is_one else "."
    significant = [pair for pair in pairs if pair.adjusted["worst_class"] < 0.05]
    if len(pairs) == 1:
        found, p = pairs[0].differences["worst_class"].interval, pairs[0].adjusted["worst_class"]
        low, estimate, high = (percent(number, "+") for number in found)
        return (
            f"'{pairs[0].method}' changes the worst class by {estimate} points [{low}, {high}], "
            f"which is {'significant' if significant else 'not significant'} "
            f"(p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}){end}"
        )
    gains = {pair.method: pair.differences["worst_class"].interval.estimate for pair in significant}
    better = [method for method, gain in gains.items() if gain > 0]
    worse = [method for method, gain in gains.items() if gain <= 0]
    return (
        f"Of the {len(pairs)} methods compared with it, {_named(better)} a significantly better "
        f"worst class, and {_named(worse)} a significantly worse one{end}"
    )


def _named(methods: Sequence[str]) -> str:
    if not methods:
        return "none has"
    verb = "has" if len(methods) == 1 else "have"
    names = " and ".join(f"'{method}'" for method in methods)
    return f"{names} {verb}" if len(methods) <= _FEW else f"{len(methods)} have"
