"""Methods of several training seeds: what their mean is, with intervals.

Runs of one method differ by their seeds, and all are tested on the same images, which are a
sample too. A mean over runs therefore errs in two ways: by what differs from run to run, and
by what the runs share because they share the images. The first is estimated from the runs
themselves, with Student's t, the second from the images, by the exact intervals of
`intervals`. Differences between methods are in `paired`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax import intervals
from fairmix_jax.intervals import Interval

Statistic = Callable[[np.ndarray], np.ndarray]
"""Class accuracies `[..., K]` to numbers `[...]`."""


def average(accuracies: np.ndarray) -> np.ndarray:
    """Returns the mean over classes."""
    return accuracies.mean(axis=-1)


def worst_class(accuracies: np.ndarray) -> np.ndarray:
    """Returns the smallest class accuracy."""
    return accuracies.min(axis=-1)


def gap(accuracies: np.ndarray) -> np.ndarray:
    """Returns the largest class accuracy minus the smallest."""
    return accuracies.max(axis=-1) - accuracies.min(axis=-1)


def easy_minus_hard(easy: Sequence[int], hard: Sequence[int]) -> Statistic:
    """Returns the mean accuracy of some classes minus that of others, a gap with its sign."""

    def statistic(accuracies: np.ndarray) -> np.ndarray:
        return accuracies[..., list(easy)].mean(axis=-1) - accuracies[..., list(hard)].mean(axis=-1)

    return statistic


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
