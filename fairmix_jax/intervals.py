"""Intervals over test images: of the average, and of the extremes without their bias.

The smallest of several noisy accuracies lies below the smallest true one, and the largest
gap above the true gap, the more so the more classes are nearly tied; resampling the images
copies that bias instead of removing it. Here a value is in the interval if the observed
statistic is not surprising where that value is true: a test for every value, inverted. The
distribution of the statistic is exact, from binomial counts. What the test has to assume
about the other classes is estimated from their observed accuracies. That costs exactness:
in simulations (`tests/test_intervals.py`, ten classes) 95 % intervals cover 93 to 97.5 %,
with all classes equal, two or three nearly tied, or one apart.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

_HALVINGS = 24
_RESAMPLES = 10_000
_ROUNDING = 1e-9


class Interval(NamedTuple):
    """An estimate with its interval.

    Attributes:
      low, high: of the interval.
      estimate: half of the distribution lies on either side where this value is true, so
        it is too high as often as too low.
    """

    low: float
    estimate: float
    high: float


def average(class_total: ArrayLike, class_correct: ArrayLike, *, level: float = 0.95) -> Interval:
    """Returns the percentile interval of the average over classes.

    Images are resampled with replacement within their class, 10,000 times, which for
    counts is a binomial draw a class. The draw is fixed, so equal counts give equal
    intervals. At an average of exactly 0 or 1, where resampling sees no variation, the end
    is that of a proportion of all images (Clopper and Pearson 1934).

    Args:
      class_total, class_correct, level: as in `worst_class`.

    Reference: Efron and Tibshirani 1993, chapter 13.
    """
    total, accuracy = _present(class_total, class_correct)
    draws = np.random.default_rng(0).binomial(total, accuracy, (_RESAMPLES, len(total)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.mean(draws / total, axis=1), (tail, 1 - tail))
    edge = tail ** (1 / total.sum())
    high = 1 - edge if not accuracy.any() else high
    low = edge if accuracy.all() and accuracy.min() == 1 else low
    return Interval(float(low), float(accuracy.mean()), float(high))


def worst_class(
    class_total: ArrayLike, class_correct: ArrayLike, *, level: float = 0.95
) -> Interval:
    """Returns the interval of the smallest class accuracy.

    Guarantees: `low <= estimate <= high`, all in [0, 1]; with one class it is the mid-P
    interval of a binomial proportion; permuting the classes changes nothing.

    Args:
      class_total: `[K]`, test images of each class; classes without any are left out.
      class_correct: `[K]`, of these correct.
      level: of the interval.
    """
    return _invert(lambda value: worst_class_level(class_total, class_correct, value), level)


def gap(class_total: ArrayLike, class_correct: ArrayLike, *, level: float = 0.95) -> Interval:
    """Returns the interval of the largest class accuracy minus the smallest.

    Guarantees and arguments as in `worst_class`; with one class it is [0, 0].
    """
    if np.count_nonzero(class_total) == 1:
        return Interval(0.0, 0.0, 0.0)
    return _invert(lambda value: gap_level(class_total, class_correct, value), level)


def worst_class_level(class_total: ArrayLike, class_correct: ArrayLike, value: float) -> float:
    """Returns P(smaller) + P(equal) / 2 for the observed minimum, if `value` is the true one.

    The class that is observed to be the worst has the accuracy `value`; the others have
    theirs less half a standard error, and at least `value`. (Observed accuracies of nearly
    tied classes spread more than the true ones; the half is calibrated by simulation.) Falls
    as `value` rises.
    """
    total, accuracy = _present(class_total, class_correct)
    error = np.sqrt(accuracy * (1 - accuracy) / total)
    truth = np.maximum(accuracy - error / 2, value)
    truth[np.argmin(accuracy)] = value
    observed = accuracy.min()
    at_least = np.ceil(observed * total - _ROUNDING) - 1
    above = np.floor(observed * total + _ROUNDING)
    tails = [
        np.prod(np.where(count < 0, 1.0, special.bdtrc(np.maximum(count, 0), total, truth)))
        for count in (at_least, above)
    ]
    return float(1 - (tails[0] + tails[1]) / 2)


def gap_level(class_total: ArrayLike, class_correct: ArrayLike, value: float) -> float:
    """Returns P(smaller) + P(equal) / 2 for the observed gap, if `value` is the true one.

    The observed accuracies are clipped to a range of that width in the middle of their own,
    or their two extremes moved apart to it. Falls as `value` rises, but for wiggles where
    classes have a handful of images.
    """
    total, accuracy = _present(class_total, class_correct)
    low, high = accuracy.min(), accuracy.max()
    spread = (high - low - value) / 2
    bottom = float(np.clip(low + spread, 0, 1 - value))
    truth = np.clip(accuracy, bottom, bottom + value)
    if spread < 0:
        highest = len(truth) - 1 - np.argmax(accuracy[::-1])  # not the lowest, if all are equal
        truth[np.argmin(accuracy)], truth[highest] = bottom, bottom + value
    table = _cumulative(total, truth)
    values = np.unique(np.concatenate([np.arange(n + 1) / n for n in np.unique(total)]))
    within = [_within(table, total, values, high - low + shift) for shift in (1e-7, -1e-7)]
    return float(sum(within) / 2)


def _within(table: np.ndarray, total: np.ndarray, values: np.ndarray, width: float) -> float:
    """P(largest - smallest <= width), summed over what the smallest may be."""
    classes = np.arange(len(total))
    below = np.ceil(values[:, None] * total - _ROUNDING).astype(int)
    through = np.floor(values[:, None] * total + _ROUNDING).astype(int) + 1
    upper = np.floor((values[:, None] + width) * total + _ROUNDING).astype(int) + 1
    upper = np.clip(upper, 0, total + 1)
    chance = [
        np.prod(np.maximum(table[upper, classes] - table[start, classes], 0.0), axis=1)
        for start in (below, through)
    ]
    return float(np.sum(chance[0] - chance[1]))


def _cumulative(total: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`[max n + 2, K]`; row `k` is P(count < k)."""
    count = np.minimum(np.arange(total.max() + 1)[:, None], total)
    return np.concatenate([np.zeros((1, len(total))), special.bdtr(count, total, truth)])


def _present(class_total: ArrayLike, class_correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and accuracies of the classes that have test images."""
    total, correct = np.asarray(class_total), np.asarray(class_correct)
    return total[total > 0], correct[total > 0] / total[total > 0]


def _invert(level_at: Callable[[float], float], level: float) -> Interval:
    """Values at which a falling function passes `(1 + level) / 2`, 1/2, `(1 - level) / 2`."""

    def crossing(target: float) -> float:
        low, high = 0.0, 1.0
        if level_at(low) <= target:
            return low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if level_at(middle) > target else (low, middle)
        return (low + high) / 2

    return Interval(*(crossing(target) for target in ((1 + level) / 2, 0.5, (1 - level) / 2)))
