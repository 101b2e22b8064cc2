"""How much of what biases gain on the images they were fitted on is luck, and less of it."""

from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.methods.class_bias import accuracies
from fairmix_jax.methods.class_bias.accuracies import Margins, Objective, Reached
from fairmix_jax.methods.class_bias.search import best

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""By which biases may be shrunk."""


class Fit(NamedTuple):
    """Fitted biases, and what they reach on the images they were fitted on.

    Attributes:
      offsets: `[K]`, shrunk.
      factor: by which they were shrunk, 1 for not at all.
      as_trained: without biases.
      fitted: with them, on the images that chose them.
      held_out: with biases fitted in the same way on the other folds: without that luck.
    """

    offsets: np.ndarray
    factor: float
    as_trained: Reached
    fitted: Reached
    held_out: Reached


def fit(
    given: Margins, objective: Objective, *, num_folds: int = 5, seed: int = 0, index: Any = None
) -> Fit:
    """Returns biases that are shrunk as far as images that did not choose them ask for.

    The rows of each class are dealt into folds at random. For each fold biases are fitted on the
    others and multiplied by each of `FACTORS`; the factor with the best objective over all
    held-out rows, the smallest of equal ones, shrinks the biases that are fitted on everything.

    Guarantees: rows may come in any order, given with their `index`. A class with fewer images than
    folds is missing from some.

    Args:
      num_folds: at least 2.
      index: `[N]` int, numbers that tell the images apart; `0 .. N - 1` if `None`. Rows of one
        image share a fold.

    Raises:
      ValueError: there are fewer than two folds, or no class has two images.
    """
    fold = _folds(given, num_folds, seed, index)
    if num_folds < 2 or not fold.any():
        raise ValueError(f"{num_folds=}; give at least 2, and at least 2 images of a class")
    correct = np.zeros((len(FACTORS), given.table.shape[1]))
    for number in range(num_folds):
        offsets = best(given.take(fold != number), objective)
        held_out = given.take(fold == number)
        for place, factor in enumerate(FACTORS):
            found = accuracies.shares(held_out, factor * offsets)
            correct[place] += np.where(held_out.totals > 0, found * held_out.totals, 0)
    with np.errstate(invalid="ignore"):
        shares = correct / given.totals
    values = objective.of(shares[:, given.totals > 0])
    chosen = int(np.flatnonzero(values >= values.max() - 1e-12)[0])
    offsets = FACTORS[chosen] * best(given, objective)
    if objective.leaves_alone:
        chosen = len(FACTORS) - 1
    return Fit(
        offsets, FACTORS[chosen],
        accuracies.reached(accuracies.shares(given, 0 * offsets)),
        accuracies.reached(accuracies.shares(given, offsets)),
        accuracies.reached(shares[chosen]),
    )  # fmt: skip


def _folds(given: Margins, num_folds: int, seed: int, index: Any) -> np.ndarray:
    """`[N]`, the fold of each row: by the ranks of random numbers, one an image, in its class."""
    number = np.arange(len(given.labels)) if index is None else np.asarray(index)
    unique, place = np.unique(number, return_inverse=True)
    drawn = np.array([np.random.default_rng((seed, int(n))).random() for n in unique])[place]
    fold = np.zeros(len(number), int)
    for label in np.unique(given.labels):
        rows = np.flatnonzero(given.labels == label)
        _, rank = np.unique(drawn[rows], return_inverse=True)
        fold[rows] = rank % num_folds
    return fold
