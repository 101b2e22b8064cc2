"""Class-wise accuracies and their uncertainty, from integer counts; NumPy, on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax import intervals

_RESAMPLES = 10_000


def summarize(class_total: ArrayLike, class_correct: ArrayLike) -> dict[str, float | int]:
    """Returns average, worst class, gap and standard deviation of the class accuracies.

    With `a_c` the accuracy of class `c`: `average` is the mean of `a_c` over classes (on a
    balanced test set the ordinary accuracy), `worst_class = min a_c`, `worst_class_index`
    its first position, `gap = max a_c - min a_c`, `std` the population standard deviation.
    Classes without examples do not count.

    Args:
      class_total: `[K]`, examples.
      class_correct: `[K]`, of these correct.

    Raises:
      ValueError: no examples at all, or more correct ones than there are.
    """
    total, correct = np.asarray(class_total), np.asarray(class_correct)
    if not total.any() or (correct > total).any() or (correct < 0).any():
        raise ValueError(f"{correct} of {total} correct are not class counts")
    accuracy = correct / np.where(total > 0, total, 1)
    return {
        **{name: float(value) for name, value in _statistics(accuracy, total > 0).items()},
        "worst_class_index": int(np.argmin(np.where(total > 0, accuracy, np.inf))),
    }


def _statistics(accuracy: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    accuracy = accuracy[..., present]
    worst = accuracy.min(axis=-1)
    return {
        "average": accuracy.mean(axis=-1),
        "worst_class": worst,
        "gap": accuracy.max(axis=-1) - worst,
        "std": accuracy.std(axis=-1),
    }


def average_interval(
    class_total: ArrayLike, class_correct: ArrayLike, *, level: float = 0.95
) -> list[float]:
    """Returns the percentile interval of the average over the test images, `[low, high]`.

    Images are resampled with replacement within their class, 10,000 times, which for
    counts is a binomial draw a class. The draw is fixed, so equal counts give equal
    intervals.

    Args:
      class_total, class_correct: as in `summarize`.
      level: of the interval.

    Reference: Efron and Tibshirani 1993, chapter 13.
    """
    total, correct = np.asarray(class_total), np.asarray(class_correct)
    total, correct = total[total > 0], correct[total > 0]
    draws = np.random.default_rng(0).binomial(total, correct / total, (_RESAMPLES, len(total)))
    averages = np.mean(draws / total, axis=1)
    tail = (1 - level) / 2
    return [float(q) for q in np.quantile(averages, (tail, 1 - tail))]


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Returns the mean and the half-width of its Student t interval over seeds.

    Args:
      values: one number a seed; with a single one the half-width is infinite.
      level: of the interval.
    """
    sample = np.asarray(values, float)
    if len(sample) < 2:
        return float(sample.mean()), float("inf")
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean()), float(special.stdtrit(len(sample) - 1, (1 + level) / 2) * error)


def result(
    class_total: ArrayLike,
    class_correct: ArrayLike,
    class_names: Sequence[str],
    *,
    seconds: float,
) -> dict[str, Any]:
    """Returns one attack's entry of `evaluation.json`.

    `ci95` covers the choice of test images, not the training seed. `worst_class` and `gap`
    are those of the counts, which are biased (see `intervals`); `corrected` has the
    estimates without that bias.
    """
    summary = summarize(class_total, class_correct)
    worst = int(summary.pop("worst_class_index"))
    extremes = {
        "worst_class": intervals.worst_class(class_total, class_correct),
        "gap": intervals.gap(class_total, class_correct),
    }
    return {
        "class_total": np.asarray(class_total).tolist(),
        "class_correct": np.asarray(class_correct).tolist(),
        **summary,
        "worst_class_name": class_names[worst],
        "corrected": {name: interval.estimate for name, interval in extremes.items()},
        "ci95": {"average": average_interval(class_total, class_correct)}
        | {name: [interval.low, interval.high] for name, interval in extremes.items()},
        "seconds": round(seconds, 3),
    }
