"""Class-wise accuracies from integer counts, and their means over runs; NumPy, on the host.

A mean over runs errs in two ways: by what differs from run to run, as seeds do, and by what the
runs share, since all are tested on the same images, which are a sample too.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax.classwise.intervals import INTERVALS, TAIL, Interval, class_counts

Statistic = Callable[[np.ndarray], np.ndarray]
"""Class accuracies `[..., K]`, all of classes with examples, to numbers `[...]`."""


average: Statistic = partial(np.mean, axis=-1)
"""The mean over classes."""

worst_class: Statistic = partial(np.min, axis=-1)
"""The smallest class accuracy."""

gap: Statistic = partial(np.ptp, axis=-1)
"""The largest class accuracy minus the smallest."""

STATISTICS: dict[str, Statistic] = {"average": average, "worst_class": worst_class, "gap": gap}
"""A new statistic goes here and, with its interval, into `intervals.INTERVALS`, of equal name."""


def easy_minus_hard(easy: Sequence[int], hard: Sequence[int]) -> Statistic:
    """Returns the mean accuracy of some classes minus that of others, a gap with its sign."""

    def statistic(accuracies: np.ndarray) -> np.ndarray:
        return accuracies[..., list(easy)].mean(axis=-1) - accuracies[..., list(hard)].mean(axis=-1)

    return statistic


def summarize(class_total: ArrayLike, class_correct: ArrayLike) -> dict[str, float | int]:
    """Returns what the class accuracies `a_c` come to; classes without examples do not count.

    * `average`: the mean of `a_c`.
    * `overall`: the share of all examples that are correct, equal to it where classes are.
    * `worst_class`: the smallest; `worst_class_index` is its first position.
    * `worst_k`: the mean of the `worst_count(K)` smallest.
    * `gap`: the largest less the smallest. As a difference of risks `1 - a_c` it is the
      class disparity of Zhong and Tandon 2024, arXiv 2411.14424, for two classes
      `|R(+1) - R(-1)|`; adversarial risk under an attack, natural risk of clean images.
    * `std`: the population standard deviation of `a_c`, and of the errors.
    * `nsd`: `std` divided by the mean class error; 0 without any error. (Normalised
      standard deviation, after Xu et al. 2021, arXiv 2010.06121, as their blog has it.)

    Takes counts as `intervals.class_counts`, and raises as it does.
    """
    total, correct = class_counts(class_total, class_correct)
    accuracy = correct / np.where(total > 0, total, 1)
    present = accuracy[total > 0]
    error = float(np.mean(1 - present))
    return {
        "average": float(average(present)),
        "overall": float(correct.sum() / total.sum()),
        "worst_class": float(worst_class(present)),
        "worst_k": float(np.sort(present)[: worst_count(len(present))].mean()),
        "gap": float(gap(present)),
        "std": float(present.std()),
        "nsd": float(present.std() / error) if error > 0 else 0.0,
        "worst_class_index": int(np.argmin(np.where(total > 0, accuracy, np.inf))),
    }


def gini(class_total: ArrayLike, class_correct: ArrayLike) -> float:
    """Returns the Gini coefficient of the accuracies of classes with examples, in [0, 1).

    It is the mean distance between the accuracies of two classes, drawn with replacement, over
    twice their mean: 0 where all are equal, also at 0. Takes and raises as `summarize`.
    """
    total, correct = class_counts(class_total, class_correct)
    accuracy = correct[total > 0] / total[total > 0]
    distance = np.abs(accuracy[:, None] - accuracy).mean()
    return float(distance / (2 * accuracy.mean())) if distance else 0.0


def is_balanced(class_total: ArrayLike) -> bool:
    """Returns whether all classes that have examples have equally many."""
    return len(set(np.asarray(class_total).tolist()) - {0}) <= 1


def worst_count(num_classes: int) -> int:
    """Returns how many classes `worst_k` averages: a tenth, at least two where there are two."""
    return min(max(2, num_classes // 10), num_classes)


def boundary_error(clean: ArrayLike, robust: ArrayLike) -> np.ndarray:
    """Returns `[K]`: what an attack takes from each class, clean less robust accuracy.

    A class's robust risk is its natural risk plus this.

    Reference: Zhang et al. 2019, arXiv 1901.08573; class by class Xu et al. 2021, arXiv 2010.06121.
    """
    return np.asarray(clean, float) - np.asarray(robust, float)


def rho(average: float, worst_class: float, *, base: tuple[float, float]) -> float:
    """Returns the relative gain of the worst class plus that of the average over a baseline.

    `(worst - worst_b) / worst_b + (average - average_b) / average_b`, `base` having average and
    worst class of the baseline; 0 for the baseline itself, positive where the worst class gains
    more than the average loses. Not a number where one of the baseline's two is 0.

    Reference: the form is recalled from Li and Liu 2023 (WAT, arXiv 2302.04025) and Jin et
    al. 2024 (DAFA); it was not read in either.
    """
    if min(base) <= 0:
        return float("nan")
    return (worst_class - base[1]) / base[1] + (average - base[0]) / base[0]


def non_finite(found: Mapping[str, Any]) -> str:
    """Returns what an entry of `evaluation.json` says was not finite, in words; empty if nothing.

    Logits that are not finite count as wrong; a gradient that is not gives no direction.
    """
    counts = found.get("non_finite", {}).items()
    return " and ".join(f"the {what} of {number:,} images" for what, number in counts if number)


def mean_interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the half-width of its Student t interval over seeds, at 95 %.

    `values`, `[S, ...]`, has one number a seed; with a single one the half-width is infinite.
    """
    sample = np.asarray(values, float)
    mean = sample.mean(axis=0)
    if len(sample) < 2:
        return mean, np.full(mean.shape, np.inf)
    error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
    return mean, special.stdtrit(len(sample) - 1, 1 - TAIL) * error


def over_seeds(class_total: ArrayLike, class_correct: ArrayLike, statistic: str) -> Interval:
    """Returns the mean of a statistic over runs, with a 95 % interval for seeds and images.

    The estimate is the mean of the runs' estimates without the bias of extremes. On either
    side the interval adds in quadrature what the runs say (Student's t of their values) and
    what the images say (the mean over runs of the distance to the end of its interval), as
    Zou and Donner (2008, Statistics in Medicine 27, 1693-1702) do for sums. The images
    count in full, as if all runs erred on the same ones, so it covers at least what it
    claims. A single run keeps the interval of its images, which says nothing about seeds.

    Takes `[K]` test images of each class, `[S, K]`, of these correct in each of `S` runs, and a
    name in `STATISTICS`.
    """
    total, correct = class_counts(class_total, np.atleast_2d(class_correct))
    if statistic not in STATISTICS:
        raise ValueError(f"{statistic=} is unknown; choose one of {', '.join(STATISTICS)}")
    ends = np.array([INTERVALS[statistic](total, row) for row in correct])
    low, centre, high = (float(value) for value in ends.mean(axis=0))
    if len(ends) == 1:
        return Interval(low, centre, high)
    present = total > 0
    _, runs = mean_interval(STATISTICS[statistic](correct[:, present] / total[present]))
    below, above = float(np.hypot(runs, centre - low)), float(np.hypot(runs, high - centre))
    return Interval(max(centre - below, 0.0), centre, min(centre + above, 1.0))


def classes_over_seeds(class_total: ArrayLike, class_correct: ArrayLike) -> np.ndarray:
    """Returns low end, mean and high end of each class's accuracy over runs, `[3, K]`.

    As `over_seeds`, with Jeffreys' interval (Brown, Cai and DasGupta 2001) for the images;
    NaN for classes without images.
    """
    total, correct = class_counts(class_total, np.atleast_2d(class_correct))
    values = correct / np.where(total > 0, total, np.nan)
    counts = correct + 0.5, total - correct + 0.5
    low, high = (special.betaincinv(*counts, share) for share in (TAIL, 1 - TAIL))
    below = np.where(correct > 0, values - low, 0.0).mean(axis=0)
    above = np.where(correct < total, high - values, 0.0).mean(axis=0)
    centre, runs = mean_interval(values)
    runs = runs if len(values) > 1 else 0.0
    ends = centre - np.hypot(runs, below), centre, centre + np.hypot(runs, above)
    return np.clip(np.stack(ends), 0.0, 1.0)


def result(
    class_total: ArrayLike, class_correct: ArrayLike, class_names: Sequence[str], *, seconds: float
) -> dict[str, Any]:
    """Returns one attack's entry of `evaluation.json`.

    `ci95` covers the choice of test images, not the training seed. `worst_class` and `gap`
    are those of the counts, which are biased (see `intervals`); `corrected` has the
    estimates without that bias.
    """
    total, correct = class_counts(class_total, class_correct)
    if len(class_names) != len(total):
        raise ValueError(f"class_names has {len(class_names)} names; give one a class")
    summary = summarize(total, correct)
    worst = int(summary.pop("worst_class_index"))
    found = {name: of(total, correct) for name, of in INTERVALS.items()}
    return {
        "class_total": total.tolist(),
        "class_correct": correct.tolist(),
        **summary,
        "worst_class_name": class_names[worst],
        "corrected": {name: found[name].estimate for name in ("worst_class", "gap")},
        "ci95": {name: [interval.low, interval.high] for name, interval in found.items()},
        "seconds": round(seconds, 3),
    }
