"""Class-wise accuracies and their uncertainty, from integer counts; NumPy, on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

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


def bootstrap(
    class_total: ArrayLike, class_correct: ArrayLike, *, level: float = 0.95
) -> dict[str, list[float]]:
    """Returns percentile intervals of average, worst class and gap over the test images.

    Images are resampled with replacement within their class, 10,000 times, which for
    counts is a binomial draw a class. The draw is fixed, so equal counts give equal
    intervals. The interval covers the choice of test images only, not the training seed;
    the minimum over classes is biased downwards, and so is its interval.

    Args:
      class_total, class_correct: as in `summarize`.
      level: of the interval.

    Returns: `{"average": [low, high], "worst_class": [low, high], "gap": [low, high]}`.

    Reference: Efron and Tibshirani 1993, chapter 13.
    """
    total, correct = np.asarray(class_total), np.asarray(class_correct)
    present = total > 0
    probability = correct / np.where(present, total, 1)
    draws = np.random.default_rng(0).binomial(total, probability, (_RESAMPLES, len(total)))
    resampled = _statistics(draws / np.where(present, total, 1), present)
    tail = (1 - level) / 2
    return {
        name: [float(q) for q in np.quantile(resampled[name], (tail, 1 - tail))]
        for name in ("average", "worst_class", "gap")
    }


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
    """Returns one attack's entry of `evaluation.json`."""
    summary = summarize(class_total, class_correct)
    worst = int(summary.pop("worst_class_index"))
    return {
        "class_total": np.asarray(class_total).tolist(),
        "class_correct": np.asarray(class_correct).tolist(),
        **summary,
        "worst_class_name": class_names[worst],
        "ci95": bootstrap(class_total, class_correct),
        "seconds": round(seconds, 3),
    }
