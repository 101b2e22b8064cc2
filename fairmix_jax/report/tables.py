"""The tables of a report but for headlines and differences, and how tables write numbers."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairmix_jax.attacks.masking import SEVERITY
from fairmix_jax.classwise.intervals import Interval
from fairmix_jax.report.comparable import Comparable, Method
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.tables import MISSING, Table


def classes(runs: Comparable, study: Mapping[str, Any]) -> Table:
    """Returns the accuracy of each class, and of a study's easy and hard classes together."""
    means = [method.accuracies.mean(axis=0) for method in runs.attacked]
    header, rows = _by_class(runs, runs.attacked, means)
    for kind in ("easy", "hard"):
        if chosen := class_numbers(study, runs.classes, kind):
            rows.append([f"mean of {kind}", *(percent(mean[chosen].mean()) for mean in means)])
    return Table("Accuracy of each class in %, mean over seeds.", header, rows)


def class_numbers(study: Mapping[str, Any], classes: Sequence[str], kind: str) -> list[int]:
    """Returns the numbers of a study's `"easy"` or `"hard"` classes; none if it names none.

    Raises a `UsageError` if one of them is none of the data's.
    """
    chosen = study.get(f"{kind}_classes", ())
    for name in chosen:
        if name not in classes:
            raise UsageError(f"study.{kind}_classes: {name!r} is not one of {', '.join(classes)}")
    return [classes.index(name) for name in chosen]


def confidence(runs: Comparable) -> list[Table]:
    """Returns how much surer each method is than right, where confidence is known."""
    excess, errors = [], ["ECE"]
    for method in runs.with_confidence:
        found = [result["calibration"] for result in method.results]
        sure = np.array([of_run["class_confidence"] for of_run in found], float)
        excess.append((sure - method.accuracies).mean(axis=0))
        errors.append(percent(np.mean([of_run["ece"] for of_run in found])))
    header, rows = _by_class(runs, runs.with_confidence, excess, sign="+")
    caption = (
        "Mean confidence less accuracy of each class in points, mean over seeds. Above 0 the "
        "model is surer than it is right. The last row is the expected calibration error (ECE) of "
        "this confidence, in %."
    )
    return [Table(caption, header, rows, [errors])] if excess else []


def _by_class(
    runs: Comparable, methods: Sequence[Method], values: Sequence[np.ndarray], sign: str = ""
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with a row a class, from the `[K]` values of each method."""
    several = len(runs.methods) > 1
    header = ["class", *(f"{m.attack}: {m.label}" if several else m.attack for m in methods)]
    rows = zip(runs.classes, *values, strict=True)
    return header, [[name, *(percent(value, sign) for value in row)] for name, *row in rows]


def training(runs: Comparable) -> list[Table]:
    """Returns how training ended, of methods whose runs say it."""
    kinds, names = ("train", "val_clean", "val_robust"), ("average", "worst_class", "gap")
    fields = [f"{kind}/{name}" for kind in kinds for name in names]
    header = [re.sub("[/_]", " ", field.removeprefix("val_")) for field in fields]
    rows = []
    for method in runs.methods:
        if last := [run.validations[-1] for run in method.runs if run.validations]:
            epochs = "–".join(str(e) for e in sorted({line["epoch"] for line in last}))
            means = [percent(np.mean([line.get(f, np.nan) for line in last])) for f in fields]
            rows.append([method.label, str(len(last)), epochs, *means])
    caption = (
        "The end of training: accuracy in %, mean over seeds, worst class and gap as observed. "
        "'Train' columns count the last epoch's images as they were trained on, the others "
        "validation images."
    )
    return [Table(caption, ["method", "seeds", "epochs", *header], rows)] if rows else []


def ensembles(runs: Comparable) -> list[Table]:
    """Returns what each member of an ensemble broke, and signs of masked gradients."""
    found = []
    for every in runs.methods:
        for method in map(every.under, runs.attacks):
            for part, table in (("detail", _broken), ("masking", _masking)):
                if any(part in result for result in method.results):
                    found.append(table(method, runs.classes))
    return found


def _broken(method: Method, classes: Sequence[str]) -> Table:
    """Each class: broken by which attack, what is left, and into which class it is pushed."""
    results = [result for result in method.results if "detail" in result]
    details = [result["detail"] for result in results]
    totals = np.sum([result["class_total"] for result in results], axis=0)
    members = list(dict.fromkeys(a for d in details for a in d["broken_by"]))  # runs may differ
    none = [0] * len(classes)
    broken = np.sum([[d["broken_by"].get(a, none) for a in members] for d in details], axis=0)
    confusion = np.sum([d["confusion"] for d in details], axis=0)
    np.fill_diagonal(confusion, 0)
    robust = totals - broken.sum(axis=0)
    accuracy = np.where(totals > 0, robust / np.maximum(totals, 1), np.nan)
    rows = []
    for number, name in enumerate(classes):
        thief, stolen = int(np.argmax(confusion[number])), confusion[number].max()
        rows.append([
            name + " (worst)" * (number == int(np.nanargmin(accuracy))),
            *map(str, broken[:, number]), str(robust[number]), percent(accuracy[number]),
            f"{classes[thief]} ({stolen})" if stolen else "",
        ])  # fmt: skip
    sums = [*map(str, broken.sum(axis=1)), str(robust.sum()), percent(robust.sum() / totals.sum())]
    footer = [["all", *sums, ""]]
    for text, field, digits in (
        ("seconds", "seconds_by_attack", 1),
        ("gradient passes an image", "gradient_passes_per_image", 0),
        ("forward passes an image", "forward_passes_per_image", 0),
    ):
        mean = [np.mean([d[field][a] for d in details if a in d[field]]) for a in members]
        footer.append([text, *(f"{m:,.{digits}f}" for m in mean), "", "", ""])
    what = "how many of all test images each attack was the first to break"
    notes = [f"{method.attack}, {method.label}: {what}"]
    notes += sorted({note for d in details for note in d["notes"]})
    if lost := sum(d["non_finite"] for d in details):
        notes.append(f"{lost} images have logits that are not finite")
    header = ["class", *members, "robust", "robust %", "pushed into"]
    return Table("; ".join(notes), header, rows, footer, method.attack, method.label)


def _masking(method: Method, classes: Sequence[str]) -> Table:
    """Every finding, of the run in which it is most serious."""

    def seriousness(found: Mapping) -> int:
        return SEVERITY.index(found["verdict"])

    maskings = [result["masking"] for result in method.results if "masking" in result]
    found = defaultdict(list)
    for finding in (finding for masking in maskings for finding in masking["findings"]):
        found[finding["name"]].append(finding)
    rows = []
    for name, findings in found.items():
        worst = max(findings, key=seriousness)
        passed = sum(finding["verdict"] == "pass" for finding in findings)
        shares, where = worst["per_class"], ""
        if shares and max(shares) > 0:
            where = f"{classes[int(np.argmax(shares))]} {percent(max(shares))} %"
        passes = f"{passed} of {len(findings)}"
        rows.append([name, worst["verdict"], passes, worst["reason"], where])
    caption = (
        f"{method.attack}, {method.label}: signs of masked gradients in the most serious run, "
        f"whose verdict is {max(maskings, key=seriousness)['verdict']}"
    )
    header = ["finding", "verdict", "passed", "reason", "most in class"]
    return Table(caption, header, rows, attack=method.attack, method=method.label)


def percent(value: float, sign: str = "") -> str:
    """Returns a share as text in percent."""
    return f"{100 * value:{sign}.1f}" if np.isfinite(value) else MISSING


def probability(value: float) -> str:
    """Returns a p-value as text."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(value: Interval, sign: str = "") -> str:
    """Returns an estimate with its interval as text in percent."""
    low, estimate, high = (percent(number, sign) for number in value)
    return f"{estimate} [{low}, {high}]"
