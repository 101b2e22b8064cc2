"""What an ensemble of attacks found: one record per image, and its summary class by class."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax import cluster
from fairmix_jax.types import ThreatModel


class AttackReport(NamedTuple):
    """The outcome of several attacks on `N` images; NumPy arrays.

    An image is attacked until one attack breaks it; those misclassified as they are count
    as broken by `"clean"`, the first name in `attacks`.

    Attributes:
      robust: `[N]` bool, survived everything.
      adversarial: `[N, H, W, C]`, a misclassified image in the ball, or the image itself
        where robust or misclassified as it is.
      broken_by: `[N]` int8, position in `attacks` of the one that broke it, -1 if robust.
      attacks: names in the order they were run.
      labels: `[N]` int32, the true classes.
      predictions: `[N]` int32, the classes of the adversarial images.
      non_finite: `[N]` bool, logits that are not finite, clean or adversarial; they count
        as broken.
      unconfirmed: broken images that a last forward pass of all adversarial images
        classified correctly (rounding at the boundary); they stay broken.
      forward_passes, gradient_passes: `[A, N]` int32, what each attack spent on each image.
      seconds: `[A]`, wall time of each attack without compilation.
      compile_seconds: of all attacks together.
      curve: `[M, 3]` float, how the survivors became fewer: position of the attack, seconds
        since it began, survivors.
      num_classes: `K`.
      threat: norm, radius, bounds.
      notes: what a reader must know, e.g. a loss replaced for lack of classes.
    """

    robust: np.ndarray
    adversarial: np.ndarray
    broken_by: np.ndarray
    attacks: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    non_finite: np.ndarray
    unconfirmed: int
    forward_passes: np.ndarray
    gradient_passes: np.ndarray
    seconds: tuple[float, ...]
    compile_seconds: float
    curve: np.ndarray
    num_classes: int
    threat: ThreatModel
    notes: tuple[str, ...]

    @property
    def robust_accuracy(self) -> float:
        """The share of all images that is robust."""
        return float(np.mean(self.robust))


def merged(reports: Sequence[AttackReport], num_images: int) -> AttackReport:
    """Returns one report of what processes found on their shares of `num_images` images.

    Image `i` is in the report `i % P`, in order; of fewer images than processes, the rest is
    ignored. Times are those of the slowest; the curve has the survivors of all at any time.
    """

    def whole(name: str, axis: int = 0) -> np.ndarray:
        parts = [np.moveaxis(getattr(report, name), axis, 0) for report in reports]
        parts = [part for part, _ in zip(parts, range(num_images), strict=False)]
        return np.moveaxis(cluster.dealt(parts), 0, axis)

    arrays = ("robust", "adversarial", "broken_by", "labels", "predictions", "non_finite")
    facts: dict[str, Any] = {name: whole(name) for name in arrays}
    facts |= {name: whole(name, axis=1) for name in ("forward_passes", "gradient_passes")}
    used = reports[:num_images]
    return reports[0]._replace(
        **facts,
        unconfirmed=sum(report.unconfirmed for report in used),
        seconds=tuple(np.max([report.seconds for report in reports], axis=0).tolist()),
        compile_seconds=max(report.compile_seconds for report in reports),
        curve=_common_curve([report.curve for report in used]),
    )


def _common_curve(curves: Sequence[np.ndarray]) -> np.ndarray:
    """The survivors of all whenever those of one became fewer."""
    moments = sorted({tuple(point) for curve in curves for point in curve[:, :2].tolist()})
    totals = np.zeros(len(moments))
    for curve in curves:
        known = [tuple(point) for point in curve[:, :2].tolist()]
        totals += curve[[bisect_right(known, moment) - 1 for moment in moments], 2]
    return np.column_stack([moments, totals])


def class_counts(report: AttackReport) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[K]` images and `[K]` robust images of each class."""
    total = np.bincount(report.labels, minlength=report.num_classes)
    return total, np.bincount(report.labels[report.robust], minlength=report.num_classes)


def broken_counts(report: AttackReport) -> np.ndarray:
    """Returns `[A, K]`: how many images of each class each attack was the first to break."""
    counts = np.zeros((len(report.attacks), report.num_classes), int)
    broken = report.broken_by >= 0
    np.add.at(counts, (report.broken_by[broken], report.labels[broken]), 1)
    return counts


def confusion(report: AttackReport) -> np.ndarray:
    """Returns `[K, K]`: row the true class, column the class on the adversarial image."""
    counts = np.zeros((report.num_classes, report.num_classes), int)
    np.add.at(counts, (report.labels, report.predictions), 1)
    return counts


def summary(report: AttackReport) -> dict[str, Any]:
    """Returns the class-wise facts as plain data, for JSON."""
    return {
        "broken_by": {
            name: row.tolist()
            for name, row in zip(report.attacks, broken_counts(report), strict=True)
        },
        "confusion": confusion(report).tolist(),
        "seconds_by_attack": {
            name: round(seconds, 3)
            for name, seconds in zip(report.attacks, report.seconds, strict=True)
        },
        "compile_seconds": round(report.compile_seconds, 3),
        "forward_passes_per_image": _per_image(report, report.forward_passes),
        "gradient_passes_per_image": _per_image(report, report.gradient_passes),
        "curve": [
            [report.attacks[int(number)], round(seconds, 2), int(survivors)]
            for number, seconds, survivors in report.curve.tolist()
        ],
        "non_finite": int(report.non_finite.sum()),
        "unconfirmed": report.unconfirmed,
        "notes": list(report.notes),
    }


def _per_image(report: AttackReport, passes: np.ndarray) -> dict[str, float]:
    means = passes.mean(axis=1)
    return {n: round(float(m), 2) for n, m in zip(report.attacks, means, strict=True)}
