"""The rows behind the charts of a report: one dictionary a mark, plain data."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fairmix_jax import comparison
from fairmix_jax.report.numbers import Headline
from fairmix_jax.report.runs import Comparable, Group, Run

_MAX_EPOCHS = 120
_MAX_CLASSES = 100
_MAX_CONFUSIONS = 20
_MAX_PIXELS = 96
_MAX_EXAMPLES = 10
_DIGITS = 4


def of_set(runs: Comparable, headlines: Sequence[Headline]) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each chart of a comparable set, and the example images."""
    return {
        "tradeoff": _tradeoff(headlines),
        "classes": list(_classes(runs)),
        "radius": list(_radius(runs)),
        "confusion": list(_confusion(runs)),
        "calibration": list(_calibration(runs)),
        "training": [row for group in runs.groups for row in _training(group)],
        "survivors": [row for group in runs.groups for row in _survivors(group)],
        "examples": list(_examples(runs)),
    }


def _tradeoff(headlines: Sequence[Headline]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "method": h.method, "attack": h.attack, "seeds": h.seeds,
            "average": _short(h.intervals["average"].estimate),
            "average_low": _short(h.intervals["average"].low),
            "average_high": _short(h.intervals["average"].high),
            "worst": _short(h.intervals["worst_class"].estimate),
            "worst_low": _short(h.intervals["worst_class"].low),
            "worst_high": _short(h.intervals["worst_class"].high),
        }
        for h in headlines
        if h.seeds
    ]  # fmt: skip
    for row in rows:
        rivals = [other for other in rows if other["attack"] == row["attack"]]
        row["front"] = not any(
            other["average"] >= row["average"]
            and other["worst"] >= row["worst"]
            and (other["average"], other["worst"]) != (row["average"], row["worst"])
            for other in rivals
        )
    return rows


def _classes(runs: Comparable) -> Iterator[dict[str, Any]]:
    """None beyond a hundred classes, whose bars nobody can read."""
    if len(runs.classes) > _MAX_CLASSES:
        return
    for group in runs.groups:
        for attack in runs.attacks:
            results = group.results(attack)
            if not results:
                continue
            correct = [result["class_correct"] for result in results]
            ends = comparison.classes_over_seeds(results[0]["class_total"], correct)
            for name, (low, accuracy, high) in zip(runs.classes, ends.T, strict=True):
                if np.isfinite(accuracy):
                    yield {
                        "method": group.label, "attack": attack, "class": name,
                        "accuracy": _short(accuracy), "low": _short(low), "high": _short(high),
                    }  # fmt: skip


def _radius(runs: Comparable) -> Iterator[dict[str, Any]]:
    """Means over the runs that have the first one's attack and radii."""
    for group in runs.groups:
        curves = [run.evaluation["curve"] for run in group.runs if "curve" in run.evaluation]
        curves = [c for c in curves if _setting(c) == _setting(curves[0])]
        if not curves or len(runs.classes) > _MAX_CLASSES:
            continue
        total = np.asarray(curves[0]["class_total"])
        correct = np.mean([curve["class_correct"] for curve in curves], axis=0)
        accuracy = correct / np.where(total > 0, total, np.nan)
        for epsilon, row in zip(curves[0]["epsilon"], accuracy, strict=True):
            values = [("average", np.nanmean(row)), *zip(runs.classes, row, strict=True)]
            for name, value in values:
                if np.isfinite(value):
                    yield {
                        "method": group.label, "class": name, "epsilon": round(epsilon, 6),
                        "accuracy": _short(value), "attack": curves[0]["attack"],
                    }  # fmt: skip


def _setting(curve: dict[str, Any]) -> tuple[str, list[float], list[int]]:
    return curve["attack"], curve["epsilon"], curve["class_total"]


def _confusion(runs: Comparable) -> Iterator[dict[str, Any]]:
    """Summed over runs; beyond twenty classes for the main attack only, beyond 100 for none."""
    if len(runs.classes) > _MAX_CLASSES:
        return
    for group in runs.groups:
        few = len(runs.classes) <= _MAX_CONFUSIONS
        for attack in runs.attacks if few else [runs.main_attack]:
            results = group.results(attack)
            matrices = [r.get("confusion") or r.get("detail", {}).get("confusion") for r in results]
            if matrices and None not in matrices:
                matrix = np.sum(matrices, axis=0).tolist()
                yield {"method": group.label, "attack": attack, "matrix": matrix}


def _calibration(runs: Comparable) -> Iterator[dict[str, Any]]:
    for group in runs.groups:
        for attack in runs.attacks:
            results = group.results(attack)
            if not results or not all("calibration" in result for result in results):
                continue
            bins = [result["calibration"]["bins"] for result in results]
            count = np.sum([b["count"] for b in bins], axis=0)
            correct = np.sum([b["correct"] for b in bins], axis=0)
            trust = np.sum([np.multiply(b["confidence"], b["count"]) for b in bins], axis=0)
            for number in np.flatnonzero(count):
                yield {
                    "method": group.label, "attack": attack, "count": int(count[number]),
                    "confidence": _short(trust[number] / count[number]),
                    "accuracy": _short(correct[number] / count[number]),
                }  # fmt: skip


def _training(group: Group) -> Iterator[dict[str, Any]]:
    for run in group.runs:
        lines = validations(run)
        for line in lines[:: -(-len(lines) // _MAX_EPOCHS)] if lines else ():
            for field, statistic in (("average", "average"), ("worst_class", "worst class")):
                yield {
                    "method": group.label, "seed": run.config["seed"], "epoch": line["epoch"],
                    "statistic": statistic, "accuracy": _short(line[f"val_robust/{field}"]),
                }  # fmt: skip


def validations(run: Run) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl` with a validation; none where the file is gone."""
    path = run.path / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "val_robust/average" in line]


def _survivors(group: Group) -> Iterator[dict[str, Any]]:
    """Of the first run's ensembles, seconds counted from the first attack's beginning."""
    for attack, result in group.runs[0].evaluation["attacks"].items():
        begun, last, current = 0.0, 0.0, None
        for name, seconds, survivors in result.get("detail", {}).get("curve", ()):
            begun, current = (begun, current) if name == current else (last, name)
            last = begun + seconds
            yield {
                "method": group.label, "attack": attack, "member": name,
                "seconds": round(last, 2), "survivors": survivors,
            }  # fmt: skip


def _examples(runs: Comparable) -> Iterator[dict[str, Any]]:
    """The first run's images of each class, under every attack that kept them."""
    for group in runs.groups:
        for attack in runs.attacks:
            path = group.runs[0].path / "attacks" / attack / "examples.npz"
            known = attack in group.runs[0].evaluation["attacks"]
            if not known or not path.is_file():
                continue
            with np.load(path) as found:
                kept = {name: found[name][:_MAX_EXAMPLES] for name in found.files}
            change = kept["adversarial"] - kept["image"]
            largest = float(np.abs(change).max()) or 1.0
            yield {
                "method": group.label, "attack": attack, "factor": round(0.5 / largest, 1),
                "seed": group.runs[0].config["seed"],
                "images": [
                    {
                        "class": runs.classes[label], "predicted": runs.classes[predicted],
                        "row": int(row), "clean": _png(clean), "adversarial": _png(adversarial),
                        "change": _png(0.5 + 0.5 * difference / largest),
                    }
                    for label, predicted, row, clean, adversarial, difference in zip(
                        kept["label"], kept["prediction"], kept["row"], kept["image"],
                        kept["adversarial"], change, strict=True,
                    )
                ],
            }  # fmt: skip


def _png(image: np.ndarray) -> str:
    """A `[H, W, C]` image in [0, 1] as the text of a PNG; only one and three channels show."""
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    picture = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _short(value: Any) -> float:
    return round(float(value), _DIGITS)
