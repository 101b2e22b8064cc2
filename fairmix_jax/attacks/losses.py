"""Objectives that attacks maximise: functions of one example's logits and its target.

Logits are `[K]` with `K >= 2`; labels and targets are classes, `[]` int, unless said otherwise.
The ratios are equations 6 and 7 of Croce and Hein 2020, arXiv 2003.01690.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.types import Array

Objective = Callable[[Array, Any], Array]
TargetedObjective = Callable[[Array, Array, Array], Array]


def cross_entropy(logits: Array, target: Array) -> Array:
    """Returns `-sum_k target_k log softmax(logits)_k`, exact to the precision of a small loss.

    The target is a class, or `[K]` float, class probabilities.
    """
    if target.ndim == 0:
        return -pick(jax.nn.log_softmax(logits), target)
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def kl(logits: Array, target: Array) -> Array:
    """Returns `KL(target || softmax(logits))`; the target is `[K]` probabilities, zeros allowed."""
    if target.shape != logits.shape:
        raise ValueError("loss='kl' compares with class probabilities; give targets, [B, K] floats")
    log_predicted = jax.nn.log_softmax(logits)
    log_target = jnp.where(target == 0, 0, jnp.log(target))
    return jnp.sum(target * (log_target - log_predicted), axis=-1)


def margin(logits: Array, target: Array) -> Array:
    """Returns `max_{k != y} z_k - z_y`, positive exactly where misclassified.

    The f6 objective of Carlini and Wagner 2017, arXiv 1608.04644.
    """
    is_target = jnp.arange(logits.shape[0]) == target
    return jnp.max(jnp.where(is_target, -jnp.inf, logits)) - pick(logits, target)


def targeted_margin(logits: Array, label: Array, target: Array) -> Array:
    """Returns `z_t - z_y`, for a class `t` to move to."""
    return pick(logits, target) - pick(logits, label)


def dlr(logits: Array, target: Array) -> Array:
    """Returns the difference of logits ratio `-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))`.

    `z_(i)` is the i-th largest logit. Shifting or scaling the logits does not change it
    (up to the 1e-12 added to the denominator), so it does not saturate. The gradient flows
    through the denominator too. With two classes it is undefined, and this is `margin`.
    """
    if logits.shape[0] < 3:
        return margin(logits, target)
    top, classes = _largest(logits, 3)
    other = jnp.where(classes[0].astype(target.dtype) == target, top[1], top[0])
    return -(pick(logits, target) - other) / (top[0] - top[2] + 1e-12)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """Returns `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`, for a class `t` to move to.

    As `dlr`; with fewer than four classes it is undefined, and this is `targeted_margin`.
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


def objective(loss: str | Callable[..., Array], *, targeted: bool = False) -> Callable[..., Array]:
    """Returns the objective of that name (`ValueError` if unknown), or `loss` if a function."""
    untargeted = {"ce": cross_entropy, "margin": margin, "dlr": dlr, "kl": kl}
    by_name = {"dlr": targeted_dlr, "margin": targeted_margin} if targeted else untargeted
    if not isinstance(loss, str):
        return loss
    if loss not in by_name:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(by_name)}")
    return by_name[loss]
