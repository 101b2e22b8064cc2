"""The biases that are best on a margin table.

All accuracies of a table are known at all biases, so nothing is attacked here. They are step
functions of the biases. The search first climbs a smooth version of them, which finds the right
region, and then goes along lines exactly, from step to step.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import optimize, special

from fairmix_jax.methods.class_bias import accuracies
from fairmix_jax.methods.class_bias.accuracies import Goal, Margins, Objective

_TEMPERATURES = (1.0, 0.3, 0.1, 0.03)  # of the smooth accuracies, times the margins' spread
_TIE = 1e-12


def class_bias(
    table: Any, labels: Any, *, objective: Literal["worst_class", "gap"] = "worst_class",
    t: float = 0.2, max_drop: float = 0.02, clean: Any = None, clean_share: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Returns the biases `[K]` that are best on a margin table.

    Guarantees: their mean is 0. The objective is at least that of no biases, and if it is no
    larger, they are zeros; so they are for `t=0`. No change of one class's bias against all others,
    and no opposite change of two, leads to more; of two classes they are therefore the best there
    are. With more classes better ones elsewhere are possible. The order of rows does not matter;
    renaming the classes renames the biases, up to rounding and ties.

    Edge cases: a class without images keeps 0, a rival to the others, which have mean 0 among
    themselves. Equal objectives are told apart by the average. Where several intervals of a line
    are best, the present place is kept if it is in one, else the middle of the widest is taken.

    A turn of the search takes about `K^2` sorts of `N` numbers. With 3,000 images of ten classes
    the whole search took 1.4 s; hundreds of classes have not been tried.

    Args:
      table: `[N, K]`, of `margin_table`.
      labels: `[N]` int.
      objective, t, max_drop: see `accuracies.Goal`.
      clean: the table of the same images at radius 0.
      clean_share: how much clean accuracies count, in [0, 1].

    Raises:
      ValueError: a number is outside its range; tables and labels do not fit each other.
    """
    goal = Goal(objective, t, max_drop)
    goal.check()
    given = accuracies.margins(table, labels, clean=clean, clean_share=clean_share)
    return best(given, goal.on(given))


def frontier(
    table: Any, labels: Any, weights: Sequence[float], *, clean: Any = None,
    clean_share: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Returns `[T, K]`, the biases for each weight `t` of the worst class.

    Guarantees: as in `class_bias`; and as `t` rises from above 0, the average of the accuracies
    does not rise and the worst class's does not fall.
    """
    goals = [Goal(t=t) for t in weights]
    for goal in goals:
        goal.check()
    given = accuracies.margins(table, labels, clean=clean, clean_share=clean_share)
    objectives = [goal.on(given) for goal in goals]
    found = np.stack([best(given, objective) for objective in objectives])
    reached = np.stack([accuracies.class_accuracies(given, offsets) for offsets in found])
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


class _Search(NamedTuple):
    """What stays the same while biases are searched for."""

    given: Margins
    objective: Objective
    has_images: np.ndarray  # [K] bool

    def value(self, offsets: np.ndarray) -> float:
        found = accuracies.class_accuracies(self.given, offsets)
        return float(self.objective.of(found[self.has_images]))

    def centered(self, offsets: np.ndarray) -> np.ndarray:
        """Offsets of mean 0 among the classes with images, and 0 for the others."""
        return np.where(self.has_images, offsets - offsets[self.has_images].mean(), 0.0)


def best(given: Margins, objective: Objective) -> np.ndarray:
    """Returns the biases `[K]` that make an objective large; see `class_bias`."""
    order = np.lexsort(
        (given.weights, *given.table.T, given.labels)
    )  # else sums may round otherwise
    search = _Search(given.take(order), objective, given.totals > 0)
    zeros = np.zeros(len(search.has_images))
    if objective.leaves_alone:
        return zeros
    # From zeros as well: what one class alone gains must not be lost on the way to elsewhere.
    found = [_along_lines(search, start) for start in (_climb(search), zeros)]
    chosen = max(found, key=search.value)
    return chosen if search.value(chosen) > search.value(zeros) + _TIE else zeros


def _along_lines(search: _Search, offsets: np.ndarray) -> np.ndarray:
    """The biases where no line through them leads to more."""
    lines, value = _lines(search), search.value(offsets)
    while True:
        before = value
        for line in lines:
            if step := _step(search, offsets, line):
                moved = search.centered(offsets + step * line)
                if (reached := search.value(moved)) > value:  # as rounded
                    offsets, value = moved, reached
        if value <= before + _TIE:
            return offsets


def _lines(search: _Search) -> list[np.ndarray]:
    """The directions `[K]`: every class against all others, and every pair of classes.

    Their order follows the classes' mean margins, so that it does not depend on the classes'
    numbers.
    """
    given, has_images = search.given, search.has_images
    nearest = np.clip(given.table.min(axis=1), -1e6, 1e6) * given.weights
    total = np.bincount(given.labels, nearest, minlength=len(has_images))
    order = np.argsort(total / np.where(has_images, given.totals, 1), kind="stable")
    single = np.eye(len(order))[[label for label in order if has_images[label]]]
    alone = single - has_images / has_images.sum()
    return [*alone, *(a - b for a, b in itertools.combinations(single, 2))]


def _climb(search: _Search) -> np.ndarray:
    """The biases to which a smooth version of the objective leads, made sharper in turns."""
    table = search.given.table
    is_finite = np.isfinite(table)
    spread = (np.std(table, where=is_finite) if is_finite.any() else 0.0) or 1.0
    finite = search.given._replace(table=np.clip(table, -1e3 * spread, 1e3 * spread))
    offsets = np.zeros(table.shape[1])
    for temperature in _TEMPERATURES:
        smooth = partial(_smooth, search._replace(given=finite), temperature * spread)
        found: Any = optimize.minimize(smooth, offsets, jac=True, method="L-BFGS-B")
        offsets = search.centered(found.x)
    return offsets


def _smooth(search: _Search, width: float, offsets: np.ndarray) -> tuple[float, np.ndarray]:
    """The objective's negative and its slope `[K]`, to be made small.

    Robust images are counted by a sigmoid of their margin over a width.
    """
    (table, labels, weights, _), has_images = search.given, search.has_images
    offsets, size = search.centered(offsets), len(offsets)
    moved = table + offsets[labels][:, None] - offsets
    nearest = np.argmin(moved, axis=1)
    robust = special.expit(moved[np.arange(len(labels)), nearest] / width)
    totals = np.where(has_images, search.given.totals, 1)
    found = np.bincount(labels, weights * robust, minlength=size) / totals
    slope_of = np.zeros(size)
    value, slope_of[has_images] = search.objective.smooth(
        found[has_images], search.objective.parameter
    )
    slopes = (slope_of / totals)[labels] * weights * robust * (1 - robust) / width
    own, of_rival = (np.bincount(of, slopes, minlength=size) for of in (labels, nearest))
    return -value, -search.centered(own - of_rival)


def _step(search: _Search, offsets: np.ndarray, line: np.ndarray) -> float:
    """How far to go along a line of biases for the largest objective.

    Each image is robust on one interval of the line. Between the sorted ends of these intervals
    nothing changes, so cumulative sums give every value there is. Where several are the largest,
    it is 0 if that is one of them, else the middle of the widest.
    """
    low, high, labels, weights = _intervals(search.given, offsets, line)
    starts, ends = np.isfinite(low), np.isfinite(high)
    places = np.concatenate([low[starts], high[ends]])
    order = np.argsort(places, kind="stable")
    steps = np.zeros((1 + len(places), len(offsets)))
    steps[0] = np.bincount(labels[~starts], weights[~starts], minlength=len(offsets))
    classes = np.concatenate([labels[starts], labels[ends]])[order]
    changes = np.concatenate([weights[starts], -weights[ends]])[order]
    steps[1 + np.arange(len(places)), classes] = changes
    totals = search.given.totals[search.has_images]
    reached = np.cumsum(steps, axis=0)[:, search.has_images] / totals
    edges = np.concatenate([[-np.inf], places[order], [np.inf]])
    values = np.where(np.diff(edges) > 0, search.objective.of(reached), -np.inf)
    is_best = values >= values.max() - _TIE
    here = np.searchsorted(edges[1:-1], 0.0)
    if is_best[here] and edges[here] < 0 < edges[here + 1]:
        return 0.0
    chosen = int(np.argmax(np.where(is_best, np.diff(edges), -1.0)))
    left, right = float(edges[chosen]), float(edges[chosen + 1])
    if np.isinf(left) or np.isinf(right):  # beyond the last step nothing changes any more
        return left + 1.0 if np.isfinite(left) else right - 1.0
    return (left + right) / 2


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
