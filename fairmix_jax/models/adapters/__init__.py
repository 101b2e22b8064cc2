"""Networks of other libraries as a `Model`, one file a library; extras bring the libraries.

Inside an adapter the weights have the library's types. Outside they are what training expects:
nested dicts of float arrays, by their paths in the library. Three things differ there:

* Integers and flags of the state, such as the counter of a batch norm, are floats, and are rounded
  on the way in. So an average of weights has the average of the counter that belongs to it.
* An array of which one axis alone is longer than 1 is a vector, as a bias or the scale of a norm
  is in linen: weight decay and weight perturbation tell those by their rank.
* Random keys stay outside: a network that draws random numbers in training is refused.

Complex numbers are refused, and whole numbers beyond 2**24, which float32 does not tell apart.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fairmix_jax.models.described import drawn
from fairmix_jax.runtime.sealed import named
from fairmix_jax.types import Array, BatchStats, Key, Model, Params


def as_model(
    draw: Callable[[Key], tuple[Any, Any]], call: Callable[..., tuple[Array, Any]]
) -> Model:
    """Returns a network of another library, which sees the images as they are, as a `Model`.

    Args:
      draw: `key -> (params, state)`, pytrees of arrays; the key is consumed.
      call: `(params, state, images, *, train, hidden) -> (logits, state)`, as `ApplyFn`. Of its
        state what `draw` has not is dropped.

    Raises:
      ValueError: the weights or the state hold what float32 does not, such as random keys; or, of
        `apply` in training, the network fails.
    """
    outer = [_Border(shapes) for shapes in jax.eval_shape(draw, jax.random.key(0))]

    def whole(key: Key) -> dict[str, Array]:
        leaves = named(draw(key)).items()
        return {name: leaf for name, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.integer)}

    for name, leaf in jax.jit(whole)(jax.random.key(0)).items():
        if np.abs(np.asarray(leaf, np.int64)).max(initial=0) > 2**24:
            raise ValueError(f"the network's {name[2:]!r} holds whole numbers beyond 2**24")

    def init(key: Key) -> tuple[Params, BatchStats]:
        params, state = (
            border.outside(tree) for border, tree in zip(outer, draw(key), strict=True)
        )
        return params, state

    def apply(params, batch_stats, images, *, train, hidden=lambda features: features):
        native = (border.inside(t) for border, t in zip(outer, (params, batch_stats), strict=True))
        try:
            logits, state = call(*native, images, train=train, hidden=hidden)
        except Exception as error:  # every library has its own for a missing key
            if not train:
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                "the network fails in training, where it is given no random key; set the rate of "
                f"dropout, and of whatever else draws random numbers, to 0 ({said})"
            ) from error
        return logits, outer[1].outside(state) if train else batch_stats

    return Model(drawn(init), apply)


class _Border:
    """What a pytree of a library is outside of its adapter, and the way back."""

    def __init__(self, shapes: Any):
        self._shapes, self._structure = named(shapes), jax.tree.structure(shapes)
        for name, leaf in self._shapes.items():
            kinds = (jnp.floating, jnp.signedinteger, jnp.bool_)
            if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
                raise ValueError(
                    f"the network's {name!r} is of type {leaf.dtype}; weights and state are of "
                    "real floats, signed integers and booleans, and hold no random keys"
                )

    def outside(self, tree: Any) -> dict[str, Any]:
        found = named(tree)
        return unflatten_dict({name: _as_floats(found[name]) for name in self._shapes}, sep="/")

    def inside(self, tree: dict[str, Any]) -> Any:
        found = flatten_dict(tree, sep="/")
        leaves = [_as_native(found[name], leaf) for name, leaf in self._shapes.items()]
        return jax.tree.unflatten(self._structure, leaves)


def _as_floats(leaf: Array) -> Array:
    is_vector = leaf.ndim > 1 and leaf.size == max(leaf.shape)
    leaf = leaf.ravel() if is_vector else leaf
    return leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(jnp.float32)


def _as_native(leaf: Array, known: jax.ShapeDtypeStruct) -> Array:
    leaf = leaf.reshape(known.shape)
    is_float = jnp.issubdtype(known.dtype, jnp.inexact)
    return leaf if is_float else jnp.round(leaf).astype(known.dtype)
