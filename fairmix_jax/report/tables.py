"""The tables of a report, as texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairmix_jax import metrics
from fairmix_jax.intervals import Interval
from fairmix_jax.report import autoattack_tables
from fairmix_jax.report.numbers import Headline, Paired
from fairmix_jax.report.outcomes import Outcome, class_numbers
from fairmix_jax.report.rows import validations
from fairmix_jax.report.runs import Comparable, Group
from fairmix_jax.tables import MISSING, Table


def of_set(
    runs: Comparable,
    headlines: Sequence[Headline],
    differences: Sequence[Paired],
    outcomes: Sequence[Outcome],
    study: Mapping[str, Any],
) -> list[Table]:
    """Returns a set's tables: headlines, differences, predictions, classes, then the rest."""
    compared = [_differences(differences, is_aside=bool(outcomes))] if differences else []
    predicted = [_outcomes(outcomes)] if outcomes else []
    return [
        _headlines(runs, headlines), *compared, *predicted, _classes(runs, study),
        *_confidence(runs), *_training(runs),
    ]  # fmt: skip


def of_ensembles(runs: Comparable) -> list[Table]:
    """Returns what each member of AutoAttack broke, and signs of masked gradients."""
    return [
        table
        for group in runs.groups
        for table in autoattack_tables.tables(
            group.label, [run.evaluation["attacks"] for run in group.runs], runs.classes
        )
    ]


def _headlines(runs: Comparable, rows: Sequence[Headline]) -> Table:
    header = [
        "attack", "method", "seeds", "average", "worst class", "without bias",
        f"worst {metrics.worst_count(len(runs.classes))}", "gap", "gap without bias", "NSD",
        "boundary error", "rho",
    ]  # fmt: skip
    several = any(row.seeds > 1 for row in rows)
    over = "seeds and test images" if several else "test images"
    weights = dict.fromkeys(run.evaluation["weights"] for g in runs.groups for run in g.runs)
    caption = (
        f"{runs.title}, {' and '.join(weights)} weights; accuracy in %, [95 % interval over "
        f"{over}]; NSD and rho are ratios, rho against {runs.groups[0].label}"
    )
    return Table(caption, header, [_headline(row) for row in rows])


def _headline(row: Headline) -> list[str]:
    if not row.seeds:
        return [row.attack, row.method, "not evaluated", *[MISSING] * 9]
    plain = {name: f"{100 * value:.1f}" for name, value in row.plain.items()}
    seeds = str(row.seeds) if row.seeds == row.runs else f"{row.seeds} of {row.runs}"
    return [
        row.attack, row.method, seeds, interval(row.intervals["average"]),
        f"{plain['worst_class']} ({row.worst_name})", interval(row.intervals["worst_class"]),
        plain["worst_k"], plain["gap"], interval(row.intervals["gap"]),
        f"{row.plain['nsd']:.2f}",
        MISSING if row.boundary_error is None else f"{100 * row.boundary_error:.1f}",
        MISSING if row.rho is None else f"{row.rho:+.2f}",
    ]  # fmt: skip


def _differences(rows: Sequence[Paired], *, is_aside: bool) -> Table:
    names = list(rows[0].differences)
    header = ["attack", "method", "seeds"]
    for name in names:
        header += [name.replace("_", " "), "p"]
    caption = (
        f"difference to {rows[0].baseline} on the same images, runs paired by seed; points of "
        "accuracy, extremes as observed, [95 % interval], p adjusted for all differences of the "
        "table (Holm)"
    )
    if any(row.seeds == 1 for row in rows):
        caption += "; with one seed it compares two networks, not two methods"
    if is_aside:
        caption += "; it explores, what the study predicted has a table of its own"
    lines = []
    for row in rows:
        line = [row.attack, row.method, str(row.seeds)]
        for name in names:
            p_value = row.adjusted[name]
            line += [interval(row.differences[name].interval, sign="+"), probability(p_value)]
        lines.append(line)
    return Table(caption, header, lines)


def _outcomes(rows: Sequence[Outcome]) -> Table:
    header = (
        "prediction", "statistic", "attack", "claim", "seeds", "difference", "p", "p alone",
        "verdict",
    )  # fmt: skip
    lines = []
    for row in rows:
        numbers = [MISSING] * 3
        if row.difference is not None:
            p_values = probability(row.adjusted), probability(row.alone)
            numbers = [interval(row.difference.interval, sign="+"), *p_values]
        lines.append([
            row.prediction.name, row.prediction.statistic.replace("_", " "),
            row.prediction.attack, row.prediction.claim, str(row.seeds), *numbers, row.verdict,
        ])  # fmt: skip
    caption = (
        "predictions of the study's config: left side less right, points of accuracy, [95 % "
        "interval], runs paired by seed, their noise that of all methods together where its own "
        "is less, p adjusted for all predictions (Holm); one holds or fails where p < 0.05, and "
        "is open otherwise; p alone is not adjusted and knows no noise but its own runs'"
    )
    return Table(caption, header, lines)


def _classes(runs: Comparable, study: Mapping[str, Any]) -> Table:
    columns: list[tuple[Group, str]] = [
        (g, a) for a in runs.attacks for g in runs.groups if g.results(a)
    ]
    several = len(runs.groups) > 1
    header = ["class", *(f"{a}: {g.label}" if several else a for g, a in columns)]
    means = [g.class_accuracies(a).mean(axis=0) for g, a in columns]
    rows = [
        [name, *(percent(mean[number]) for mean in means)]
        for number, name in enumerate(runs.classes)
    ]
    for kind in ("easy", "hard"):
        if chosen := class_numbers(study, runs.classes, kind):
            rows.append([f"mean of {kind}", *(percent(mean[chosen].mean()) for mean in means)])
    return Table("accuracy in % of each class, mean over seeds", header, rows)


def _confidence(runs: Comparable) -> list[Table]:
    """How much surer each method is than right, under attacks of which confidence is known."""
    columns = [
        (group, attack)
        for attack in runs.attacks
        for group in runs.groups
        if group.results(attack) and all("calibration" in r for r in group.results(attack))
    ]
    if not columns:
        return []
    excess, errors = [], []
    for group, attack in columns:
        found = [result["calibration"] for result in group.results(attack)]
        confidence = np.array([f["class_confidence"] for f in found], float)
        excess.append((confidence - group.class_accuracies(attack)).mean(axis=0))
        errors.append(np.mean([f["ece"] for f in found]))
    several = len(runs.groups) > 1
    header = ["class", *(f"{a}: {g.label}" if several else a for g, a in columns)]
    rows = [
        [name, *(f"{100 * e[n]:+.1f}" if np.isfinite(e[n]) else MISSING for e in excess)]
        for n, name in enumerate(runs.classes)
    ]
    caption = (
        "mean confidence less accuracy of each class in points, mean over seeds: above 0 the "
        "model is surer than right; last the expected calibration error in %"
    )
    return [Table(caption, header, rows, [["ECE", *(percent(error) for error in errors)]])]


def _training(runs: Comparable) -> list[Table]:
    """How training ended, of methods whose runs say it."""
    kinds = {"train": "train", "val_clean": "clean", "val_robust": "robust"}
    fields = [(kind, name) for kind in kinds for name in ("average", "worst_class", "gap")]
    header = [f"{kinds[kind]} {name.replace('_', ' ')}" for kind, name in fields]
    rows = []
    for group in runs.groups:
        if last := [lines[-1] for lines in map(validations, group.runs) if lines]:
            epochs = "–".join(str(e) for e in sorted({line["epoch"] for line in last}))
            found = ([line.get(f"{k}/{n}", np.nan) for line in last] for k, n in fields)
            rows.append(
                [group.label, str(len(last)), epochs, *(percent(np.mean(f)) for f in found)]
            )
    caption = (
        "the end of training, accuracy in %, extremes as observed, mean over seeds: train is of "
        "the last epoch's images as they were trained on, clean and robust of validation images"
    )
    return [Table(caption, ["method", "seeds", "epochs", *header], rows)] if rows else []


def percent(value: float) -> str:
    """Returns a share as text in percent."""
    return f"{100 * value:.1f}" if np.isfinite(value) else MISSING


def probability(value: float) -> str:
    """Returns a p-value as text."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(value: Interval, sign: str = "") -> str:
    """Returns an estimate with its interval as text in percent."""
    low, estimate, high = (f"{100 * number:{sign}.1f}" for number in value)
    return f"{estimate} [{low}, {high}]"
