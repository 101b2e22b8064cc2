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

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

TAIL = (1 - 0.95) / 2
"""The probability on either side of every interval."""

_RESAMPLES = 10_000
_ROUNDING = 1e-9
_TINY = 1e-40


class Interval(NamedTuple):
    """An estimate with its 95 % interval.

    Where `estimate` is true, half of the distribution lies on either side, so it is too high as
    often as too low.
    """

    low: float
    estimate: float
    high: float


def average(class_total: ArrayLike, class_correct: ArrayLike) -> Interval:
    """Returns the percentile interval of the average over classes.

    Images are resampled with replacement within their class, 10,000 times, which for counts is a
    binomial draw a class. The draw is fixed, so equal counts give equal intervals. Of classes with
    accuracy 0 or 1 all resamples are equal: what these may hide is added in quadrature, exact where
    all are 0 or all are 1. Arguments as in `worst_class`.

    Reference: Efron and Tibshirani 1993, chapter 13.
    """
    total, accuracy = _present(class_total, class_correct)
    draws = np.random.default_rng(0).binomial(total, accuracy, (_RESAMPLES, len(total)))
    ends = np.quantile(np.mean(draws / total, axis=1), (TAIL, 1 - TAIL))
    centre, reach = accuracy.mean(), [hidden(total[accuracy == end], TAIL) for end in (1, 0)]
    below, above = np.hypot(np.abs(ends - centre), np.divide(reach, len(total)))
    return Interval(float(centre - below), float(centre), float(centre + above))


def hidden(sizes: np.ndarray, tail: float) -> float:
    """Returns the largest sum of error rates that leaves no error in any image the chance `tail`.

    Of all rates with `prod (1 - e_c)^n_c = tail` the sum is largest where `1 - e_c` is
    `min(1, n_c / rate)`. One class gives the bound of Clopper and Pearson (1934), classes of equal
    size that of all their images together.
    """
    sizes = np.sort(sizes).astype(float)
    known = np.cumsum(sizes)
    rates = np.exp((np.cumsum(sizes * np.log(sizes)) - np.log(tail)) / known)
    return float(np.sum(1 - np.minimum(sizes / rates.min(initial=np.inf), 1)))


def worst_class(class_total: ArrayLike, class_correct: ArrayLike) -> Interval:
    """Returns the interval of the smallest class accuracy.

    Takes `[K]` test images of each class, where classes without any are left out, and `[K]`, of
    these correct.

    Guarantees: `low <= estimate <= high`, all in [0, 1]; with one class it is the mid-P
    interval of a binomial proportion; permuting the classes changes nothing.
    """
    return _invert(lambda value: worst_class_level(class_total, class_correct, value))


def gap(class_total: ArrayLike, class_correct: ArrayLike) -> Interval:
    """Returns the interval of the largest class accuracy minus the smallest.

    Guarantees and arguments as in `worst_class`; with one class it is [0, 0].
    """
    if np.count_nonzero(class_counts(class_total, class_correct)[0]) == 1:
        return Interval(0.0, 0.0, 0.0)
    return _invert(_gap_level(class_total, class_correct))


def by_class(class_total: ArrayLike, class_correct: ArrayLike) -> list[Interval]:
    """Returns the mid-P interval of each class's accuracy; arguments as in `worst_class`.

    A class without images gets [0, 1]. The lowest of these intervals is not that of the worst
    class, which the same images picked out: for that there is `worst_class`.
    """
    counts = zip(np.asarray(class_total).tolist(), np.asarray(class_correct).tolist(), strict=True)
    return [worst_class([n], [right]) if n else Interval(0.0, 0.5, 1.0) for n, right in counts]


INTERVALS = {"average": average, "worst_class": worst_class, "gap": gap}
"""The interval of each of `metrics.STATISTICS`, from `(class_total, class_correct)`."""


def worst_class_level(class_total: ArrayLike, class_correct: ArrayLike, value: float) -> float:
    """Returns P(smaller) + P(equal) / 2 for the observed minimum, if `value` is the true one.

    The class that is observed to be the worst has the accuracy `value`; the others have theirs less
    half a standard error, and at least `value`. (Observed accuracies of nearly tied classes spread
    more than the true ones; the half is calibrated by simulation.) Falls as `value` rises.
    """
    total, accuracy = _present(class_total, class_correct)
    error = np.sqrt(accuracy * (1 - accuracy) / total)
    truth = np.maximum(accuracy - error / 2, value)
    truth[np.argmin(accuracy)] = value
    observed = accuracy.min() * total
    ends = np.ceil(observed - _ROUNDING) - 1, np.floor(observed + _ROUNDING)
    tails = [np.prod(special.bdtrc(end, total, truth)) for end in ends]  # at least, and above
    return float(1 - (tails[0] + tails[1]) / 2)


def gap_level(class_total: ArrayLike, class_correct: ArrayLike, value: float) -> float:
    """Returns P(smaller) + P(equal) / 2 for the observed gap, if `value` is the true one.

    The observed accuracies are clipped to a range of that width in the middle of their own,
    or their two extremes moved apart to it. Falls as `value` rises, but for wiggles where
    classes have a handful of images.
    """
    return _gap_level(class_total, class_correct)(value)


def _gap_level(class_total: ArrayLike, class_correct: ArrayLike) -> Callable[[float], float]:
    """`gap_level` of any value; what does not depend on the value is computed once."""
    total, accuracy = _present(class_total, class_correct)
    low, high = accuracy.min(), accuracy.max()
    sizes, owner = np.unique(total, return_inverse=True)
    members = [(n, np.flatnonzero(owner == number)) for number, n in enumerate(sizes)]
    sweeps = [_sweep(sizes, high - low + shift) for shift in (1e-7, -1e-7)]

    def level(value: float) -> float:
        spread = (high - low - value) / 2
        bottom = float(np.clip(low + spread, 0, 1 - value))
        truth = np.clip(accuracy, bottom, bottom + value)
        if spread < 0:
            highest = len(truth) - 1 - np.argmax(accuracy[::-1])  # not the lowest, if all are equal
            truth[np.argmin(accuracy)], truth[highest] = bottom, bottom + value
        below = [np.zeros((n + 2, len(chosen))) for n, chosen in members]
        for table, (n, chosen) in zip(below, members, strict=True):  # row `k` is P(count < k)
            table[1:] = special.bdtr(np.arange(n + 1)[:, None], n, truth[chosen])
        return round(sum(within(below) for within in sweeps) / 2, 12)  # 1/2 is to be 1/2

    return level


def _sweep(sizes: np.ndarray, width: float) -> Callable[[Sequence[np.ndarray]], float]:
    """P(largest - smallest <= width), from tables with P(count < k) of the classes of each size.

    A window of that width passes over all accuracies that a class can have; an event is that a
    size's next count comes in at its top, or is about to leave at its bottom, as the smallest of
    all. The probability that all are inside is a product over sizes of which an event changes one
    factor, so the work grows with the images, and not with images times classes.
    """
    counts, places, kinds = [], [], []
    for n in sizes:
        count, leaves = np.arange(n + 1), np.arange(2 * n + 2) > n
        place = np.concatenate([(count - _ROUNDING) / n - width, count / n])
        own = np.lexsort((leaves, place))
        places.append(place[own])
        kinds.append(leaves[own])
        counts.append((np.cumsum(~kinds[-1]), np.cumsum(kinds[-1])))  # have come in, and left
    first, leaves = np.cumsum([0, *map(len, kinds[:-1])]), np.concatenate(kinds)
    order = np.lexsort((leaves, np.concatenate(places)))

    def within(tables: Sequence[np.ndarray]) -> float:
        factors = [
            np.prod(np.maximum(table[entered] - table[left], 0.0), axis=1)
            for table, (entered, left) in zip(tables, counts, strict=True)
        ]
        logs = np.log(np.maximum(np.concatenate(factors), _TINY))
        change = np.diff(logs, prepend=0.0)
        change[first] = logs[first] - np.log(_TINY)
        total = np.cumsum(change[order], dtype=np.longdouble)
        inside = np.exp(total + len(sizes) * np.log(np.longdouble(_TINY)))
        return float(np.sum(-np.diff(inside, prepend=0.0)[leaves[order]]))

    return within


def class_counts(class_total: ArrayLike, class_correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[K]` images of each class and `[..., K]`, of these correct, as arrays.

    Raises a `ValueError` for no images at all, or more correct ones than there are.
    """
    total, correct = np.asarray(class_total), np.asarray(class_correct)
    fits = total.ndim == 1 and correct.shape[-1:] == total.shape and correct.size
    is_whole = np.issubdtype(total.dtype, np.integer) and (correct == np.floor(correct)).all()
    if not (fits and is_whole and total.any() and ((correct >= 0) & (correct <= total)).all()):
        given = f"class_correct {correct.tolist()} of class_total {total.tolist()}"
        raise ValueError(f"{given:.300} are not class counts; give 0 <= correct <= total, [K] each")
    return total.astype(np.int64), correct.astype(np.int64)  # of narrow ones sums would wrap


def _present(class_total: ArrayLike, class_correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and accuracies of the classes that have test images."""
    total, correct = class_counts(class_total, class_correct)
    return total[total > 0], correct[total > 0] / total[total > 0]


def _invert(level_at: Callable[[float], float]) -> Interval:
    """Values at which a falling function passes `1 - TAIL`, 1/2 and `TAIL`."""
    level_at = functools.cache(level_at)

    def crossing(target: float, start: float) -> float:
        if level_at(start) <= target or level_at(1.0) > target:
            return start if level_at(start) <= target else 1.0
        return optimize.brentq(lambda value: level_at(value) - target, start, 1.0, xtol=1e-8)

    low = crossing(1 - TAIL, 0.0)
    return Interval(low, estimate := crossing(0.5, low), crossing(TAIL, estimate))
