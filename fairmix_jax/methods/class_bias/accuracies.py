"""Accuracies of the classes at any biases, read from a margin table, and what they shall reach."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from fairmix_jax.runtime import inputs

_SHARPNESS = 60.0  # of the smooth smallest and largest accuracy
_TIE_BREAK = 1e-7  # weight of the average among equal objectives: less than one image


class Reached(NamedTuple):
    """Accuracies of a choice of biases."""

    average: float  # mean of the class accuracies
    worst_class: float  # smallest class accuracy
    gap: float  # largest less smallest


class Margins(NamedTuple):
    """The rows that biases are fitted on."""

    table: np.ndarray  # [N, K] float64, of `margin_table`
    labels: np.ndarray  # [N] int
    weights: np.ndarray  # [N] float64, how much a row counts in the accuracy of its class
    index: np.ndarray  # [N] int, the number of the row's image

    def take(self, rows: np.ndarray) -> "Margins":
        """Returns some of the rows."""
        return Margins(*(field[rows] for field in self))

    @property
    def totals(self) -> np.ndarray:
        """`[K]`, the weight of all rows of each class."""
        return np.bincount(self.labels, self.weights, minlength=self.table.shape[1])


class Objective(NamedTuple):
    """What the biases shall make large: functions of class accuracies and of a parameter."""

    exact: Callable[[np.ndarray, float], np.ndarray]  # of `[..., K]`, the value `[...]`
    smooth: Callable[[np.ndarray, float], tuple[float, np.ndarray]]  # of `[K]`: value, slope `[K]`
    parameter: float
    leaves_alone: bool = False  # whether the model as trained is wanted, whatever the value

    def of(self, accuracies: np.ndarray) -> np.ndarray:
        """Returns its value, `[...]`, at accuracies `[..., K]`; of equal ones averages decide."""
        return self.exact(accuracies, self.parameter) + _TIE_BREAK * accuracies.mean(axis=-1)


class Goal(NamedTuple):
    """An objective before it is known which model it is for.

    Attributes:
      objective: `"worst_class"` makes `(1 - t) average + t worst class` large, `"gap"` the gap
        small.
      t: weight of the worst class, in [0, 1]; 0 leaves the model alone.
      max_drop: how much less the average may be than without biases where the gap is made small,
        in [0, 1]. Where no biases keep that, a larger average is better.
    """

    objective: Literal["worst_class", "gap"] = "worst_class"
    t: float = 0.2
    max_drop: float = 0.02

    def check(self) -> None:
        """Raises a `ValueError` that names a field with a wrong value."""
        if self.objective not in ("worst_class", "gap"):
            raise ValueError(f"objective={self.objective!r} is unknown; give worst_class or gap")
        inputs.check_finite(0, 1, t=self.t, max_drop=self.max_drop)

    def on(self, given: Margins) -> Objective:
        """Returns the objective for a model with these margins."""
        if self.objective == "gap":
            before = reached(class_accuracies(given, np.zeros(given.table.shape[1]))).average
            return Objective(_small_gap, _smooth_small_gap, before - self.max_drop)
        functions = _average_and_worst_class, _smooth_average_and_worst_class
        return Objective(*functions, self.t, leaves_alone=not self.t)


def margins(
    table: Any, labels: Any, *, clean: Any = None, clean_share: float = 0.0, index: Any = None
) -> Margins:
    """Returns checked margins: of a table, or of a mixture of a table and that of clean images.

    The accuracy of a class is then `(1 - clean_share)` times that under attack plus `clean_share`
    times the clean one. `index` are numbers that tell the images apart, `0 .. N - 1` if `None`.

    Raises:
      ValueError: the tables, labels or numbers do not fit each other; a margin is not a number.
    """
    labels = np.asarray(labels)
    table = _checked("table", np.asarray(table, np.float64), labels)
    index = np.arange(len(labels)) if index is None else np.asarray(index)
    inputs.check_rows("index", index, len(labels))
    inputs.check_finite(0, 1, clean_share=clean_share)
    attacked = Margins(table, labels, np.full(len(labels), 1.0 - clean_share), index)
    if not clean_share:
        return attacked
    if clean is None:
        raise ValueError(f"clean=None, but {clean_share=}; give the table of clean margins")
    clean = _checked("clean", np.asarray(clean, np.float64), labels)
    if clean.shape != table.shape:
        raise ValueError(f"clean has shape {clean.shape}, table {table.shape}; give the same")
    at_rest = attacked._replace(table=clean, weights=np.full(len(labels), clean_share))
    if clean_share == 1:
        return at_rest
    return Margins(*(np.concatenate(pair) for pair in zip(attacked, at_rest, strict=True)))


def _checked(name: str, table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if table.ndim != 2 or not len(labels):
        raise ValueError(f"{name} has shape {table.shape}; give [N, K], N at least 1")
    inputs.check_labels(labels, len(table), table.shape[1])
    if np.isnan(table).any():
        raise ValueError(f"{name} holds NaN, {np.isnan(table).sum()} times; give margins")
    if (np.isposinf(table) != (np.arange(table.shape[1]) == labels[:, None])).any():
        raise ValueError(f"{name} is not inf at the labels, and only there; give their own table")
    return table


def class_accuracies(given: Margins, offsets: np.ndarray) -> np.ndarray:
    """Returns `[K]`, the accuracy of each class at these biases; NaN of one without images.

    An image is robust where every margin of its row, with the biases, is positive.
    """
    robust = (given.table + offsets[given.labels][:, None] - offsets > 0).all(axis=1)
    correct = np.bincount(given.labels, given.weights * robust, minlength=len(offsets))
    with np.errstate(invalid="ignore"):
        return correct / given.totals


def reached(accuracies: np.ndarray) -> Reached:
    """Returns average, worst class and gap of `[K]` accuracies; NaN do not count."""
    found = accuracies[~np.isnan(accuracies)]
    return Reached(float(found.mean()), float(found.min()), float(np.ptp(found)))


def _average_and_worst_class(accuracies: np.ndarray, t: float) -> np.ndarray:
    return (1 - t) * accuracies.mean(axis=-1) + t * accuracies.min(axis=-1)


def _smooth_average_and_worst_class(accuracies: np.ndarray, t: float) -> tuple[float, np.ndarray]:
    lowest, slope = _smooth_min(accuracies)
    return (1 - t) * accuracies.mean() + t * lowest, (1 - t) / len(accuracies) + t * slope


def _small_gap(accuracies: np.ndarray, floor: float) -> np.ndarray:
    missing = floor - accuracies.mean(axis=-1)
    return np.where(missing <= 1e-12, -np.ptp(accuracies, axis=-1), -1 - missing)


def _smooth_small_gap(accuracies: np.ndarray, floor: float) -> tuple[float, np.ndarray]:
    (lowest, rise), (highest, fall) = _smooth_min(accuracies), _smooth_min(-accuracies)
    missing = floor - accuracies.mean()
    price = 20 * (missing > 0)
    return lowest + highest - price * missing, rise - fall + price / len(accuracies)


def _smooth_min(accuracies: np.ndarray) -> tuple[float, np.ndarray]:
    """A smooth smallest accuracy, and its slope."""
    lowest = accuracies.min()
    powers = np.exp(-_SHARPNESS * (accuracies - lowest))
    return lowest - np.log(powers.sum()) / _SHARPNESS, powers / powers.sum()
