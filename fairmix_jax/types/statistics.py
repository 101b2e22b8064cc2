"""What is counted and summed class by class; rules read it."""

from typing import NamedTuple

from jax import Array


class ClassCounts(NamedTuple):
    """`[K]` int32: examples seen, and of these correct ones; counts of disjoint sets add."""

    total: Array
    correct: Array


class ClassStatistics(NamedTuple):
    """Sums over a set of examples, one row a class; those of disjoint sets add.

    They are taken at the inputs that a base trains on: adversarial where there is an attack.
    """

    counts: ClassCounts  # examples, and how many were classified correctly
    loss: Array  # [K], of the base's losses, before `Knobs.loss_weight`
    margin: Array  # [K], of `max_{k != y} p_k - p_y`, in [-1, 1], with `p` the softmax
    probabilities: Array  # [K, K]; row `c` is the sum of `p` over the examples of class `c`


class EpochStatistics(NamedTuple):
    """The statistics that a rule gets after an epoch.

    The last three are of the validation set, with the current weights (not averaged ones) and
    running batch statistics. Of them only what `Rule.reads` names is measured; else zeros.
    """

    epoch: Array  # [] int32, completed epochs
    train: ClassStatistics  # of the epoch's training batches, weights changing on the way
    clean: ClassCounts
    robust: ClassCounts  # under PGD with the training attack's radius and step size
    base: ClassStatistics  # of the base's losses at the inputs that its own attack makes
