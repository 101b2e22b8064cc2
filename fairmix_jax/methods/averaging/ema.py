"""Exponential moving average of the weights."""

import jax
import jax.numpy as jnp

from fairmix_jax.methods.averaging import checked, start
from fairmix_jax.types import Array, Averaging, ShareBelowOne, Source, Weights

SOURCE = Source(
    "Izmailov et al. 2018, arXiv 1803.05407; ramp Rebuffi et al. 2021, arXiv 2103.01946"
)


@checked
def make(*, decay: ShareBelowOne = 0.999) -> Averaging:
    """Returns `average <- d average + (1 - d) weights` after every step.

    The decay ramps up, `d = min(decay, (1 + t) / (10 + t))` after `t` steps, so that the
    random initial weights are soon forgotten. A `decay` of 0.999 remembers about the last 1,000
    steps, 0 evaluates the current weights. Of half precision it is kept in float32.
    """

    def update(average: Weights, weights: Weights, step: Array) -> Weights:
        t = step.astype(jnp.float32)
        rate = jnp.minimum(decay, (1 + t) / (10 + t))
        return jax.tree.map(
            lambda a, w: rate * a + (1 - rate) * w.astype(a.dtype), average, weights
        )

    def weights(average: Weights, current: Weights) -> Weights:
        return jax.tree.map(lambda a, w: a.astype(w.dtype), average, current)

    return Averaging(start, update, weights)
