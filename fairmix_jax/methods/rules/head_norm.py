"""Head normalisation: equal norms of the last layer's rows, after training."""

from typing import Literal

import jax
import jax.numpy as jnp

from fairmix_jax.methods.rules import checked, knobs
from fairmix_jax.types import Array, Rule, Source, Weights

SOURCE = Source("OpenReview submission on the implicit bias of class-wise disparity (rejected)")


@checked
def make(num_classes: int, *, to: Literal["one", "mean"] = "one") -> Rule:
    """Returns a rule that leaves training alone and normalises the head of what is evaluated.

    Each class's row of the last linear layer is divided by its norm; biases stay. The rows'
    norms are said to follow the classes' robust accuracy; this takes that away for free.

    Guarantees: with `to="mean"` and rows of equal norm the weights stay, up to rounding.

    The common norm is one or, `to="mean"`, the rows' mean, which keeps the scale of the logits
    beside the biases. ValueError, on use, if the parameters hold no such layer, or several. Of
    the source abstract and reviews only were read.
    """

    def is_head(leaf: Array) -> bool:
        return leaf.ndim == 2 and leaf.shape[1] == num_classes

    def normalised(leaf: Array) -> Array:
        if not is_head(leaf):
            return leaf
        norms = jnp.linalg.norm(leaf, axis=0, keepdims=True)
        target = jnp.mean(norms) if to == "mean" else jnp.ones(())
        return leaf * (target / jnp.where(norms > 0, norms, 1.0))

    def finish(weights: Weights) -> Weights:
        number = sum(map(is_head, jax.tree.leaves(weights.params)))
        if number != 1:
            raise ValueError(
                f"rule.name='head_norm' found {number} layers with {num_classes} outputs; "
                "it needs a model with exactly one"
            )
        return weights._replace(params=jax.tree.map(normalised, weights.params))

    return Rule(lambda: (), lambda state: knobs(num_classes), finish=finish)
