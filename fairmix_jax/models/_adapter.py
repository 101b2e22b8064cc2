"""The one place that knows flax: a linen module becomes two pure functions."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairmix_jax.types import Model


def build(
    module: nn.Module, image_shape: Sequence[int], *, mean: Sequence[float], std: Sequence[float]
) -> Model:
    """Returns the module as a `Model` that normalises its input itself.

    Args:
      module: maps `[B, H, W, C]` to logits `[B, K]`; its `__call__` takes `train` and
        `hidden`, see `ApplyFn`.
      image_shape: `(H, W, C)`.
      mean, std: `[C]` each, in pixel units; the module sees `(images - mean) / std`.
    """
    shift, factor = jnp.asarray(mean, jnp.float32), 1 / jnp.asarray(std, jnp.float32)

    def normalise(images):
        own = [part.astype(images.dtype)[None, None, None] for part in (shift, factor)]
        return (images - own[0]) * own[1]

    def init(key):
        start = partial(module.init, train=False, hidden=lambda features: features)
        variables = jax.jit(start)(key, jnp.zeros((1, *image_shape)))
        return variables["params"], variables.get("batch_stats", {})

    def apply(params, batch_stats, images, *, train, hidden=lambda features: features):
        variables = {"params": params, "batch_stats": batch_stats}
        call = partial(module.apply, variables, normalise(images), train=train, hidden=hidden)
        if not train:
            return call(), batch_stats
        logits, updated = call(mutable=["batch_stats"])
        return logits, updated.get("batch_stats", batch_stats)

    return Model(init, apply)
