"""Attacks as steps on one example, and what every step needs of the network."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from fairmix_jax.adopt import adopt
from fairmix_jax.types import Array, Key, LogitsFn

Network = Callable[[Array, Key], Array]
"""Maps one image `[H, W, C]` and a key to logits `[K]`; the key matters to random models."""


class Randomized(NamedTuple):
    """A model that draws random numbers, to be given where a `logits_fn` is asked for.

    Attributes:
      apply: `(images [B, H, W, C], key) -> logits [B, K]`; consumes the key. A
        `jax.tree_util.Partial` keeps its weights out of the compiled program.
    """

    apply: Callable[[Array, Key], Array]


class Example(NamedTuple):
    """What an attack knows of the example it works on.

    Attributes:
      image: `[H, W, C]`.
      label: `[]` int32, the true class.
      rivals: `[K - 1]` int32, the other classes by falling logit on the clean image.
      epsilon: `[]`, the radius.
      key: `[]`, to be consumed by `start`, or by one call of `step`.
      network_key: `[]`, likewise, for the network.
    """

    image: Array
    label: Array
    rivals: Array
    epsilon: Array
    key: Key
    network_key: Key


class State(Protocol):
    """What a run remembers between steps: a pytree of arrays with at least these."""

    @property
    def broken(self) -> Array:
        """`[]` bool, whether a misclassified point in the ball was found; stays true."""

    @property
    def adversarial(self) -> Array:
        """`[H, W, C]`, that point where `broken`."""


class Stepwise(NamedTuple):
    """An attack: runs (restarts, targets) of steps, on one example, as pure functions.

    A loop that calls `step` for many examples under `vmap` is the attack; since every
    example has its own state, counter and key, the examples may be at different steps,
    leave when they are broken and make room for others, and no result depends on which
    examples are attacked together.

    Attributes:
      num_runs: number of classes `K -> ` runs an example gets until one breaks it.
      num_steps: steps of a run.
      start: `(Example, run) -> State`, `run` an int32 scalar that counts from 0.
      step: `(Network, Example, run, count, State) -> State`; `count` is the number of steps
        the run has done.
      passes: number of classes `K -> (forward, gradient)` passes of a step, a gradient
        pass being a forward and a backward one.
    """

    num_runs: Callable[[int], int]
    num_steps: int
    start: Callable[[Example, Array], Any]
    step: Callable[[Network, Example, Array, Array, Any], Any]
    passes: Callable[[int], tuple[int, int]]


def partial_of(logits_fn: LogitsFn | Randomized) -> Partial:
    """Returns the model as a pytree `(images, key) -> logits`, with the convolutions of `conv`.

    Arrays of a `Partial` are leaves; convolutions as in `fairmix_jax.adopt`.
    """
    is_random = isinstance(logits_fn, Randomized)
    inner = logits_fn.apply if is_random else logits_fn
    inner = inner if isinstance(inner, Partial) else Partial(inner)
    return Partial(_with_key if is_random else _without_key, inner)


def _with_key(apply: Partial, images: Array, key: Key) -> Array:
    return adopt(apply)(images, key)


def _without_key(logits_fn: LogitsFn, images: Array, _: Key) -> Array:
    return adopt(logits_fn)(images)


def network_of(apply: Callable[[Array, Key], Array]) -> Network:
    """Returns a batch function `(images, key) -> logits` as one of a single image."""
    return lambda image, key: apply(image[None], key)[0]


def misclassified(logits: Array, label: Array) -> Array:
    """Returns whether the largest logit is another class's, or any logit is not finite.

    Args:
      logits: `[..., K]`.
      label: `[...]` int.
    """
    return (jnp.argmax(logits, axis=-1) != label) | ~jnp.all(jnp.isfinite(logits), axis=-1)


def value_and_gradient(
    network: Network,
    key: Key,
    image: Array,
    objective: Callable[[Array], Array],
    num_draws: int = 1,
) -> tuple[Array, Array, Array]:
    """Returns `objective(logits)`, the logits and the gradient in the image, each `[...]`.

    A gradient that is not finite counts as zero, so that it cannot spoil the image. With
    `num_draws` above 1 (expectation over transformation) the gradient is the mean over
    that many draws of a random network, value and logits are those of the last.

    Args:
      network: see `Network`.
      key: of the random network; consumed.
      image: `[H, W, C]`.
      objective: `logits [K] -> []`.
      num_draws: static, at least 1.

    Reference: Athalye et al. 2018, arXiv 1707.07397.
    """

    def once(key: Key):
        def evaluate(x: Array):
            logits = network(x, key)
            return objective(logits), logits

        (value, logits), gradient = jax.value_and_grad(evaluate, has_aux=True)(image)
        return value, logits, jnp.where(jnp.isfinite(gradient), gradient, 0.0)

    if num_draws == 1:
        return once(key)

    def again(total: Array, draw: Array):
        value, logits, gradient = once(jax.random.fold_in(key, draw))
        return total + gradient, (value, logits)

    total, (values, logits) = lax.scan(again, jnp.zeros_like(image), jnp.arange(num_draws))
    return values[-1], logits[-1], total / num_draws
