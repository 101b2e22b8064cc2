"""Biases of the classes that are best on a margin table.

All accuracies of a table (`margins.margin_table`) are known at all biases, so nothing is attacked
here. They are step functions of the biases. `best` first climbs a smooth version of them, which
finds the right region, and then searches lines exactly, which finds the steps.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from fairmix_jax.types import Array

_TEMPERATURES = (1.0, 0.3, 0.1, 0.03)  # of the smooth accuracies, times the margins' spread
_SHARPNESS = 60.0  # of the smooth minimum of accuracies
_TIE = 1e-12


class Reached(NamedTuple):
    """Accuracies of a choice of biases."""

    average: float  # mean of the class accuracies
    worst_class: float  # smallest class accuracy

    def value(self, weight: float) -> float:
        """Returns `(1 - weight) average + weight worst_class`."""
        return (1 - weight) * self.average + weight * self.worst_class


def class_counts(table: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns `[2, K]` int: each class's images, and those that are robust at these biases.

    An image is robust where every margin of its row, with the biases, is positive.
    """
    robust = (table + offsets[labels][:, None] - offsets > 0).all(axis=1)
    size = len(offsets)
    return np.stack([np.bincount(of, minlength=size) for of in (labels, labels[robust])])


def reached(counts: np.ndarray) -> Reached:
    """Returns the accuracies of `[2, K]` counts; classes without images do not count."""
    number, correct = counts[:, counts[0] > 0]
    shares = correct / number
    return Reached(float(shares.mean()), float(shares.min()))


def best(table: np.ndarray, labels: np.ndarray, weight: float) -> np.ndarray:
    """Returns the biases `[K]` that maximise `(1 - weight) average + weight worst class`.

    Guarantees: their mean is 0; the value is at least that of no biases, and if it is no better,
    they are zeros; so they are for `weight=0`. No change of one class's bias, and no change of two
    by opposite amounts, leads to more. Renaming the classes renames the biases, up to rounding
    and ties. The function is not concave, so a better value elsewhere is possible.

    Args:
      table: `[N, K]`, of `margin_table`.
      labels: `[N]` int.
      weight: of the worst class, in [0, 1].
    """
    table = np.asarray(table, np.float64)
    zeros = np.zeros(table.shape[1])
    if weight == 0:
        return zeros
    number = np.bincount(labels, minlength=len(zeros))
    chosen = _climb(table, labels, number, weight)
    lines, value = _lines(table, labels), -np.inf
    while True:
        before = value
        for line in lines:
            move, value = _search_line(table, labels, number, weight, chosen, line)
            chosen = chosen + move * line
        if value <= before + _TIE:
            break
    is_better = value > reached(class_counts(table, labels, zeros)).value(weight) + _TIE
    return chosen - chosen.mean() if is_better else zeros


def _lines(table: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The directions `[K]`: every class, and every pair of classes in opposite directions.

    Their order follows the classes' mean margins, so that it does not depend on the classes'
    numbers.
    """
    size = table.shape[1]
    nearest = np.clip(table.min(axis=1), -1e6, 1e6)
    total = np.bincount(labels, nearest, minlength=size)
    order = np.argsort(total / np.maximum(np.bincount(labels, minlength=size), 1), kind="stable")
    single = np.eye(size)[order]
    return [*single, *(a - b for a, b in itertools.combinations(single, 2))]


def _climb(table: np.ndarray, labels: np.ndarray, number: np.ndarray, weight: float) -> np.ndarray:
    """The biases to which a smooth version of the objective leads, made sharper in turns."""
    is_finite = np.isfinite(table)
    spread = np.std(table, where=is_finite) if is_finite.any() else 1.0
    far = 1e3 * (spread or 1.0)
    finite = jnp.asarray(np.clip(table, -far, far), jnp.float32)
    labels, images = labels.astype(np.int32), number.astype(np.float32)
    offsets = np.zeros(len(number))
    for temperature in _TEMPERATURES:
        width = jnp.float32(temperature * (spread or 1.0))

        def descended(offsets: np.ndarray, width: Array = width) -> tuple[float, np.ndarray]:
            value, slope = _smooth(
                offsets.astype(np.float32), width, finite, labels, images, np.float32(weight)
            )
            return -float(value), -np.asarray(slope, np.float64)

        found: Any = optimize.minimize(descended, offsets, jac=True, method="L-BFGS-B")
        offsets = found.x
    return offsets - offsets.mean()


@jax.jit
@jax.value_and_grad
def _smooth(
    offsets: Array, width: Array, table: Array, labels: Array, number: Array, weight: Array
) -> Array:
    """The objective with robust images counted by a sigmoid of their margin over a width."""
    margin = jnp.min(table + offsets[labels][:, None] - offsets[None], axis=1)
    correct = jax.ops.segment_sum(jax.nn.sigmoid(margin / width), labels, len(offsets))
    shares, has_images = correct / jnp.maximum(number, 1), number > 0
    average = jnp.sum(jnp.where(has_images, shares, 0.0)) / jnp.sum(has_images, dtype=shares.dtype)
    lowest = jnp.where(has_images, -_SHARPNESS * shares, -jnp.inf)
    return (1 - weight) * average - weight * jax.nn.logsumexp(lowest) / _SHARPNESS


def _search_line(
    table: np.ndarray, labels: np.ndarray, number: np.ndarray, weight: float,
    offsets: np.ndarray, line: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Returns how far to go along a line of biases for the largest value, and that value.

    Each image is robust on one interval of the line. Between the sorted ends of these intervals
    nothing changes, so cumulative counts give every value there is. Where several are the largest,
    it is 0 if that is one of them, else the middle of the widest.
    """
    margins = table + offsets[labels][:, None] - offsets
    slopes = line[labels][:, None] - line
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = -margins / slopes
    low = np.max(ends, axis=1, where=slopes > 0, initial=-np.inf)
    high = np.min(ends, axis=1, where=slopes < 0, initial=np.inf)
    robust = np.all(margins > 0, axis=1, where=slopes == 0) & (low < high)
    low, high, of = low[robust], high[robust], labels[robust]
    starts, ends = np.isfinite(low), np.isfinite(high)
    places = np.concatenate([low[starts], high[ends]])
    order = np.argsort(places, kind="stable")
    classes = np.concatenate([of[starts], of[ends]])[order]
    steps = np.zeros((1 + len(places), len(number)))
    steps[0] = np.bincount(of[~starts & (low < 0)], minlength=len(number))
    steps[1 + np.arange(len(places)), classes] = np.repeat([1, -1], [starts.sum(), ends.sum()])[
        order
    ]
    shares = np.cumsum(steps, axis=0)[:, number > 0] / number[number > 0]
    edges = np.concatenate([[-np.inf], places[order], [np.inf]])
    values = (1 - weight) * shares.mean(axis=1) + weight * shares.min(axis=1)
    values = np.where(np.diff(edges) > 0, values, -np.inf)
    is_best = values >= values.max() - _TIE
    here = np.searchsorted(edges[1:-1], 0.0)
    if is_best[here] and edges[here] < 0 < edges[here + 1]:
        return 0.0, float(values[here])
    chosen = int(np.argmax(np.where(is_best, np.diff(edges), -1.0)))
    left, right = edges[chosen], edges[chosen + 1]
    if np.isinf(left) or np.isinf(right):  # beyond the last step nothing changes any more
        return (float(left) + 1.0 if np.isfinite(left) else float(right) - 1.0), float(
            values[chosen]
        )
    return float(left + right) / 2, float(values[chosen])
