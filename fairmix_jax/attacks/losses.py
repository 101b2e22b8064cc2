"""Objectives that attacks maximise: functions of one example's logits and its target."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fairmix_jax.types import Array

Objective = Callable[[Array, Any], Array]
TargetedObjective = Callable[[Array, Array, Array], Array]


def cross_entropy(logits: Array, target: Array) -> Array:
    """Returns `-sum_k target_k log softmax(logits)_k`, exact to the precision of a small loss.

    Args:
      logits: `[K]`.
      target: `[]` int, a class, or `[K]` float, class probabilities.
    """
    if target.ndim == 0:
        return -pick(jax.nn.log_softmax(logits), target)
    return optax.softmax_cross_entropy(logits, target)


def margin(logits: Array, target: Array) -> Array:
    """Returns `max_{k != y} logits_k - logits_y`, positive exactly where misclassified.

    Args:
      logits: `[K]` with `K >= 2`.
      target: `[]` int, the class `y`.

    Reference: the f6 objective of Carlini and Wagner 2017, arXiv 1608.04644.
    """
    is_target = jnp.arange(logits.shape[0]) == target
    return jnp.max(jnp.where(is_target, -jnp.inf, logits)) - pick(logits, target)


def dlr(logits: Array, target: Array) -> Array:
    """Returns the difference of logits ratio `-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))`.

    `z_(i)` is the i-th largest logit. Shifting or scaling the logits does not change it
    (up to the 1e-12 added to the denominator), so it does not saturate. The gradient flows
    through the denominator too. With two classes it is undefined, and this is `margin`.

    Args:
      logits: `[K]` with `K >= 2`.
      target: `[]` int, the class `y`.

    Reference: Croce and Hein 2020, arXiv 2003.01690, equation 6.
    """
    if logits.shape[0] < 3:
        return margin(logits, target)
    top, classes = _largest(logits, 3)
    other = jnp.where(classes[0].astype(target.dtype) == target, top[1], top[0])
    return -(pick(logits, target) - other) / (top[0] - top[2] + 1e-12)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """Returns `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`, for a class `t` to move to.

    As `dlr`; with fewer than four classes it is undefined, and this is `targeted_margin`.

    Args:
      logits: `[K]` with `K >= 2`.
      label, target: `[]` int, the classes `y` and `t`.

    Reference: Croce and Hein 2020, arXiv 2003.01690, equation 7.
    """
    if logits.shape[0] < 4:
        return targeted_margin(logits, label, target)
    top, _ = _largest(logits, 4)
    return -(pick(logits, label) - pick(logits, target)) / (top[0] - (top[2] + top[3]) / 2 + 1e-12)


def pick(values: Array, position: Array) -> Array:
    """`values[position]` of a vector; its gradient needs no scatter, which is slow on CPU."""
    return jnp.sum(jnp.where(jnp.arange(values.shape[0]) == position, values, 0.0))


def _largest(logits: Array, number: int) -> tuple[list[Array], list[Array]]:
    """The largest logits, falling, and their classes; among equals the first class first.

    Each gets the whole gradient of its own. A few passes are cheaper than a sort.
    """
    values, classes, rest = [], [], lax.stop_gradient(logits)
    for _ in range(number):
        classes.append(jnp.argmax(rest))
        values.append(pick(logits, classes[-1]))
        rest = jnp.where(jnp.arange(logits.shape[0]) == classes[-1], -jnp.inf, rest)
    return values, classes


def targeted_margin(logits: Array, label: Array, target: Array) -> Array:
    """Returns `z_t - z_y`; arguments as in `targeted_dlr`."""
    return pick(logits, target) - pick(logits, label)


def kl(logits: Array, target: Array) -> Array:
    """Returns `KL(target || softmax(logits))`.

    Args:
      logits: `[K]`.
      target: `[K]` probabilities, for TRADES those of the clean image; zeros are allowed.

    Reference: Zhang et al. 2019, arXiv 1901.08573.
    """
    return optax.losses.kl_divergence(jax.nn.log_softmax(logits), target)


_BY_NAME: dict[str, Objective] = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "kl": kl}
_TARGETED: dict[str, TargetedObjective] = {"dlr": targeted_dlr, "margin": targeted_margin}


def objective(loss: str | Objective) -> Objective:
    """Returns the objective of that name, or `loss` itself if it is a function.

    Raises:
      ValueError: unknown name.
    """
    return _choose(loss, _BY_NAME)


def targeted_objective(loss: str | TargetedObjective) -> TargetedObjective:
    """As `objective`, for objectives `(logits, label, target)`."""
    return _choose(loss, _TARGETED)


def _choose(loss, by_name):
    if not isinstance(loss, str):
        return loss
    if loss not in by_name:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(by_name)}")
    return by_name[loss]
