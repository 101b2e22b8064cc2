"""How much of what biases gain on the images they were fitted on is luck, and less of it."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from fairmix_jax.methods.class_bias import accuracies
from fairmix_jax.methods.class_bias.accuracies import Goal, Margins, Reached
from fairmix_jax.methods.class_bias.search import best
from fairmix_jax.runtime import inputs

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""By which biases may be shrunk."""


class Fit(NamedTuple):
    """Fitted biases, and what they reach.

    Attributes:
      offsets: `[K]`, shrunk.
      factor: by which they were shrunk, 1 for not at all.
      as_trained: without biases, on the images that chose them.
      fitted: with the biases, on the same images.
      expected: `fitted` less the luck in it, to be compared with `as_trained`: an estimate for new
        images. Like all of these its worst class is that of noisy accuracies, and errs downwards.
      table: `[N, K]`, the margin table that they were fitted on, for `frontier` and others.
    """

    offsets: np.ndarray
    factor: float
    as_trained: Reached
    fitted: Reached
    expected: Reached
    table: np.ndarray

    def __repr__(self) -> str:
        told = (f"{name}={getattr(self, name)}" for name in self._fields if name != "table")
        return f"Fit({', '.join(told)})"


def fit(
    table: Any, labels: Any, *, objective: Literal["worst_class", "gap"] = "worst_class",
    t: float = 0.2, max_drop: float = 0.02, clean: Any = None, clean_share: float = 0.0,
    num_splits: int = 5, seed: int = 0, index: Any = None,
) -> Fit:  # fmt: skip
    """Returns biases that are shrunk as far as images that did not choose them ask for.

    The images of each class are split in half at random, several times. Biases are fitted on each
    half, multiplied by each of `FACTORS`, and judged on the other half. The largest factor whose
    objective is within a standard error of the best one's shrinks the biases that are fitted on
    everything: biases of twice as many images need less shrinking. The luck of a half is what its
    biases reach on it more than on the other half; that of all images is `1 / sqrt(2)` of the mean
    of these, since chance falls with the root of their number. It may come out negative.

    Guarantees: rows may come in any order, given with their `index`. Shrunk biases may miss
    `max_drop`.

    Args:
      num_splits: at least 2.
      index: `[N]` int, numbers that tell the images apart; `0 .. N - 1` if `None`.
      table, labels, objective, t, max_drop, clean, clean_share: as in `class_bias`.

    Raises:
      ValueError: as in `class_bias`; there is no split, or no class with two images.
    """
    goal = Goal(objective, t, max_drop)
    goal.check()
    check_splits(num_splits, labels)
    given = accuracies.margins(table, labels, clean=clean, clean_share=clean_share, index=index)
    wanted = goal.on(given)
    if wanted.leaves_alone:
        chosen, luck = len(FACTORS) - 1, np.zeros(len(Reached._fields))
    else:
        values, lucks = map(np.asarray, zip(*_splits(given, goal, num_splits, seed), strict=True))
        chosen = _largest_good(values)
        luck = lucks[:, chosen].mean(axis=0) / np.sqrt(2)
    offsets = FACTORS[chosen] * best(given, wanted)
    before, after = (_reached(given, each) for each in (0 * offsets, offsets))
    expected = Reached(*map(float, np.asarray(after) - luck))
    return Fit(offsets, FACTORS[chosen], before, after, expected, np.asarray(table))


def check_splits(num_splits: int, labels: Any) -> None:
    """Raises a `ValueError` unless there are splits, and images to split."""
    inputs.check_whole(2, num_splits=num_splits)
    if np.bincount(labels, minlength=1).max() < 2:
        raise ValueError(f"{len(labels)} labels, none twice; give at least two images of a class")


def _splits(
    given: Margins, goal: Goal, num_splits: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each split, as means of both ways round, what `_judged` returns."""
    for split in range(num_splits):
        half = _half(given, seed, split)
        both = [_judged(given.take(rows), given.take(~rows), goal) for rows in (half, ~half)]
        values, luck = (np.mean(each, axis=0) for each in zip(*both, strict=True))
        yield values, luck


def _largest_good(values: np.ndarray) -> int:
    """The place of the largest factor within a standard error of the best, from `[splits, F]`."""
    best_place = int(np.argmax(values.mean(axis=0)))
    missing = values[:, [best_place]] - values
    error = missing.std(axis=0, ddof=1) / np.sqrt(len(values))
    return int(np.flatnonzero(missing.mean(axis=0) <= error + 1e-12)[-1])


def _judged(one: Margins, other: Margins, goal: Goal) -> tuple[np.ndarray, np.ndarray]:
    """Of biases fitted on one half, for each factor: the objective on the other, and the luck."""
    offsets, wanted = best(one, goal.on(one)), goal.on(other)
    has_images = other.totals > 0
    values, luck = [], []
    for factor in FACTORS:
        moved = factor * offsets
        values.append(wanted.of(accuracies.class_accuracies(other, moved)[has_images]))
        luck.append(np.subtract(_reached(one, moved), _reached(other, moved)))
    return np.asarray(values), np.asarray(luck)


def _reached(given: Margins, offsets: np.ndarray) -> Reached:
    return accuracies.reached(accuracies.class_accuracies(given, offsets))


def _half(given: Margins, seed: int, split: int) -> np.ndarray:
    """`[N]` bool, whether a row is in the first half: every second image of its class, shuffled."""
    unique, place = np.unique(given.index, return_inverse=True)
    limit = 2**64  # seeds and numbers may be negative
    keys = [(seed % limit, split, int(number) % limit) for number in unique]
    drawn = np.asarray([np.random.default_rng(key).random() for key in keys])[place]
    half = np.zeros(len(place), bool)
    for label in np.unique(given.labels):
        rows = np.flatnonzero(given.labels == label)
        _, rank = np.unique(drawn[rows], return_inverse=True)
        half[rows] = rank % 2 == 0
    return half
