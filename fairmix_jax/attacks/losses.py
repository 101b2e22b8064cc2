"""Objectives that attacks maximise: functions of one example's logits and its target."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fairmix_jax.types import Array

Objective = Callable[[Array, Any], Array]


def cross_entropy(logits: Array, target: Array) -> Array:
    """Returns `-sum_k target_k log softmax(logits)_k`.

    Args:
      logits: `[K]`.
      target: `[]` int, a class, or `[K]` float, class probabilities.
    """
    if target.ndim == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return optax.softmax_cross_entropy(logits, target)


def margin(logits: Array, target: Array) -> Array:
    """Returns `max_{k != y} logits_k - logits_y`, positive exactly where misclassified.

    Args:
      logits: `[K]` with `K >= 2`.
      target: `[]` int, the class `y`.

    Reference: the f6 objective of Carlini and Wagner 2017, arXiv 1608.04644.
    """
    is_target = jnp.arange(logits.shape[0]) == target
    return jnp.max(jnp.where(is_target, -jnp.inf, logits)) - logits[target]


def kl(logits: Array, target: Array) -> Array:
    """Returns `KL(target || softmax(logits))`.

    Args:
      logits: `[K]`.
      target: `[K]` probabilities, for TRADES those of the clean image; zeros are allowed.

    Reference: Zhang et al. 2019, arXiv 1901.08573.
    """
    return optax.losses.kl_divergence(jax.nn.log_softmax(logits), target)


_BY_NAME: dict[str, Objective] = {"ce": cross_entropy, "margin": margin, "kl": kl}


def objective(loss: str | Objective) -> Objective:
    """Returns the objective of that name, or `loss` itself if it is a function.

    Raises:
      ValueError: unknown name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in _BY_NAME:
        raise ValueError(f"loss={loss!r} is unknown; choose one of {', '.join(_BY_NAME)}")
    return _BY_NAME[loss]
