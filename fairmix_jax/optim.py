"""Optimizers and learning-rate schedules, assembled from optax."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax


def make(
    *,
    total_steps: int,
    name: str,
    learning_rate: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_biases: bool,
    schedule: str,
    milestones: Sequence[float],
    decay: float,
    decays: Sequence[float] = (),
    warmup: float,
) -> optax.GradientTransformation:
    """Returns the optimizer.

    Weight decay is the L2 penalty of the robust-training literature: `weight_decay` times
    the parameters is added to the gradient, before momentum.

    Args:
      total_steps: of the run; the schedule is stated in fractions of it.
      name: `"sgd"` or `"adam"` (which ignores `momentum` and `nesterov`).
      learning_rate: the largest one.
      momentum, nesterov: of SGD.
      weight_decay: at least 0.
      decay_biases: whether biases and normalisation layers (parameters of one dimension)
        decay as well, as in PyTorch's SGD.
      schedule: `"piecewise"`, `"cosine"` or `"linear"` (to zero), or
        `"constant"`.
      milestones: fractions of the run at which `"piecewise"` multiplies by `decay`.
      decay: see `milestones`.
      decays: a factor for each milestone, instead of `decay` for all.
      warmup: fraction of the run over which the rate rises linearly from zero.

    Raises:
      ValueError: `decays` is given and has not one number a milestone.
    """
    if decays and len(decays) != len(milestones):
        raise ValueError(
            f"optim.decays has {len(decays)} numbers for {len(milestones)} optim.milestones"
        )
    warmup_steps = round(warmup * total_steps)
    if schedule == "piecewise":
        factors = decays or [decay] * len(milestones)
        steps = {
            round(fraction * total_steps) - warmup_steps: factor
            for fraction, factor in zip(milestones, factors, strict=True)
        }
        rate = optax.piecewise_constant_schedule(learning_rate, steps)
    elif schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup_steps, 1))
    elif schedule == "linear":
        rate = optax.linear_schedule(learning_rate, 0.0, max(total_steps - warmup_steps, 1))
    else:
        rate = optax.constant_schedule(learning_rate)
    if warmup_steps:
        ramp = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([ramp, rate], [warmup_steps])

    def rate_at(count: Any) -> Any:  # optax's schedules mix types if given integers
        return rate(jnp.asarray(count, jnp.float32))

    if name == "sgd":
        update = optax.sgd(rate_at, momentum=momentum, nesterov=nesterov)
    else:
        update = optax.adam(rate_at)
    mask = None if decay_biases else partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), update)
