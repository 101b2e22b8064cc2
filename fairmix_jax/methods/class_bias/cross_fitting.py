"""How much of what biases gain on the images they were fitted on is luck, and less of it."""

from typing import Any, Literal, NamedTuple

import numpy as np

from fairmix_jax.methods.class_bias import accuracies
from fairmix_jax.methods.class_bias.accuracies import Goal, Margins, Objective, Reached
from fairmix_jax.methods.class_bias.search import best
from fairmix_jax.runtime import inputs

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""By which biases may be shrunk."""


class Fit(NamedTuple):
    """Fitted biases, and what they reach on the images they were fitted on.

    Attributes:
      offsets: `[K]`, shrunk.
      factor: by which they were shrunk, 1 for not at all.
      as_trained: without biases.
      fitted: with them, on the images that chose them.
      held_out: on images that chose neither the biases nor the factor that are applied to them;
        what is to be expected of new images, or a little less.
      table: `[N, K]`, the margin table that they were fitted on, for `frontier` and others.
    """

    offsets: np.ndarray
    factor: float
    as_trained: Reached
    fitted: Reached
    held_out: Reached
    table: np.ndarray


def fit(
    table: Any, labels: Any, *, objective: Literal["worst_class", "gap"] = "worst_class",
    t: float = 0.2, max_drop: float = 0.02, clean: Any = None, clean_share: float = 0.0,
    num_folds: int = 5, seed: int = 0, index: Any = None,
) -> Fit:  # fmt: skip
    """Returns biases that are shrunk as far as images that did not choose them ask for.

    The images of each class are dealt into folds at random. For each fold biases are fitted on the
    others and multiplied by each of `FACTORS`. The factor with the best objective over all
    held-out images, the smallest of equal ones, shrinks the biases that are fitted on everything.
    For `held_out` each fold is judged with the factor that the others choose.

    Guarantees: rows may come in any order, given with their `index`. A class with fewer images than
    folds is missing from some. Shrunk biases may miss `max_drop`.

    Args:
      num_folds: at least 2.
      index: `[N]` int, numbers that tell the images apart; `0 .. N - 1` if `None`.
      table, labels, objective, t, max_drop, clean, clean_share: as in `class_bias`.

    Raises:
      ValueError: as in `class_bias`; there are fewer than two folds, or no class has two images.
    """
    goal = Goal(objective, t, max_drop)
    goal.check()
    check_folds(num_folds, labels)
    given = accuracies.margins(table, labels, clean=clean, clean_share=clean_share, index=index)
    wanted = goal.on(given)
    correct = _held_out(given, goal, num_folds, seed)
    chosen = _best_factor(given, wanted, correct.sum(axis=0))
    offsets = FACTORS[chosen] * best(given, wanted)
    each = (correct.sum(axis=0) - fold for fold in correct)
    judged = sum(
        fold[_best_factor(given, wanted, rest)] for fold, rest in zip(correct, each, strict=True)
    )
    with np.errstate(invalid="ignore"):
        held_out = np.asarray(judged) / given.totals
    found = [accuracies.class_accuracies(given, each) for each in (0 * offsets, offsets)]
    reached = [accuracies.reached(each) for each in (*found, held_out)]
    return Fit(offsets, FACTORS[chosen], *reached, np.asarray(table))


def check_folds(num_folds: int, labels: Any) -> None:
    """Raises a `ValueError` unless there are folds, and images to hold out."""
    inputs.check_whole(2, num_folds=num_folds)
    if np.bincount(labels).max() < 2:
        raise ValueError(f"{len(labels)} labels, none twice; give at least two images of a class")


def _held_out(given: Margins, goal: Goal, num_folds: int, seed: int) -> np.ndarray:
    """`[folds, factors, K]`, the weight of what is robust in each fold, fitted on the others."""
    fold = _folds(given, num_folds, seed)
    correct = np.zeros((num_folds, len(FACTORS), given.table.shape[1]))
    for number in range(num_folds):
        others, held_out = given.take(fold != number), given.take(fold == number)
        offsets = best(others, goal.on(others))
        for place, factor in enumerate(FACTORS):
            found = accuracies.class_accuracies(held_out, factor * offsets)
            correct[number, place] = np.where(held_out.totals > 0, found * held_out.totals, 0)
    return correct


def _best_factor(given: Margins, wanted: Objective, correct: np.ndarray) -> int:
    """The place of the factor with the best objective, from `[factors, K]` weights of robust rows.

    The weights may be of some folds only, which hold about the same share of every class.
    """
    if wanted.leaves_alone:
        return len(FACTORS) - 1
    values = wanted.of((correct / np.where(given.totals > 0, given.totals, 1))[:, given.totals > 0])
    return int(np.flatnonzero(values >= values.max() - 1e-12)[0])


def _folds(given: Margins, num_folds: int, seed: int) -> np.ndarray:
    """`[N]`, the fold of each row: by the ranks of random numbers, one an image, in its class."""
    unique, place = np.unique(given.index, return_inverse=True)
    limit = 2**64  # seeds and numbers may be negative
    drawn = [np.random.default_rng((seed % limit, int(n) % limit)).random() for n in unique]
    fold = np.zeros(len(given.labels), int)
    for label in np.unique(given.labels):
        rows = np.flatnonzero(given.labels == label)
        _, rank = np.unique(np.asarray(drawn)[place[rows]], return_inverse=True)
        fold[rows] = rank % num_folds
    return fold
