"""TRIX: DAFA's weights, and targeted attacks on the classes that are strong in the batch."""

import jax
import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import class_mean
from fairmix_jax.methods.rules import checked, dafa
from fairmix_jax.types import Amount, Array, Count, Key, Rule, Source

SOURCE = Source("Medi et al. 2025, arXiv 2507.07768", "Fairness-a11y/TRIX", "none")


@checked
def make(
    num_classes: int, *, warmup_epochs: Count = 70, strength: Amount = 1.0, mixed: bool = True
) -> Rule:
    """Returns `dafa` whose training attack is targeted for classes that do well.

    In each batch DAFA's weights are computed from the clean predictions, with strength 1. A
    class below the mean weight of the examples is strong: its examples are pushed towards a
    random wrong class. The others are attacked as ever. That starts with the first step.

    Guarantees: `mixed = False` is `dafa`, and `strength = 0` with it is `none`.

    The first two options are those of `dafa`. The paper was not read.
    """
    rule = dafa.make(num_classes, warmup_epochs=warmup_epochs, strength=strength)
    return rule._replace(targets=_targets) if mixed else rule


def _targets(key: Key, probabilities: Array, labels: Array) -> Array:
    num_classes = probabilities.shape[1]
    members = jax.nn.one_hot(labels, num_classes)
    counts = jnp.sum(members, axis=0)
    sums = jnp.tensordot(members, probabilities, axes=(0, 0), precision="highest")
    weights = dafa.class_weights(class_mean(sums, counts), strength=1.0)
    is_strong = weights < jnp.sum(weights * counts) / jnp.sum(counts)
    hop = jax.random.randint(key, labels.shape, 1, num_classes)
    return jnp.where(is_strong[labels], (labels + hop) % num_classes, -1)
