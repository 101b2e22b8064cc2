"""The findings of an ensemble of attacks: one record per image, and a summary by class."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.runtime import processes


class AttackReport(NamedTuple):
    """The outcome of several attacks on `N` images; NumPy arrays.

    An image is attacked until one attack breaks it; those misclassified as they are count
    as broken by `"clean"`, the first name in `attacks`. Images that a last forward pass of all
    adversarial images classified correctly (rounding at the boundary) are `unconfirmed`; they
    stay broken. Images whose logits, clean or adversarial, are not finite count as broken.
    """

    robust: np.ndarray  # [N] bool, survived everything
    adversarial: np.ndarray  # [N, H, W, C], in the ball and misclassified if broken, else clean
    broken_by: np.ndarray  # [N] int8, position in `attacks` of the one that broke it, -1 if robust
    attacks: tuple[str, ...]  # names in the order they were run, `A` of them
    labels: np.ndarray  # [N] int32, the true classes
    predictions: np.ndarray  # [N] int32, the classes of the adversarial images
    non_finite: np.ndarray  # [N] bool
    unconfirmed: int
    forward_passes: np.ndarray  # [A, N] int32, what each attack spent on each image
    gradient_passes: np.ndarray  # the same
    seconds: tuple[float, ...]  # [A], wall time of each attack without compilation
    compile_seconds: float  # of all attacks together
    curve: np.ndarray  # [M, 3] float, as in `verdict_state.VerdictState`
    num_classes: int
    notes: tuple[str, ...]  # what a reader must know, e.g. a loss replaced for lack of classes

    @property
    def robust_accuracy(self) -> float:
        """The share of all images that is robust."""
        return float(np.mean(self.robust))


def merged(reports: Sequence[AttackReport], num_images: int) -> AttackReport:
    """Returns one report of what processes found on their shares of `num_images` images.

    Image `i` is in the report `i % P`, in order; of fewer images than processes, the rest is
    ignored. Times are those of the slowest; the curve has the survivors of all at any time.
    """
    used = reports[:num_images]
    names = ("robust", "adversarial", "broken_by", "labels", "predictions", "non_finite")
    shares = [{name: getattr(report, name) for name in names} for report in used]
    passes = [(report.forward_passes.T, report.gradient_passes.T) for report in used]
    arrays: dict[str, Any] = processes.dealt(shares)
    forward, gradient = processes.dealt(passes)
    return reports[0]._replace(
        **arrays,
        forward_passes=forward.T,
        gradient_passes=gradient.T,
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


def summary(report: AttackReport) -> dict[str, Any]:
    """Returns the class-wise facts as plain data, for JSON.

    `broken_by` has how many images of each class an attack was the first to break; `confusion`
    `[K, K]` a row for each true class and a column for each class on the adversarial image.
    """
    names, num_classes, broken = report.attacks, report.num_classes, report.broken_by >= 0

    def table(rows: np.ndarray, columns: np.ndarray, num_rows: int) -> list[list[int]]:
        counts = np.zeros((num_rows, num_classes), int)
        np.add.at(counts, (rows, columns), 1)
        return counts.tolist()

    broken_by = table(report.broken_by[broken], report.labels[broken], len(names))

    def by_attack(numbers: Any, digits: int) -> dict[str, float]:
        return {n: round(float(x), digits) for n, x in zip(names, numbers, strict=True)}

    return {
        "broken_by": dict(zip(names, broken_by, strict=True)),
        "confusion": table(report.labels, report.predictions, num_classes),
        "seconds_by_attack": by_attack(report.seconds, 3),
        "compile_seconds": round(report.compile_seconds, 3),
        "forward_passes_per_image": by_attack(report.forward_passes.mean(axis=1), 2),
        "gradient_passes_per_image": by_attack(report.gradient_passes.mean(axis=1), 2),
        "curve": [
            [names[int(number)], round(seconds, 2), int(survivors)]
            for number, seconds, survivors in report.curve.tolist()
        ],
        "non_finite": int(report.non_finite.sum()),
        "unconfirmed": report.unconfirmed,
        "notes": list(report.notes),
    }
