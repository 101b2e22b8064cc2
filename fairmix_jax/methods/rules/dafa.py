"""DAFA: radius and loss weight, set once, from how near the classes are to each other."""

import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import class_mean
from fairmix_jax.methods.rules import checked, stated
from fairmix_jax.types import Amount, Array, Count, EpochStatistics, Rule, Source

SOURCE = Source("Lee et al. 2024, arXiv 2401.12532", "rucy74/DAFA", "none")


@checked
def make(num_classes: int, *, warmup_epochs: Count = 70, strength: Amount = 1.0) -> Rule:
    """Returns one weight `W` a class for radius, step size and loss; 1 until the warm-up ends.

    After `warmup_epochs` it is set once, from the mean softmax of the epoch's adversarial
    training examples, see `class_weights`. With TRADES and MART the robust term is not
    weighted, as in the official code (the paper's words say otherwise). With PGD-AT the
    official code doubles the steps and clips to the plain radius; ours does neither.

    Guarantees: `strength = 0` is `none`. A negative `W`, possible for large ones, is raised to 0.
    Published are 70 of 110 epochs, and strengths of 1.0 for CIFAR-10, 1.5 for CIFAR-100.
    """

    def update(state: Array, statistics: EpochStatistics) -> Array:
        counts = statistics.train.counts.total
        confusion = class_mean(statistics.train.probabilities, counts)
        weights = class_weights(confusion, strength=strength)
        return jnp.where(statistics.epoch == warmup_epochs, weights, state)

    sets = "ce_weight", "radius", "step_size"
    return stated(num_classes, *sets, reads=("train",), update=update)


def class_weights(confusion: Array, *, strength: float) -> Array:
    """Returns `W_i = 1 + strength * sum_j d_ij`: more for the harder class of each near pair.

    `d_ij = P_ij P_jj` if class `i` is the less certain one, `P_ii < P_jj`; otherwise `-P_ji P_ii`.

    `P` is `confusion`, `[K, K]`, row `i` the mean predicted probabilities of class `i`; rows of
    absent classes are zero and weigh 1.

    Guarantees: without ties of `P_ii` the weights sum to `K`; a tie takes from both.
    """
    certainty = jnp.diagonal(confusion)
    is_harder = certainty[:, None] < certainty[None]
    gain = confusion * certainty[None]
    moved = jnp.where(is_harder, gain, -gain.T)
    is_pair = (certainty[:, None] > 0) & (certainty[None] > 0)
    is_pair &= ~jnp.eye(len(confusion), dtype=bool)
    return jnp.maximum(1 + strength * jnp.sum(jnp.where(is_pair, moved, 0.0), axis=1), 0.0)
