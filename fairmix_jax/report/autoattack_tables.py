"""What AutoAttack found, class by class, as tables of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairmix_jax.tables import MISSING, Table


def tables(
    label: str, results: Sequence[Mapping[str, Mapping[str, Any]]], classes: Sequence[str]
) -> list[Table]:
    """Returns the tables of one method.

    Args:
      label: the method.
      results: of each of its runs, `attacks` of `evaluation.json`; counts add up.
      classes: `K` names.
    """
    found = []
    for name in dict.fromkeys(name for run in results for name in run):
        own = [run[name] for run in results if name in run]
        detailed = [result for result in own if "detail" in result]
        if detailed:
            totals = np.sum([result["class_total"] for result in detailed], axis=0)
            details = [result["detail"] for result in detailed]
            found.append(_broken(name, label, details, totals, classes))
        maskings = [result["masking"] for result in own if "masking" in result]
        if maskings:
            found.append(_masking(name, label, maskings, classes))
    return found


def _broken(
    attack: str, method: str, details: Sequence[Mapping], totals: np.ndarray, classes
) -> Table:
    """Each class: broken by which attack, what is left, and into which class it is pushed."""
    attacks = list(details[0]["broken_by"])
    broken = np.sum([[d["broken_by"][a] for a in attacks] for d in details], axis=0)
    confusion = np.sum([d["confusion"] for d in details], axis=0)
    np.fill_diagonal(confusion, 0)
    robust = totals - broken.sum(axis=0)
    accuracy = robust / np.maximum(totals, 1)
    worst = int(np.argmin(np.where(totals > 0, accuracy, np.inf)))
    rows = []
    for number, name in enumerate(classes):
        thief = int(np.argmax(confusion[number]))
        stolen = f"{classes[thief]} ({confusion[number, thief]})"
        rows.append([
            name + (" (worst)" if number == worst else ""),
            *(str(count) for count in broken[:, number]),
            str(robust[number]),
            f"{100 * accuracy[number]:.1f}" if totals[number] else MISSING,
            stolen if confusion[number, thief] else "",
        ])  # fmt: skip
    footer = [
        ["all", *map(str, broken.sum(axis=1)), str(robust.sum()),
         f"{100 * robust.sum() / totals.sum():.1f}", ""]
    ]  # fmt: skip
    for text, field, digits in (
        ("seconds", "seconds_by_attack", 1),
        ("gradient passes an image", "gradient_passes_per_image", 0),
        ("forward passes an image", "forward_passes_per_image", 0),
    ):
        mean = [np.mean([d[field][a] for d in details]) for a in attacks]
        footer.append([text, *(f"{m:,.{digits}f}" for m in mean), "", "", ""])
    notes = sorted({note for d in details for note in d["notes"]})
    lost = sum(d["non_finite"] for d in details)
    notes += [f"{lost} images have logits that are not finite"] if lost else []
    caption = (
        f"{attack}, {method}: images that each attack was the first to break, of all test images"
    )
    header = ["class", *attacks, "robust", "robust %", "pushed into"]
    return Table("; ".join([caption, *notes]), header, rows, footer, attack, method)


def _masking(
    attack: str, method: str, maskings: Sequence[Mapping], classes: Sequence[str]
) -> Table:
    """Every finding, of the run in which it is most serious."""
    order = ("pass", "suspicious", "fail")
    verdict = max((m["verdict"] for m in maskings), key=order.index)
    found: dict[str, list[Mapping]] = {}
    for masking in maskings:
        for finding in masking["findings"]:
            found.setdefault(finding["name"], []).append(finding)
    rows = []
    for name, findings in found.items():
        worst = max(findings, key=lambda finding: order.index(finding["verdict"]))
        passed = sum(finding["verdict"] == "pass" for finding in findings)
        shares = worst["per_class"]
        top = int(np.argmax(shares)) if shares and max(shares) > 0 else None
        where = "" if top is None else f"{classes[top]} {100 * shares[top]:.1f} %"
        rows.append(
            [name, worst["verdict"], f"{passed} of {len(findings)}", worst["reason"], where]
        )
    caption = (
        f"{attack}, {method}: signs of masked gradients, verdict {verdict}; of the most serious run"
    )
    header = ["finding", "verdict", "passed", "reason", "most in class"]
    return Table(caption, header, rows, attack=attack, method=method)
