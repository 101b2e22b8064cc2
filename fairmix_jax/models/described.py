"""Networks as pure functions, made from flax modules or from descriptions, and their weights."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.core import Tracer
from jax.tree_util import Partial

from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.types import ApplyFn, Array, Key, Model, Weights


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
    call = module.__call__

    def start(key):
        images, options = as_named(call, jnp.zeros((1, *image_shape)), train=False)
        variables = module.init(key, images, **options)
        return variables["params"], variables.get("batch_stats", {})

    def apply(params, batch_stats, images, *, train, hidden=lambda features: features):
        variables = {"params": params, "batch_stats": batch_stats}
        images, options = as_named(call, images, train=train, hidden=hidden)
        if not train:
            return module.apply(variables, images, **options), batch_stats
        logits, updated = module.apply(variables, images, mutable=["batch_stats"], **options)
        return logits, updated.get("batch_stats", batch_stats)

    return normalised(Model(drawn(start), apply), mean=mean, std=std)


def normalised(model: Model, *, mean: Sequence[float], std: Sequence[float]) -> Model:
    """Returns a model that sees `(images - mean) / std`, both `[C]` and in pixel units."""
    shift, factor = jnp.asarray(mean, jnp.float32), 1 / jnp.asarray(std, jnp.float32)

    def apply(params, batch_stats, images, **options):
        own = [part.astype(images.dtype)[None, None, None] for part in (shift, factor)]
        return model.apply(params, batch_stats, (images - own[0]) * own[1], **options)

    return model._replace(apply=apply)


def as_named(
    call: Callable[..., Any], images: Array, *, train: bool,
    hidden: Callable[[Array], Array] = lambda features: features,
) -> tuple[Array, dict[str, Any]]:  # fmt: skip
    """Returns the images and options to call a network with: those that its signature names.

    They are `train`, or as `is_training`, and `hidden`, without which the images are the hidden
    features.
    """
    named = inspect.signature(call).parameters
    options = {"train": train, "is_training": train, "hidden": hidden}
    options = {name: value for name, value in options.items() if name in named}
    return images if "hidden" in named else hidden(images), options


def drawn(start: Callable[[Key], tuple[Any, Any]]) -> Callable[[Key], tuple[Any, Any]]:
    """Returns the function of a key that draws weights, compiled for a single use.

    On CPU the draws of a network's weights compile for as long as its training step. They run
    once: fewer of LLVM's passes give the same bits in a quarter of the time.
    """

    def init(key):
        if isinstance(key, Tracer):
            return start(key)
        quick = {"xla_backend_optimization_level": 1}
        options = quick if jax.default_backend() == "cpu" else None
        return jax.jit(start, compiler_options=options)(key)

    return init


def build_model(card: Mapping[str, Any]) -> Model:
    """Returns the model of a `model_card`; `UsageError` if it or its arguments are unknown.

    A member that is no linen module is a function from the shape of the images to a `Model`; a
    `UsageError` says if that cannot be trained, or returns no logits.
    """
    chosen, shape, num_classes = card["model"], card["image_shape"], len(card["classes"])
    make = registry.load("models", chosen["name"])
    try:
        made = make(num_classes, **registry.arguments("models", chosen))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if isinstance(made, nn.Module):
        return from_linen(made, shape, mean=card["mean"], std=card["std"])
    try:
        model = made(tuple(shape))
        _require_logits(model, shape, num_classes)
    except ValueError as error:
        raise UsageError(f"model.name={chosen['name']!r}: {error}") from error
    return normalised(model, mean=card["mean"], std=card["std"])


def _require_logits(model: Model, image_shape: Sequence[int], num_classes: int) -> None:
    """Raises a ValueError unless the network maps two images to their logits in training."""

    def trained() -> Array:
        weights = model.init(jax.random.key(0))
        return model.apply(*weights, jnp.zeros((2, *image_shape)), train=True)[0]

    if (found := jax.eval_shape(trained).shape) != (2, num_classes):
        raise ValueError(f"it maps two images to {list(found)}, not to logits [2, {num_classes}]")


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
