"""Projected gradient descent, written for one example and vmapped."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.attacks.losses import Objective, objective
from fairmix_jax.attacks.projections import project, random_offset, steepest_direction
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel


def pgd(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    num_steps: int,
    step_size: float,
    num_restarts: int = 1,
    loss: str | Objective = "ce",
    targets: Any = None,
    scale: Array | float = 1.0,
    index: Array | None = None,
) -> Array:
    """Returns adversarial images that ascend `loss` by projected steps from a random start.

    From `x_0`, uniform in the ball, each step is `x <- project(x + step_size d(grad))`,
    with `d` the sign (L-inf) or the normalised gradient (L2). The last iterate is returned.

    Guarantees: the result lies in the ball (up to float32 rounding) and in the bounds;
    an example's result depends on its own image, label, key and `index` only; no gradient
    flows through it; `epsilon = 0` or `scale = 0` returns `images`. With restarts, an
    example keeps the first result that `logits_fn` misclassifies, so more restarts never
    give fewer successes.

    Edge cases: where the gradient is exactly zero a step stays in place; `num_steps=1` is
    FGSM with random start (Wong et al. 2020, arXiv 2001.03994).

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`. Must not couple examples: batch
        norm with running statistics. Any JAX function.
      key: random starts; the key is consumed.
      images: `[B, H, W, C]` float, inside `threat.bounds`.
      labels: `[B]` int, the true classes.
      threat: norm, radius and pixel bounds.
      num_steps: static, at least 0.
      step_size: in pixel units, e.g. 2/255.
      num_restarts: static, at least 1; stops early once every example is misclassified.
      loss: `"ce"`, `"margin"`, `"kl"` or a function `(logits [K], target) -> []`.
      targets: what `loss` compares with, a pytree with leading `B`; `labels` if `None`.
      scale: `[]` or `[B]`, multiplies radius and step size (class-wise radii).
      index: `[B]` int, numbers that tell the examples' random starts apart; `0 .. B - 1`
        if `None`. Give global numbers to make a result independent of the batching.

    Returns: `[B, H, W, C]`, of the dtype of `images`.

    Raises:
      ValueError: a shape or number above is violated; names it.

    Reference: Madry et al. 2018, arXiv 1706.06083.
    """
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}; give [B, H, W, C]")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels has shape {labels.shape}; give {images.shape[:1]}, one each")
    if num_steps < 0 or num_restarts < 1:
        raise ValueError(
            f"num_steps={num_steps}, num_restarts={num_restarts}; give at least 0 and 1"
        )
    targets = labels if targets is None else targets
    index = jnp.arange(len(images)) if index is None else index
    scale = jnp.broadcast_to(jnp.asarray(scale, images.dtype), labels.shape)
    loss_fn = objective(loss)

    def one(key: Key, image: Array, target: Any, scale: Array) -> Array:
        return _attack_one(
            lambda x: loss_fn(logits_fn(x[None])[0], target),
            key,
            image,
            threat=threat,
            epsilon=scale * threat.epsilon,
            step_size=scale * step_size,
            num_steps=num_steps,
        )

    def run(restart: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, restart), index)
        return lax.stop_gradient(jax.vmap(one)(keys, images, targets, scale))

    if num_restarts == 1:
        return run(jnp.asarray(0))
    return _restart(run, lambda x: jnp.argmax(logits_fn(x), axis=-1) != labels, num_restarts)


def _attack_one(
    objective_fn, key: Key, image: Array, *, threat: ThreatModel, epsilon, step_size, num_steps: int
) -> Array:
    """Ascends `objective_fn(image) -> []` around one image `[H, W, C]`."""

    def inside(x: Array) -> Array:
        return project(x, image, norm=threat.norm, epsilon=epsilon, bounds=threat.bounds)

    def step(_, x: Array) -> Array:
        direction = steepest_direction(jax.grad(objective_fn)(x), threat.norm)
        return inside(x + step_size * direction)

    offset = random_offset(key, image.shape, norm=threat.norm, epsilon=epsilon)
    return lax.fori_loop(0, num_steps, step, inside(image + offset.astype(image.dtype)))


def _restart(run, is_broken, num_restarts: int) -> Array:
    """Repeats `run(restart)` until every example is broken, keeping each one's first success."""
    first = run(jnp.asarray(0))

    def unfinished(carry) -> Array:
        restart, _, broken = carry
        return (restart < num_restarts) & ~jnp.all(broken)

    def again(carry):
        restart, kept, broken = carry
        images = jnp.where(broken[:, None, None, None], kept, run(restart))
        return restart + 1, images, broken | is_broken(images)

    return lax.while_loop(unfinished, again, (jnp.asarray(1), first, is_broken(first)))[1]
