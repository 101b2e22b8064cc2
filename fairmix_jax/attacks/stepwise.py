"""Attacks as steps on one example, and what every step needs of the network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fairmix_jax.models.rewrite_convolutions import rewrite_convolutions
from fairmix_jax.runtime.closures import as_partial
from fairmix_jax.runtime.inputs import checked_logits
from fairmix_jax.types import Array, Key, LogitsFn

Network = Callable[[Array, Key], Array]
"""Maps one image `[H, W, C]` and a key to logits `[K]`; the key matters to random models."""


class Randomized(NamedTuple):
    """A model that draws random numbers, to be given where a `logits_fn` is asked for.

    `apply` is `(images [B, H, W, C], key) -> logits [B, K]` and consumes the key; a
    `jax.tree_util.Partial` keeps its weights out of the compiled program.
    """

    apply: Callable[[Array, Key], Array]


class Example(NamedTuple):
    """An example as an attack sees it."""

    image: Array  # [H, W, C]
    label: Array  # [] int32, the true class
    rivals: Array  # [K - 1] int32, the other classes by falling logit on the clean image
    epsilon: Array  # [], the radius
    key: Key  # to be consumed by `start`, or by one call of `step`
    network_key: Key  # likewise, for the network


class Stepwise(NamedTuple):
    """An attack: runs (restarts, targets) of steps, on one example, as pure functions.

    A loop that calls `step` for many examples under `vmap` is the attack, see `slots`. A state
    is a pytree of arrays with at least `broken`, `[]` bool, whether a misclassified point in the
    ball was found, which stays true, and `adversarial`, `[H, W, C]`, that point.
    """

    num_runs: Callable[[int], int]  # of the number of classes: runs until one breaks the example
    num_steps: int  # of a run
    start: Callable[[Example, Array], Any]  # `(Example, run) -> State`; runs count from 0, int32
    step: Callable[[Network, Example, Array, Array, Any], Any]
    # `(Network, Example, run, count, State) -> State`, `count` the steps that the run has done
    passes: Callable[[int], tuple[int, int]]
    # of the number of classes: forward and gradient (forward and backward) passes of a step


Classifier = LogitsFn | Randomized


def partial_of(classifier: Classifier, images: Any) -> Partial:
    """Returns it as a pytree `(images, key) -> logits`, as it is now for images of this shape.

    Arrays of a `Partial` are leaves; what another function closes over is in the program.
    """
    if isinstance(classifier, Randomized):
        return Partial(_with_key, as_partial(classifier.apply, images[:1], jax.random.key(0)))
    return Partial(_without_key, as_partial(classifier, images[:1]))


def _with_key(apply: Partial, images: Array, key: Key) -> Array:
    return checked_logits(rewrite_convolutions(apply)(images, key), len(images))


def _without_key(logits_fn: LogitsFn, images: Array, _: Key) -> Array:
    return checked_logits(rewrite_convolutions(logits_fn)(images), len(images))


def network_of(apply: Callable[[Array, Key], Array]) -> Network:
    """Returns a batch function `(images, key) -> logits` as one of a single image."""
    return lambda image, key: apply(image[None], key)[0]


def misclassified(logits: Array, label: Array) -> Array:
    """Returns whether the largest logit of `[..., K]` is another class's, or any is not finite."""
    return (jnp.argmax(logits, axis=-1) != label) | ~jnp.all(jnp.isfinite(logits), axis=-1)
