"""Differences between methods, from runs that are paired by seed and tested on the same images.

What differs from run to run is estimated from the runs, with Student's t, since a few runs
cannot be resampled: three of them, resampled, cover some 75 % where they claim 95. What the
runs share because they share the images comes from a bootstrap that resamples the images of
all runs alike, in which the covariance between two pairs of runs is exactly that part.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from fairmix_jax.classwise.intervals import TAIL, Interval, hidden
from fairmix_jax.classwise.metrics import STATISTICS, Statistic, average

_RESAMPLES = 1_000
_PERMUTATIONS = 10_000
_NOTHING = 1e-6

ClassVerdicts = Sequence[np.ndarray]
"""For each class `[S, n]` bool: whether each of `S` runs is right on each of its images."""


class Difference(NamedTuple):
    """A difference between methods, with the two-sided p-value of no difference."""

    interval: Interval
    p_value: float


class Noise(NamedTuple):
    """The variance of one run of a method in a statistic, and that estimate's freedom."""

    variance: float
    freedom: int


def differences(verdicts: ClassVerdicts, baseline: ClassVerdicts) -> dict[str, Difference]:
    """Returns the mean difference of each of `STATISTICS` between paired runs of two methods.

    Run `s` of one is paired with run `s` of the other: give them equal seeds. With one run
    each it compares those two networks, not the methods: the interval is that of the
    images, the p-value that of `permutation_test`. Where nothing varies, as between worst
    classes of 0 %, the interval is what no event among `n` images leaves possible (`3 / n`): those
    of the smallest class, and for the average those of all.

    Extremes are those observed: their bias cancels as far as the classes of both methods are
    tied alike. A method that ties more classes at the bottom looks worse than it is, by up to
    one or two standard errors of a class; compare with `metrics.over_seeds`, which has none.
    Raises as `contrast` does, of which these are the ones with weights 1 and -1.
    """
    both = _aligned([verdicts, baseline])
    resampled = _resampled(both)
    return {
        name: contrast(both, (1, -1), statistic, resampled=resampled)
        for name, statistic in STATISTICS.items()
    }


def contrast(
    methods: Sequence[ClassVerdicts], weights: Sequence[float], statistic: Statistic, *,
    noise: Noise | None = None, resampled: np.ndarray | None = None,
) -> Difference:  # fmt: skip
    """Returns the mean over runs of a weighted sum of methods, e.g. a difference of differences.

    Args:
      methods: verdicts of `S` runs each, on the same images; run `s` of all belong together.
      weights: one a method; they sum to zero.
      statistic: one of `STATISTICS`, or another of class accuracies.
      noise: how runs of any method differ, which counts if these runs differ less; of no use
        where there is one run each. From these runs alone if `None`.
      resampled: `[R, M S, K]`, class accuracies of the methods' runs one after another, where
        images are resampled; drawn here if `None`. Statistics may share it, for its price.

    Raises:
      ValueError: the methods do not have equal numbers of runs and images, the weights do not
        sum to zero, or there is one run each of other than two methods.
    """
    if len(weights) != len(methods) or sum(weights):
        raise ValueError(f"weights={tuple(weights)} must be one a method and sum to zero")
    methods = _aligned(methods)
    resampled = _resampled(methods) if resampled is None else resampled
    scale = np.asarray(weights, float)
    values = scale @ np.stack([_observed(verdicts, statistic) for verdicts in methods])
    by_method = statistic(resampled).reshape(len(resampled), len(methods), len(values))
    replicates = np.einsum("m,rms->rs", scale, by_method)
    centre, largest = float(values.mean()), float(np.abs(scale).sum())
    if statistic in STATISTICS.values():  # which are not negative
        largest /= 2
    if len(values) == 1:
        if len(methods) != 2:
            raise ValueError("a contrast of more than two methods needs several runs of each")
        half = float(special.ndtri(1 - TAIL) * replicates.std(ddof=1))
        p_value = permutation_test(*methods, statistic)
    else:
        own = Noise(float(values.var(ddof=1)), len(values) - 1)
        if noise is not None:
            pooled = float(scale @ scale) * noise.variance
            own = noise._replace(variance=max(pooled, own.variance))
        half, p_value = _students_t(values, replicates, own)
    if half < _NOTHING:
        sizes = np.array([right.shape[1] for right in methods[0]])
        sizes = sizes if statistic is average else sizes.min(keepdims=True)
        half = hidden(sizes, 2 * TAIL) / len(sizes)
        p_value = (1 - min(abs(centre), 1.0)) ** float(np.log(2 * TAIL) / np.log1p(-half))
    interval = Interval(max(centre - half, -largest), centre, min(centre + half, largest))
    return Difference(interval, p_value)


def pooled_noise(methods: Sequence[ClassVerdicts], statistic: Statistic) -> Noise:
    """Returns how runs differ, from several methods together.

    Of `M` methods with `S` runs each it is what remains once the mean of each method and that
    of each seed is taken away: `(M - 1)(S - 1)` degrees of freedom, where a contrast of its
    own runs has `S - 1`. With three seeds that decides whether an interval says anything. It
    takes methods to vary alike. A contrast whose own runs vary more has their variance, with the
    freedom of all: too sure of itself where one method varies several times as much as the
    others (of eight methods with three seeds, one varying three times as much: p < 0.05 in 1 of 8
    of its contrasts), so reports show the p-value of its own runs, too.
    Raises a `ValueError` for fewer than two methods or runs, or if runs or images differ.
    """
    values = np.stack([_observed(verdicts, statistic) for verdicts in _aligned(methods)])
    if min(values.shape) < 2:
        raise ValueError(f"{values.shape[0]} methods of {values.shape[1]} runs; give two or more")
    rest = values - values.mean(0, keepdims=True) - values.mean(1, keepdims=True) + values.mean()
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    return Noise(float((rest**2).sum() / freedom), freedom)


def permutation_test(
    verdicts: ClassVerdicts, baseline: ClassVerdicts, statistic: Statistic
) -> float:
    """Returns the two-sided p-value of equal networks, from two networks on the same images.

    Under the null hypothesis the verdicts of the two on an image may be swapped. Only
    images on which they differ matter; swapping them at random is a binomial draw a class,
    10,000 times. Exact for that hypothesis: it is below `p` with probability at most `p`.
    Raises a `ValueError` for more than one run of each, or other images.
    """
    pairs = list(zip(*_aligned([verdicts, baseline]), strict=True))
    if any(len(a) != 1 for a, _ in pairs):
        raise ValueError("permutation_test compares two networks; give one run of each")
    counts = [[a.size, (a & b).sum(), (a & ~b).sum(), (b & ~a).sum()] for a, b in pairs]
    sizes, both, first, second = np.array(counts).T

    def difference(gained: np.ndarray) -> np.ndarray:
        lost = first + second - gained
        return statistic((both + gained) / sizes) - statistic((both + lost) / sizes)

    drawn = np.random.default_rng(0).binomial(first + second, 0.5, (_PERMUTATIONS, len(sizes)))
    extreme = np.abs(difference(drawn)) >= abs(difference(first)) - 1e-12
    return float((1 + extreme.sum()) / (1 + _PERMUTATIONS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number, none smaller than before.

    Rejecting those below 5 % makes any false rejection at all at most 5 % likely.

    Reference: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    values = np.array(p_values, float)
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    values[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return values.tolist()


def _students_t(values: np.ndarray, replicates: np.ndarray, noise: Noise) -> tuple[float, float]:
    """Half-width of the interval of a mean over runs, and the p-value of it being zero.

    The degrees of freedom of the sum of the two variances are Satterthwaite's (1946). `values`
    are `[S]`, of each run, `replicates` `[R, S]`, of each resampling of the images.
    """
    runs, centre = len(values), abs(float(values.mean()))
    covariance = np.cov(replicates.T)
    own = float(np.trace(covariance)) / runs
    shared = max((float(covariance.sum()) - runs * own) / (runs * (runs - 1)), 0.0)
    between = noise.variance / runs
    if between < _NOTHING**2:  # counts coincide; their images' own noise says how little that is
        between = max(own - shared, 0.0) / runs
    variance = between + shared
    if variance < _NOTHING**2:
        return 0.0, 1.0
    freedom = min(variance**2 / max(between**2 / noise.freedom, 1e-300), 1e6)
    half = special.stdtrit(freedom, 1 - TAIL) * variance**0.5
    return float(half), float(2 * special.stdtr(freedom, -centre / variance**0.5))


def _resampled(methods: Sequence[ClassVerdicts]) -> np.ndarray:
    """`[R, M S, K]`: class accuracies of each run where images are resampled in their class."""
    accuracies = [
        _weights(number, parts[0].shape[1]) @ np.concatenate(parts).T.astype(np.float32)
        for number, parts in enumerate(zip(*methods, strict=True))
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


def _aligned(methods: Sequence[ClassVerdicts]) -> list[list[np.ndarray]]:
    """The methods' verdicts on classes that have images."""
    groups = [[np.atleast_2d(v) for v in verdicts] for verdicts in methods]
    if any([v.shape for v in group] != [v.shape for v in groups[0]] for group in groups):
        remedy = "give as many runs of each, on the same images"
        raise ValueError(f"the methods differ in runs or images; {remedy}")
    found = [[v for v in group if v.size] for group in groups]
    if not found or not found[0] or any(v.dtype != bool for group in found for v in group):
        raise ValueError("there are no verdicts to compare; give [S, n] bool of each class")
    return found
