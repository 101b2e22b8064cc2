"""Networks of Equinox; the extra `equinox` brings it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fairmix_jax.models.adapters import as_model
from fairmix_jax.types import Array, Key, Model


def from_equinox(make: Callable[[Key], eqx.Module], *, axis_name: str = "batch") -> Model:
    """Returns the network that `make(key)` builds, from one image to logits `[K]`, as a `Model`.

    It is called with one image `[C, H, W]`, Equinox's order, under a `vmap` whose axis is
    `axis_name`, the one that its batch norms are to name. If its `__call__` names `state`, it is
    called with that, and returns `(logits, state)`. A `key` that it names is `None`.

    Its float arrays are trained. Integer arrays in it, such as tables of indices, are constants:
    those of `make(jax.random.key(0))`. Evaluation calls it in Equinox's inference mode, training
    as `make` left it. Its hidden features are its input.

    Raises:
      ValueError: of `apply` in training: the network draws random numbers, as dropout does.
    """
    build = eqx.nn.make_with_state(make)

    def draw(key: Key) -> tuple[Any, Any]:
        model, state = build(key)
        return eqx.filter(model, eqx.is_inexact_array), state

    rest = eqx.filter_jit(lambda key: eqx.filter(build(key)[0], eqx.is_inexact_array, inverse=True))
    static = rest(jax.random.key(0))

    def call(params, state, images, *, train, hidden):
        model = eqx.combine(params, static)
        model = model if train else eqx.nn.inference_mode(model)
        return _mapped(model, state, axis_name, hidden(images))

    return as_model(draw, call)


def equinox_logits(
    model: eqx.Module, state: eqx.nn.State | None = None, *, axis_name: str = "batch"
) -> Partial:
    """Returns a trained network in inference mode as a function `[B, H, W, C] -> [B, K]`.

    It is called as in `from_equinox`. Its arrays are arguments of compiled programs.
    """
    arrays, static = eqx.partition((eqx.nn.inference_mode(model), state), eqx.is_array)

    def judged(arrays: Any, images: Array) -> Array:
        return _mapped(*eqx.combine(arrays, static), axis_name, images)[0]

    return Partial(judged, arrays)


def _mapped(model: Any, state: Any, axis_name: str, images: Array) -> tuple[Array, Any]:
    named = inspect.signature(model.__call__).parameters
    call = partial(model, key=None) if "key" in named else model

    def one(image: Array, state: Any) -> tuple[Array, Any]:
        image = jnp.moveaxis(image, -1, 0)
        return call(image, state=state) if "state" in named else (call(image), state)

    return jax.vmap(one, (0, None), (0, None), axis_name=axis_name)(images, state)
