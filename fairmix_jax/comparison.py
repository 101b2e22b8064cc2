"""Comparing methods: intervals over training seeds and test images, paired on the same images.

Runs of one method differ by their seeds, and all are tested on the same images, which are a
sample too. A mean over runs therefore errs in two ways: by what differs from run to run, and
by what the runs share because they share the images. The first is estimated from the runs
themselves, with Student's t, since a few runs cannot be resampled: three of them, resampled,
cover some 75 % where they claim 95. The second comes from the images: for one method from
the exact intervals of `intervals`; for a difference of two from a bootstrap that resamples
the images of all runs alike, in which the covariance between two pairs of runs is exactly
the part that they share.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax import intervals
from fairmix_jax.intervals import Interval

_RESAMPLES = 1_000
_PERMUTATIONS = 10_000
_NOTHING = 1e-6

Statistic = Callable[[np.ndarray], np.ndarray]
"""Class accuracies `[..., K]` to numbers `[...]`."""
ClassVerdicts = Sequence[np.ndarray]
"""For each class `[S, n]` bool: whether each of `S` runs is right on each of its images."""


class Difference(NamedTuple):
    """A difference between two methods.

    Attributes:
      interval: with its estimate.
      p_value: two-sided, of no difference.
    """

    interval: Interval
    p_value: float


def average(accuracies: np.ndarray) -> np.ndarray:
    """Returns the mean over classes."""
    return accuracies.mean(axis=-1)


def worst_class(accuracies: np.ndarray) -> np.ndarray:
    """Returns the smallest class accuracy."""
    return accuracies.min(axis=-1)


def gap(accuracies: np.ndarray) -> np.ndarray:
    """Returns the largest class accuracy minus the smallest."""
    return accuracies.max(axis=-1) - accuracies.min(axis=-1)


STATISTICS: dict[str, Statistic] = {"average": average, "worst_class": worst_class, "gap": gap}


def over_seeds(
    class_total: ArrayLike, class_correct: ArrayLike, statistic: str, *, level: float = 0.95
) -> Interval:
    """Returns the mean of a statistic over runs, with an interval for seeds and images.

    The estimate is the mean of the runs' estimates without the bias of extremes. On either
    side the interval adds in quadrature what the runs say (Student's t of their values) and
    what the images say (the mean over runs of the distance to the end of its interval), as
    Zou and Donner (2008, Statistics in Medicine 27, 1693-1702) do for sums. The images
    count in full, as if all runs erred on the same ones, so it covers at least what it
    claims. A single run keeps the interval of its images, which says nothing about seeds.

    Args:
      class_total: `[K]`, test images of each class.
      class_correct: `[S, K]`, of these correct in each of `S` runs.
      statistic: a name in `STATISTICS`.
      level: of the interval.
    """
    total, correct = np.asarray(class_total), np.atleast_2d(class_correct)
    of_images = {
        "average": intervals.average, "worst_class": intervals.worst_class, "gap": intervals.gap,
    }[statistic]  # fmt: skip
    ends = np.array([of_images(total, row, level=level) for row in correct])
    low, centre, high = (float(value) for value in ends.mean(axis=0))
    if len(ends) == 1:
        return Interval(low, centre, high)
    present = total > 0
    values = STATISTICS[statistic](correct[:, present] / total[present])
    error = values.std(ddof=1) / len(values) ** 0.5
    runs = float(special.stdtrit(len(values) - 1, (1 + level) / 2) * error)
    return Interval(
        max(centre - float(np.hypot(runs, centre - low)), 0.0),
        centre,
        min(centre + float(np.hypot(runs, high - centre)), 1.0),
    )


def classes_over_seeds(
    class_total: ArrayLike, class_correct: ArrayLike, *, level: float = 0.95
) -> np.ndarray:
    """Returns low end, mean and high end of each class's accuracy over runs, `[3, K]`.

    As `over_seeds`, with Jeffreys' interval (Brown, Cai and DasGupta 2001) for the images;
    NaN for classes without images.

    Args:
      class_total, class_correct, level: as in `over_seeds`.
    """
    total, correct = np.asarray(class_total), np.atleast_2d(class_correct)
    values = correct / np.where(total > 0, total, np.nan)
    tail = (1 - level) / 2
    low = special.betaincinv(correct + 0.5, total - correct + 0.5, tail)
    high = special.betaincinv(correct + 0.5, total - correct + 0.5, 1 - tail)
    below = np.where(correct > 0, values - low, 0.0).mean(axis=0)
    above = np.where(correct < total, high - values, 0.0).mean(axis=0)
    runs, centre = np.zeros(len(total)), values.mean(axis=0)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / len(values) ** 0.5
        runs = special.stdtrit(len(values) - 1, 1 - tail) * error
    ends = centre - np.hypot(runs, below), centre, centre + np.hypot(runs, above)
    return np.clip(np.stack(ends), 0.0, 1.0)


def differences(
    verdicts: ClassVerdicts, baseline: ClassVerdicts, *, level: float = 0.95
) -> dict[str, Difference]:
    """Returns `difference` for all of `STATISTICS`, for little more than the price of one."""
    pairs = _pairs(verdicts, baseline)
    resampled = _resampled([np.concatenate(pair) for pair in pairs])
    return {
        name: _difference(pairs, resampled, statistic, level)
        for name, statistic in STATISTICS.items()
    }


def difference(
    verdicts: ClassVerdicts, baseline: ClassVerdicts, statistic: Statistic, *, level: float = 0.95
) -> Difference:
    """Returns the mean difference of a statistic between paired runs of two methods.

    Run `s` of one is paired with run `s` of the other: give them equal seeds. With one run
    each it compares those two networks, not the methods: the interval is that of the
    images, the p-value that of `permutation_test`. Where nothing varies, as between worst
    classes of 0 %, the interval is what no event among `n` images leaves possible (`3 / n`).

    Extremes are those observed: their bias cancels as far as the classes of both methods are
    tied alike. A method that ties more classes at the bottom looks worse than it is, by up to
    one or two standard errors of a class; compare it with `over_seeds`, which has no bias.

    Args:
      verdicts, baseline: of `S` runs each, on the same images.
      statistic: one of `STATISTICS`, or another of class accuracies.
      level: of the interval.

    Raises:
      ValueError: the two do not have equal numbers of runs and images.
    """
    pairs = _pairs(verdicts, baseline)
    resampled = _resampled([np.concatenate(pair) for pair in pairs])
    return _difference(pairs, resampled, statistic, level)


def _difference(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    resampled: np.ndarray,
    statistic: Statistic,
    level: float,
) -> Difference:
    """See `difference`; `resampled` has the class accuracies of both, one after the other."""
    verdicts, baseline = [a for a, _ in pairs], [b for _, b in pairs]
    values = _observed(verdicts, statistic) - _observed(baseline, statistic)
    both = statistic(resampled)
    replicates = both[:, : len(values)] - both[:, len(values) :]
    centre = float(values.mean())
    if len(values) == 1:
        half = float(special.ndtri((1 + level) / 2) * replicates.std(ddof=1))
        p_value = permutation_test(verdicts, baseline, statistic)
    else:
        half, p_value = _spread(values, replicates, level)
    if half < _NOTHING:
        size = min(right.shape[1] for right in verdicts)
        half, p_value = 1 - (1 - level) ** (1 / size), (1 - min(abs(centre), 1.0)) ** size
    interval = Interval(max(centre - half, -1.0), centre, min(centre + half, 1.0))
    return Difference(interval, p_value)


def permutation_test(
    verdicts: ClassVerdicts, baseline: ClassVerdicts, statistic: Statistic, *, seed: int = 0
) -> float:
    """Returns the two-sided p-value of equal networks, from two networks on the same images.

    Under the null hypothesis the verdicts of the two on an image may be swapped. Only
    images on which they differ matter; swapping them at random is a binomial draw a class,
    10,000 times. Exact for that hypothesis: it is below `p` with probability at most `p`.

    Args:
      verdicts, baseline: of one run each, on the same images.
      statistic: one of `STATISTICS`.
      seed: of the swaps.

    Raises:
      ValueError: more than one run, or other images.
    """
    pairs = _pairs(verdicts, baseline)
    if any(len(a) != 1 for a, _ in pairs):
        raise ValueError("permutation_test compares two networks; give one run of each")
    sizes = np.array([a.shape[1] for a, _ in pairs])
    right = np.array([[a.sum(), b.sum()] for a, b in pairs])
    differing = np.array([(a != b).sum() for a, b in pairs])
    shared = np.array([(a & b).sum() for a, b in pairs])
    rng = np.random.default_rng(seed)
    swapped = rng.binomial(differing, 0.5, (_PERMUTATIONS, len(sizes)))
    drawn = statistic((shared + swapped) / sizes) - statistic(
        (shared + differing - swapped) / sizes
    )
    observed = statistic(right[:, 0] / sizes) - statistic(right[:, 1] / sizes)
    extreme = np.abs(drawn) >= abs(observed) - 1e-12
    return float((1 + extreme.sum()) / (1 + _PERMUTATIONS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number, none smaller than before.

    Rejecting those below 5 % makes any false rejection at all at most 5 % likely.

    Reference: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted.tolist()


def _spread(values: np.ndarray, replicates: np.ndarray, level: float) -> tuple[float, float]:
    """Half-width of the interval of a mean over runs, and the p-value of it being zero.

    The degrees of freedom of the sum of the two variances are Satterthwaite's (1946).

    Args:
      values: `[S]`, of each run.
      replicates: `[R, S]`, of each resampling of the images.
      level: of the interval.
    """
    runs, centre = len(values), abs(float(values.mean()))
    covariance = np.cov(replicates.T)
    own = float(np.trace(covariance)) / runs
    shared = max((float(covariance.sum()) - runs * own) / (runs * (runs - 1)), 0.0)
    between = float(values.var(ddof=1)) / runs
    if between < _NOTHING**2:  # counts coincide; their images' own noise says how little that is
        between = max(own - shared, 0.0) / runs
    variance = between + shared
    if variance < _NOTHING**2:
        return 0.0, 1.0
    freedom = min(variance**2 / max(between**2 / (runs - 1), 1e-300), 1e6)
    half = special.stdtrit(freedom, (1 + level) / 2) * variance**0.5
    return float(half), float(2 * special.stdtr(freedom, -centre / variance**0.5))


def _resampled(verdicts: ClassVerdicts) -> np.ndarray:
    """`[R, S, K]`: class accuracies of each run where images are resampled in their class."""
    accuracies = [
        _weights(number, right.shape[1]) @ right.T.astype(np.float32)
        for number, right in enumerate(verdicts)
    ]
    return np.stack(accuracies, axis=-1).astype(float)


@functools.lru_cache(maxsize=1024)
def _weights(number: int, size: int) -> np.ndarray:
    """`[R, n]`: the share of each image of a class in each resampling."""
    rng = np.random.default_rng((number, size))
    counts = rng.multinomial(size, np.full(size, 1 / size), _RESAMPLES)
    return (counts / size).astype(np.float32)


def _observed(verdicts: ClassVerdicts, statistic: Statistic) -> np.ndarray:
    return statistic(np.stack([right.mean(axis=1) for right in verdicts], axis=-1))


def _present(verdicts: ClassVerdicts) -> list[np.ndarray]:
    return [np.atleast_2d(v) for v in verdicts if np.size(v)]


def _pairs(verdicts: ClassVerdicts, baseline: ClassVerdicts) -> list[tuple[np.ndarray, np.ndarray]]:
    both = [[np.atleast_2d(v).shape for v in group] for group in (verdicts, baseline)]
    if both[0] != both[1]:
        raise ValueError(
            "the methods differ in runs or images; give as many runs of each, on the same images"
        )
    return list(zip(_present(verdicts), _present(baseline), strict=True))
