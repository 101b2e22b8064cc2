"""Networks as pure functions, made from flax modules or from descriptions, and their weights."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.core import Tracer
from jax.tree_util import Partial

from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.types import ApplyFn, Array, Model, Weights


def from_linen(
    module: nn.Module, image_shape: Sequence[int], *, mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Model:  # fmt: skip
    """Returns a module that maps `[B, H, W, C]` to logits `[B, K]` as a `Model`.

    The module sees `(images - mean) / std`, both `[C]` and in pixel units, of images of a shape
    `(H, W, C)`. Its `__call__` is given `train` and `hidden` only if its signature names them
    (`**kwargs` does not count). A module without `train` does the same in training; one
    without `hidden` has no hidden features but its normalised input. See `ApplyFn`.
    """
    shift, factor = jnp.asarray(mean, jnp.float32), 1 / jnp.asarray(std, jnp.float32)
    named = inspect.signature(module.__call__).parameters

    def normalise(images):
        own = [part.astype(images.dtype)[None, None, None] for part in (shift, factor)]
        return (images - own[0]) * own[1]

    def named_only(**given):
        return {name: value for name, value in given.items() if name in named}

    def init(key):
        start = partial(module.init, **named_only(train=False, hidden=lambda features: features))
        # On CPU the draws of a network's weights compile for as long as its training step.
        # They run once: fewer of LLVM's passes give the same bits in a quarter of the time.
        if not isinstance(key, Tracer):
            quick = {"xla_backend_optimization_level": 1}
            options = quick if jax.default_backend() == "cpu" else None
            start = jax.jit(start, compiler_options=options)
        variables = start(key, jnp.zeros((1, *image_shape)))
        return variables["params"], variables.get("batch_stats", {})

    def apply(params, batch_stats, images, *, train, hidden=lambda features: features):
        variables, images = {"params": params, "batch_stats": batch_stats}, normalise(images)
        images = images if "hidden" in named else hidden(images)
        call = partial(module.apply, variables, images, **named_only(train=train, hidden=hidden))
        if not train:
            return call(), batch_stats
        logits, updated = call(mutable=["batch_stats"])
        return logits, updated.get("batch_stats", batch_stats)

    return Model(init, apply)


def build_model(card: Mapping[str, Any]) -> Model:
    """Returns the model of a `model_card`; `UsageError` if it or its arguments are unknown."""
    chosen = card["model"]
    make = registry.load("models", chosen["name"])
    try:
        module = make(len(card["classes"]), **registry.arguments("models", chosen))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return from_linen(module, card["image_shape"], mean=card["mean"], std=card["std"])


def weights_template(model: Model) -> Weights:
    """Returns zeros with the structure, shapes and types of a model's weights."""
    shapes = jax.eval_shape(lambda: Weights(*model.init(jax.random.key(0))))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def logits_partial(apply_fn: ApplyFn, weights: Weights, dtype: Any = jnp.float32) -> Partial:
    """Returns the model in a data type as a function of images, with logits of their type."""

    def logits_fn(weights: Weights, images: Array) -> Array:
        logits, _ = apply_fn(weights.params, weights.batch_stats, images.astype(dtype), train=False)
        return logits.astype(images.dtype)

    return Partial(logits_fn, jax.tree.map(lambda leaf: leaf.astype(dtype), weights))
