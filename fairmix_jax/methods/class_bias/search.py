"""The biases that are best on a margin table.

All accuracies of a table are known at all biases, so nothing is attacked here. They are step
functions of the biases. The search first climbs a smooth version of them, which finds the right
region, and then goes along lines exactly, from step to step.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import optimize, special

from fairmix_jax.methods.class_bias import accuracies
from fairmix_jax.methods.class_bias.accuracies import Margins, Objective

_TEMPERATURES = (1.0, 0.3, 0.1, 0.03)  # of the smooth accuracies, times the margins' spread
_TIE = 1e-12


def class_bias(
    table: Any, labels: Any, *, objective: Literal["worst_class", "gap"] = "worst_class",
    t: float = 0.2, floor: float = 0.0, clean: Any = None, clean_share: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Returns the biases `[K]` that are best on a margin table.

    `"worst_class"` makes `(1 - t) average + t worst class` as large as it can, `"gap"` the gap as
    small as it can at an average of at least `floor`.

    Guarantees: their mean is 0. The objective is at least that of no biases, and if it is no
    larger, they are zeros; so they are for `t=0`. No change of one class's bias and no opposite
    change of two leads to more; of two classes they are therefore the best there are. Renaming the
    classes renames the biases, up to rounding and ties; the order of rows does not matter. With
    more than two classes better ones elsewhere are possible.

    Edge cases: the bias of a class without images is 0. Of equally good biases on a line, the
    middle of the widest interval is taken.

    Args:
      table: `[N, K]`, of `margin_table`.
      labels: `[N]` int.
      t: weight of the worst class, in [0, 1].
      floor: least average accuracy, in [0, 1].
      clean: the table of the same images at radius 0.
      clean_share: how much clean accuracies count, in [0, 1].

    Raises:
      ValueError: a number is outside its range; tables and labels do not fit each other.
    """
    given = accuracies.margins(table, labels, clean=clean, clean_share=clean_share)
    return best(given, objective_of(objective, t=t, floor=floor))


def objective_of(name: str, *, t: float, floor: float) -> Objective:
    """Returns an objective by its name; a `ValueError` for an unknown one or a wrong number."""
    if name not in ("worst_class", "gap"):
        raise ValueError(f"objective={name!r} is unknown; choose worst_class or gap")
    if name == "gap":
        return accuracies.small_gap(floor)
    return accuracies.average_and_worst_class(t)


def frontier(given: Margins, weights: Sequence[float]) -> np.ndarray:
    """Returns `[T, K]`, the biases for each weight `t` of the worst class.

    Guarantees: as in `class_bias`; and as `t` rises from above 0, the average of the accuracies
    does not rise and the worst class's does not fall.
    """
    objectives = [accuracies.average_and_worst_class(t) for t in weights]
    found = np.stack([best(given, objective) for objective in objectives])
    reached = np.stack([accuracies.shares(given, offsets) for offsets in found])
    reached = reached[:, given.totals > 0]
    chosen, at = np.arange(len(weights)), 0
    # Of one common set the best for each `t`: then none does better with another's biases.
    for place in np.argsort(weights, kind="stable"):
        values = objectives[place].of(reached)
        ties = np.flatnonzero(values >= values.max() - _TIE)
        if at not in ties:
            at = ties[np.argmin(reached[ties].min(axis=1))]
        if not objectives[place].leaves_alone:
            chosen[place] = at
    return found[chosen]


def best(given: Margins, objective: Objective) -> np.ndarray:
    """Returns the biases `[K]` that make an objective large; see `class_bias`."""
    has_images = given.totals > 0
    zeros = np.zeros(len(has_images))
    if objective.leaves_alone:
        return zeros
    before = objective.of(accuracies.shares(given, zeros)[has_images])
    chosen, value = _climb(given, objective, has_images), -np.inf
    lines = _lines(given, has_images)
    while True:
        last = value
        for line in lines:
            move, value = _search_line(given, objective, has_images, chosen, line)
            chosen = chosen + move * line
        if value <= last + _TIE:
            break
    chosen = np.where(has_images, chosen - chosen[has_images].mean(), 0.0)
    value = objective.of(accuracies.shares(given, chosen)[has_images])  # as rounded
    return chosen if value > before + _TIE else zeros


def _lines(given: Margins, has_images: np.ndarray) -> list[np.ndarray]:
    """The directions `[K]`: every class, and every pair of classes in opposite directions.

    Their order follows the classes' mean margins, so that it does not depend on the classes'
    numbers.
    """
    nearest = np.clip(given.table.min(axis=1), -1e6, 1e6) * given.weights
    total = np.bincount(given.labels, nearest, minlength=len(has_images))
    order = np.argsort(total / np.where(has_images, given.totals, 1), kind="stable")
    single = np.eye(len(order))[[label for label in order if has_images[label]]]
    return [*single, *(a - b for a, b in itertools.combinations(single, 2))]


def _climb(given: Margins, objective: Objective, has_images: np.ndarray) -> np.ndarray:
    """The biases to which a smooth version of the objective leads, made sharper in turns."""
    is_finite = np.isfinite(given.table)
    spread = (np.std(given.table, where=is_finite) if is_finite.any() else 0.0) or 1.0
    finite = given._replace(table=np.clip(given.table, -1e3 * spread, 1e3 * spread))
    offsets = np.zeros(len(has_images))
    for temperature in _TEMPERATURES:
        smooth = functools.partial(_smooth, finite, objective, has_images, temperature * spread)
        found: Any = optimize.minimize(smooth, offsets, jac=True, method="L-BFGS-B")
        offsets = found.x
    return np.where(has_images, offsets - offsets[has_images].mean(), 0.0)


def _smooth(
    given: Margins, objective: Objective, has_images: np.ndarray, width: float, offsets: np.ndarray
) -> tuple[float, np.ndarray]:
    """The objective's negative and its slope `[K]`, to be made small.

    Robust images are counted by a sigmoid of their margin over a width.
    """
    table, labels, weights = given
    moved, size = table + offsets[labels][:, None] - offsets, len(offsets)
    nearest = np.argmin(moved, axis=1)
    robust = special.expit(moved[np.arange(len(labels)), nearest] / width)
    totals = np.where(has_images, given.totals, 1)
    shares = np.bincount(labels, weights * robust, minlength=size) / totals
    slope_of = np.zeros(size)
    value, slope_of[has_images] = objective.smooth(shares[has_images], objective.number)
    slopes = (slope_of / totals)[labels] * weights * robust * (1 - robust) / width
    own, of_rival = (np.bincount(of, slopes, minlength=size) for of in (labels, nearest))
    return -value, -np.where(has_images, own - of_rival, 0)


def _search_line(
    given: Margins, objective: Objective, has_images: np.ndarray, offsets: np.ndarray,
    line: np.ndarray,
) -> tuple[float, float]:  # fmt: skip
    """Returns how far to go along a line of biases for the largest value, and that value.

    Each image is robust on one interval of the line. Between the sorted ends of these intervals
    nothing changes, so cumulative sums give every value there is. Where several are the largest,
    it is 0 if that is one of them, else the middle of the widest.
    """
    low, high, of, weights = _intervals(given, offsets, line)
    starts, ends = np.isfinite(low), np.isfinite(high)
    places = np.concatenate([low[starts], high[ends]])
    order = np.argsort(places, kind="stable")
    steps = np.zeros((1 + len(places), len(offsets)))
    steps[0] = np.bincount(of[~starts], weights[~starts], minlength=len(offsets))
    classes = np.concatenate([of[starts], of[ends]])[order]
    changes = np.concatenate([weights[starts], -weights[ends]])[order]
    steps[1 + np.arange(len(places)), classes] = changes
    shares = np.cumsum(steps, axis=0)[:, has_images] / given.totals[has_images]
    edges = np.concatenate([[-np.inf], places[order], [np.inf]])
    values = np.where(np.diff(edges) > 0, objective.of(shares), -np.inf)
    is_best = values >= values.max() - _TIE
    here = np.searchsorted(edges[1:-1], 0.0)
    if is_best[here] and edges[here] < 0 < edges[here + 1]:
        return 0.0, float(values[here])
    chosen = int(np.argmax(np.where(is_best, np.diff(edges), -1.0)))
    left, right = float(edges[chosen]), float(edges[chosen + 1])
    if np.isinf(left) or np.isinf(right):  # beyond the last step nothing changes any more
        return (left + 1.0 if np.isfinite(left) else right - 1.0), float(values[chosen])
    return (left + right) / 2, float(values[chosen])


def _intervals(
    given: Margins, offsets: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where on a line images are robust: ends `low < high`, labels and weights, where anywhere."""
    margins = given.table + offsets[given.labels][:, None] - offsets
    slopes = line[given.labels][:, None] - line
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = -margins / slopes
    low = np.max(ends, axis=1, where=slopes > 0, initial=-np.inf)
    high = np.min(ends, axis=1, where=slopes < 0, initial=np.inf)
    robust = np.all(margins > 0, axis=1, where=slopes == 0) & (low < high)
    # A margin of -inf, of logits that are not finite, is not made up for anywhere.
    robust &= ~np.isposinf(low) & ~np.isneginf(high)
    return low[robust], high[robust], given.labels[robust], given.weights[robust]
