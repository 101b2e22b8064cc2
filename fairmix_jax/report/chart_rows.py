"""The rows behind the charts of a report: one dictionary a mark, plain data."""

import base64
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fairmix_jax.classwise import image_verdicts, metrics
from fairmix_jax.report.comparable import Comparable

_MAX_EPOCHS = 120
_MAX_CLASSES = 100
_MAX_CONFUSIONS = 20
_MAX_PIXELS = 96
_MAX_EXAMPLES = 10

Row = dict[str, Any]


def all_of(runs: Comparable, headlines: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each chart of a comparable set, and the example images.

    Beyond a hundred classes nobody can read what has a mark for each, which is then left out.
    `headlines` are the set's rows of `headlines.headlines`.
    """
    is_readable = len(runs.classes) <= _MAX_CLASSES
    return {
        "tradeoff": _tradeoff(headlines),
        "classes": list(_classes(runs)) if is_readable else [],
        "radius": list(_radius(runs)) if is_readable else [],
        "confusion": list(_confusion(runs)) if is_readable else [],
        "confidence": list(_confidence(runs)),
        "training": list(_training(runs)),
        "survivors": list(_survivors(runs)),
        "examples": list(_examples(runs)),
    }


def _tradeoff(headlines: Sequence[Row]) -> list[Row]:
    rows = []
    for headline in (headline for headline in headlines if headline["seeds"]):
        row = {name: headline[name] for name in ("method", "attack", "seeds")}
        for name, statistic in (("average", "average"), ("worst", "worst_class")):
            low, estimate, high = headline["intervals"][statistic]
            row |= _rounded({name: estimate, f"{name}_low": low, f"{name}_high": high})
        rows.append(row)
    for row in rows:
        points = [(r["average"], r["worst"]) for r in rows if r["attack"] == row["attack"]]
        own = row["average"], row["worst"]
        row["front"] = not any(p != own and p[0] >= own[0] and p[1] >= own[1] for p in points)
    return rows


def _classes(runs: Comparable) -> Iterator[Row]:
    for method in runs.attacked:
        correct = [result["class_correct"] for result in method.results]
        ends = metrics.classes_over_seeds(method.results[0]["class_total"], correct)
        for name, (low, accuracy, high) in zip(runs.classes, ends.T, strict=True):
            if np.isfinite(accuracy):
                known = {"method": method.label, "attack": method.attack, "class": name}
                yield known | _rounded({"accuracy": accuracy, "low": low, "high": high})


def _radius(runs: Comparable) -> Iterator[Row]:
    """Means over the runs that have the first one's attack and radii."""
    for method in runs.methods:
        curves = [run.evaluation["curve"] for run in method.runs if "curve" in run.evaluation]
        if not curves:
            continue
        attack, radii, total = shared = [curves[0][k] for k in ("attack", "epsilon", "class_total")]
        alike = [c for c in curves if [c["attack"], c["epsilon"], c["class_total"]] == shared]
        correct = np.mean([curve["class_correct"] for curve in alike], axis=0)
        accuracy = correct / np.where(np.asarray(total) > 0, total, np.nan)
        for epsilon, row in zip(radii, accuracy, strict=True):
            values = [("average", np.nanmean(row)), *zip(runs.classes, row, strict=True)]
            for name, value in values:
                if np.isfinite(value):
                    known = {"method": method.label, "class": name, "epsilon": round(epsilon, 6)}
                    yield known | _rounded({"accuracy": value}) | {"attack": attack}


def _confusion(runs: Comparable) -> Iterator[Row]:
    """Summed over runs; beyond twenty classes for the main attack only."""
    is_small, main = len(runs.classes) <= _MAX_CONFUSIONS, runs.main_attack
    for method in (m for m in runs.attacked if is_small or m.attack == main):
        found = [r.get("confusion") or r.get("detail", {}).get("confusion") for r in method.results]
        if None not in found:
            matrix = np.sum(found, axis=0).tolist()
            yield {"method": method.label, "attack": method.attack, "matrix": matrix}


def _confidence(runs: Comparable) -> Iterator[Row]:
    for method in runs.with_confidence:
        bins = [result["calibration"]["bins"] for result in method.results]
        count, correct = (np.sum([b[k] for b in bins], axis=0) for k in ("count", "correct"))
        trust = np.sum([np.multiply(b["confidence"], b["count"]) for b in bins], axis=0)
        for n in np.flatnonzero(count):
            known = {"method": method.label, "attack": method.attack, "count": int(count[n])}
            means = {"confidence": trust[n] / count[n], "accuracy": correct[n] / count[n]}
            yield known | _rounded(means)


def _training(runs: Comparable) -> Iterator[Row]:
    for method in runs.methods:
        for run in method.runs:
            lines = run.validations
            known = {"method": method.label, "seed": run.config["seed"]}
            for line in lines[:: -(-len(lines) // _MAX_EPOCHS) or 1]:
                for field in ("average", "worst_class"):
                    point = {"epoch": line["epoch"], "statistic": field.replace("_", " ")}
                    yield known | point | _rounded({"accuracy": line[f"val_robust/{field}"]})


def _survivors(runs: Comparable) -> Iterator[Row]:
    """Yields the survivors in the first run, from the first attack's start to the last one's end.

    An attack begins when those before it have taken all their time, and not at their last success.
    """
    for method in runs.methods:
        attacks = method.runs[0].evaluation["attacks"].items()
        for attack, detail in ((name, of["detail"]) for name, of in attacks if "detail" in of):
            known = {"method": method.label, "attack": attack}
            spent, points = detail["seconds_by_attack"], detail["curve"]
            ends = dict(zip(spent, itertools.accumulate(spent.values()), strict=True))
            last = next(reversed(spent))
            for name, seconds, survivors in [*points, [last, spent[last], points[-1][2]]]:
                moment = round(ends[name] - spent[name] + seconds, 2)
                yield known | {"member": name, "seconds": moment, "survivors": survivors}


def _examples(runs: Comparable) -> Iterator[Row]:
    """The first run's images of each class, under every attack that kept them."""
    for method, attack in itertools.product(runs.methods, runs.attacks):
        run = method.runs[0]
        path = run.path / "attacks" / attack / "examples.npz"
        if attack not in run.evaluation["attacks"] or not path.is_file():
            continue
        names = ("row", "label", "prediction", "image", "adversarial")
        kept = [array[:_MAX_EXAMPLES] for array in image_verdicts.load(path, names).values()]
        *_, before, after = kept
        change = after - before
        largest = float(np.abs(change).max()) or 1.0
        images = []
        for row, label, predicted, image, adversarial, moved in zip(*kept, change, strict=True):
            pixels = {"clean": image, "adversarial": adversarial}
            pixels["change"] = 0.5 + 0.5 * moved / largest
            known = {"class": runs.classes[label], "predicted": runs.classes[predicted]}
            pictures = {name: _png(picture) for name, picture in pixels.items()}
            images.append(known | {"row": int(row)} | pictures)
        known = {"method": method.label, "attack": attack, "seed": run.config["seed"]}
        yield known | {"factor": round(0.5 / largest, 1), "images": images}


def _png(image: np.ndarray) -> str:
    """A `[H, W, C]` image in [0, 1] as the text of a PNG; only one and three channels show."""
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    picture = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _rounded(values: Mapping[str, float]) -> Row:
    return {name: round(float(value), 4) for name, value in values.items()}
