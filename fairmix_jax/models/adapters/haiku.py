"""Networks of Haiku; the extra `haiku` brings it."""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax.numpy as jnp
from jax.tree_util import Partial

from fairmix_jax.models.adapters import as_model
from fairmix_jax.models.described import as_named
from fairmix_jax.types import Array, Key, Model


def from_haiku(forward: Callable[..., Array], image_shape: Sequence[int]) -> Model:
    """Returns a function of Haiku modules, from `[B, H, W, C]` to `[B, K]`, as a `Model`.

    `forward(images)` is not transformed yet. It may name `is_training` or `train` (for batch norm)
    and `hidden`, as a linen module may (`described.from_linen`). Images are of `image_shape`,
    `(H, W, C)`.

    Raises:
      ValueError: of `apply` in training: the network draws random numbers, as dropout does.
    """
    transformed = hk.transform_with_state(forward)

    def draw(key: Key) -> tuple[Any, Any]:
        images = jnp.zeros((1, *image_shape))
        images, options = as_named(forward, images, train=True)
        return transformed.init(key, images, **options)

    def call(params, state, images, *, train, hidden):
        images, options = as_named(forward, images, train=train, hidden=hidden)
        return transformed.apply(params, state, None, images, **options)

    return as_model(draw, call)


def haiku_logits(forward: Callable[..., Array], params: Any, state: Any = None) -> Partial:
    """Returns a trained network in evaluation mode as a function `[B, H, W, C] -> [B, K]`.

    `forward` as in `from_haiku`; params and state as its transformation made them. They are
    arguments of compiled programs.
    """

    def judged(params: Any, state: Any, images: Array) -> Array:
        images, options = as_named(forward, images, train=False)
        apply = hk.transform_with_state(forward).apply
        return apply(params, state, None, images, **options)[0]

    return Partial(judged, params, state or {})
