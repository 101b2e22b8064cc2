"""Networks of Flax NNX."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.tree_util import Partial

from fairmix_jax.models.adapters import as_model
from fairmix_jax.models.described import as_named
from fairmix_jax.types import Array, Key, Model


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Returns the network that `make(rngs)` builds, from `[B, H, W, C]` to `[B, K]`, as a `Model`.

    Its `nnx.Param` are trained; all else that it holds is state, such as the statistics of a batch
    norm. Plain arrays in it are state, too: those of `make(nnx.Rngs(0))`. Training calls it after
    `train()`, evaluation after `eval()`. Its `__call__` may name `train` and `hidden`, as that of a
    linen module (`described.from_linen`). Nothing of it is written to: each call merges a copy.

    Where `make` returns a network that exists, `init` has that network's weights for any key.

    Raises:
      ValueError: of `apply` in training: the network draws random numbers, as dropout does.
    """
    skeleton = nnx.clone(make(nnx.Rngs(0)))  # made, for to NNX a tracer is no array but static
    skeleton.eval()
    evaluated = _parts(skeleton)[0]
    skeleton.train()
    trained, _, keys, state = _parts(skeleton)
    keys = jax.eval_shape(lambda: keys)  # without values: to draw from one is an error
    plain = nnx.filter_state(state, nnx.Not(nnx.Variable))

    def draw(key: Key) -> tuple[Any, Any]:
        _, params, _, state = _parts(make(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(nnx.merge_state(state, plain))

    def call(params, state, images, *, train, hidden):
        graph = trained if train else evaluated
        module = nnx.merge(graph, params, keys, state, copy=True)
        images, options = as_named(module.__call__, images, train=train, hidden=hidden)
        logits = module(images, **options)
        return logits, nnx.to_pure_dict(_parts(module)[3])

    return as_model(draw, call)


def nnx_logits(module: nnx.Module) -> Partial:
    """Returns a trained network in evaluation mode as a function `[B, H, W, C] -> [B, K]`.

    Its weights are arguments of compiled programs, which networks of one structure share. The
    module stays as it is, in its mode.
    """
    copy = nnx.clone(module)
    copy.eval()
    return Partial(_judged, *nnx.split(copy))


def _judged(graph: Any, state: Any, images: Array) -> Array:
    module = nnx.merge(graph, state, copy=True)
    images, options = as_named(module.__call__, images, train=False)
    return module(images, **options)


def _parts(module: nnx.Module) -> tuple[Any, ...]:
    """The graph, parameters, random keys and other state."""
    return nnx.split(module, nnx.Param, nnx.RngState, ...)
