"""Accuracies of the classes at any biases, read from a margin table, and what they shall reach."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_SHARPNESS = 60.0  # of the smooth smallest and largest accuracy


class Reached(NamedTuple):
    """Accuracies of a choice of biases."""

    average: float  # mean of the class accuracies
    worst_class: float  # smallest class accuracy
    gap: float  # largest less smallest


class Margins(NamedTuple):
    """The rows that biases are fitted on.

    Attributes:
      table: `[N, K]` float64, of `margin_table`.
      labels: `[N]` int.
      weights: `[N]` float64, how much a row counts in the accuracy of its class.
    """

    table: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def take(self, rows: np.ndarray) -> "Margins":
        """Returns some of the rows."""
        return Margins(*(field[rows] for field in self))

    @property
    def totals(self) -> np.ndarray:
        """`[K]`, the weight of all rows of each class."""
        return np.bincount(self.labels, self.weights, minlength=self.table.shape[1])


class Objective(NamedTuple):
    """What the biases shall make large: functions of the accuracies of classes and of a number.

    Attributes:
      exact: of `[..., K]`, the value `[...]`.
      smooth: of `[K]`, a smooth version of it and its slope `[K]`.
      number: the second argument of both.
      leaves_alone: whether the model as trained is wanted, whatever the value.
    """

    exact: Callable[[np.ndarray, float], np.ndarray]
    smooth: Callable[[np.ndarray, float], tuple[float, np.ndarray]]
    number: float
    leaves_alone: bool = False

    def of(self, shares: np.ndarray) -> np.ndarray:
        """Returns its value, `[...]`, at accuracies `[..., K]`."""
        return self.exact(shares, self.number)


def margins(table: Any, labels: Any, *, clean: Any = None, clean_share: float = 0.0) -> Margins:
    """Returns checked margins: of a table, or of a mixture of a table and that of clean images.

    The accuracy of a class is then `(1 - clean_share)` times that under attack plus `clean_share`
    times the clean one.

    Raises:
      ValueError: the tables or labels do not fit each other, or a margin is not a number.
    """
    table, labels = np.asarray(table, np.float64), np.asarray(labels)
    if table.ndim != 2 or labels.shape != table.shape[:1] or not len(labels):
        raise ValueError(
            f"table {table.shape} and labels {labels.shape} do not fit; give [N, K] and [N]"
        )
    if not np.issubdtype(labels.dtype, np.integer) or not _are_own(table, labels):
        raise ValueError("labels do not fit the table; its columns of the true classes are inf")
    if not 0 <= clean_share <= 1 or (clean_share and clean is None):
        raise ValueError(f"{clean_share=} is outside [0, 1], or there is no table of clean margins")
    if not clean_share:
        return Margins(table, labels, np.ones(len(labels)))
    clean = np.asarray(clean, np.float64)
    if clean.shape != table.shape or not _are_own(clean, labels):
        raise ValueError(f"clean {clean.shape} is no table of the same images, {table.shape}")
    weights = np.repeat([1 - clean_share, clean_share], len(labels))
    return Margins(np.concatenate([table, clean]), np.tile(labels, 2), weights)


def _are_own(table: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the margins to the true classes, and only they, are infinite."""
    if labels.min() < 0 or labels.max() >= table.shape[1] or np.isnan(table).any():
        return False
    return bool((np.isposinf(table) == (np.arange(table.shape[1]) == labels[:, None])).all())


def shares(given: Margins, offsets: np.ndarray) -> np.ndarray:
    """Returns `[K]`, the accuracy of each class at these biases; NaN of one without images.

    An image is robust where every margin of its row, with the biases, is positive.
    """
    robust = (given.table + offsets[given.labels][:, None] - offsets > 0).all(axis=1)
    correct = np.bincount(given.labels, given.weights * robust, minlength=len(offsets))
    with np.errstate(invalid="ignore"):
        return correct / given.totals


def reached(found: np.ndarray) -> Reached:
    """Returns average, worst class and gap of `[K]` accuracies; NaN do not count."""
    found = found[~np.isnan(found)]
    return Reached(float(found.mean()), float(found.min()), float(np.ptp(found)))


def average_and_worst_class(t: float) -> Objective:
    """Returns `(1 - t) average + t worst class`; `t=0` leaves the model alone.

    Raises:
      ValueError: `t` is outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t={t} is outside [0, 1]; give the weight of the worst class")
    return Objective(_average_and_worst_class, _smooth_average_and_worst_class, t, not t)


def small_gap(floor: float) -> Objective:
    """Returns what is largest where the gap is smallest, at an average of at least `floor`.

    Below the floor a larger average is better, and anything above it better still.

    Raises:
      ValueError: `floor` is outside [0, 1].
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor} is outside [0, 1]; give the least average accuracy")
    return Objective(_small_gap, _smooth_small_gap, floor)


def _average_and_worst_class(shares: np.ndarray, t: float) -> np.ndarray:
    return (1 - t) * shares.mean(axis=-1) + t * shares.min(axis=-1)


def _smooth_average_and_worst_class(shares: np.ndarray, t: float) -> tuple[float, np.ndarray]:
    lowest, slope = _smooth_min(shares)
    return (1 - t) * shares.mean() + t * lowest, (1 - t) / len(shares) + t * slope


def _small_gap(shares: np.ndarray, floor: float) -> np.ndarray:
    missing = floor - shares.mean(axis=-1)
    return np.where(missing <= 1e-12, -np.ptp(shares, axis=-1), -1 - missing)


def _smooth_small_gap(shares: np.ndarray, floor: float) -> tuple[float, np.ndarray]:
    (lowest, rise), (highest, fall) = _smooth_min(shares), _smooth_min(-shares)
    missing = floor - shares.mean()
    price = 20 * (missing > 0)
    return lowest + highest - price * missing, rise - fall + price / len(shares)


def _smooth_min(shares: np.ndarray) -> tuple[float, np.ndarray]:
    """A smooth smallest accuracy, and its slope."""
    lowest = shares.min()
    powers = np.exp(-_SHARPNESS * (shares - lowest))
    return lowest - np.log(powers.sum()) / _SHARPNESS, powers / powers.sum()
