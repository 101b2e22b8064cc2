"""Weight averaging: which weights are evaluated, one file each.

A file exports `make(*, ...) -> Averaging`, `checked`, and `SOURCE`. Averages cover the batch
statistics too, so that the averaged network is normalised by what its own weights produce.
"""

import jax
import jax.numpy as jnp

from fairmix_jax.runtime.inputs import as_single
from fairmix_jax.runtime.registry import checked as checked
from fairmix_jax.types import Weights


def start(weights: Weights) -> Weights:
    """Returns a copy to average in: float32 where it is less, which would lose small changes."""
    return jax.tree.map(lambda weight: jnp.array(as_single(weight)), weights)
