"""Projected gradient descent, written for one example and vmapped."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.adopt import adopt
from fairmix_jax.attacks.losses import Objective, objective
from fairmix_jax.attacks.projections import project, random_offset, steepest_direction
from fairmix_jax.attacks.stepwise import misclassified
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel

_KEEP = ("last_iterate", "any_iterate", "both")


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
    momentum: float = 0.0,
    random_start: bool = True,
    start: Array | None = None,
    keep: Literal["last_iterate", "any_iterate", "both"] = "last_iterate",
    targets: Any = None,
    scale: Array | float = 1.0,
    step_scale: Array | float | None = None,
    index: Array | None = None,
) -> Any:
    """Returns adversarial images that ascend `loss` by projected steps from a random start.

    From `x_0`, uniform in the ball, each step is `x <- project(x + step_size d(grad))`,
    with `d` the sign (L-inf) or the normalised gradient (L2). The last iterate is returned,
    or, with `keep="any_iterate"`, the first misclassified one where there is any.

    Guarantees: the result lies in the ball (up to float32 rounding) and in the bounds;
    an example's result depends on its own image, label, key and `index` only; no gradient
    flows through it; `epsilon = 0` or `scale = 0` returns `images`. With restarts, an
    example keeps the first result that `logits_fn` misclassifies, so more restarts never
    give fewer successes; nor does `"any_iterate"` give fewer than `"last_iterate"`.

    Edge cases: where the gradient is exactly zero a step stays in place; `num_steps=1` is
    FGSM with random start (Wong et al. 2020, arXiv 2001.03994).

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`. Must not couple examples: batch
        norm with running statistics. Any JAX function; see `fairmix_jax.adopt`.
      key: random starts; the key is consumed.
      images: `[B, H, W, C]` float, inside `threat.bounds`.
      labels: `[B]` int, the true classes.
      threat: norm, radius and pixel bounds.
      num_steps: static, at least 0.
      step_size: in pixel units, e.g. 2/255.
      num_restarts: static, at least 1; stops early once every example is misclassified.
      loss: `"ce"`, `"margin"`, `"dlr"`, `"kl"` or a function `(logits [K], target) -> []`.
      momentum: `mu`; above 0 the direction is that of `m <- mu m + grad / ||grad||_1`.
      random_start: whether `x_0` is random; else it is the image itself.
      start: `[B, H, W, C]`, `x_0` before it is projected, instead of a random one; the same
        in every restart.
      keep: which iterate is returned, and counts with restarts; `"both"` gives a pair,
        `(last, any)`, for one price.
      targets: what `loss` compares with, a pytree with leading `B`; `labels` if `None`.
      scale: `[]` or `[B]`, multiplies radius and step size (class-wise radii).
      step_scale: `[]` or `[B]`, multiplies the step size instead of `scale`.
      index: `[B]` int, numbers that tell the examples' random starts apart; `0 .. B - 1`
        if `None`. Give global numbers to make a result independent of the batching.

    Returns: `[B, H, W, C]`, of the dtype of `images`.

    Raises:
      ValueError: a shape or number above is violated; names it.

    Reference: Madry et al. 2018, arXiv 1706.06083; momentum Dong et al. 2018, arXiv
    1710.06081.
    """
    if keep not in _KEEP:
        raise ValueError(f"keep={keep!r} is unknown; choose one of {', '.join(_KEEP)}")
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
    step_scale = scale if step_scale is None else step_scale
    factors = [
        jnp.broadcast_to(jnp.asarray(factor, images.dtype), labels.shape)
        for factor in (scale, step_scale)
    ]
    loss_fn, logits_fn = objective(loss), adopt(logits_fn)

    def one(key: Key, image: Array, label: Array, target: Any, factors: Any, start: Array | None):
        def evaluate(x: Array) -> tuple[Array, Array]:
            logits = logits_fn(x[None])[0]
            return loss_fn(logits, target), logits

        return _attack_one(
            evaluate,
            key,
            image,
            threat=threat,
            epsilon=factors[0] * threat.epsilon,
            step_size=factors[1] * step_size,
            num_steps=num_steps,
            momentum=momentum,
            random_start=random_start,
            start=start,
            is_success=None if keep == "last_iterate" else lambda z: misclassified(z, label),
        )

    def run(restart: Array) -> tuple[Array, ...]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, restart), index)
        last, any_ = lax.stop_gradient(jax.vmap(one)(keys, images, labels, targets, factors, start))
        return {"last_iterate": (last,), "any_iterate": (any_,), "both": (last, any_)}[keep]

    if num_restarts > 1:
        kept = _restart(run, lambda x: misclassified(logits_fn(x), labels), num_restarts)
    else:
        kept = run(jnp.asarray(0))
    return kept if keep == "both" else kept[0]


def fgsm(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    step_size: float | None = None,
    **options: Any,
) -> Array:
    """Returns `pgd` with one step of `step_size` (`1.25 epsilon` if `None`) from a random start.

    Reference: Wong et al. 2020, arXiv 2001.03994.
    """
    step_size = 1.25 * threat.epsilon if step_size is None else step_size
    return pgd(
        logits_fn, key, images, labels, threat=threat, num_steps=1, step_size=step_size, **options
    )


def mi_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    num_steps: int = 10,
    step_size: float | None = None,
    momentum: float = 1.0,
    random_start: bool = False,
    **options: Any,
) -> Array:
    """Returns `pgd` with momentum, from the image itself, `step_size` `epsilon / num_steps`.

    Reference: Dong et al. 2018, arXiv 1710.06081.
    """
    step_size = threat.epsilon / max(num_steps, 1) if step_size is None else step_size
    return pgd(
        logits_fn, key, images, labels, threat=threat, num_steps=num_steps, step_size=step_size,
        momentum=momentum, random_start=random_start, **options,
    )  # fmt: skip


def _attack_one(
    evaluate, key: Key, image: Array, *, threat: ThreatModel, epsilon, step_size, num_steps: int,
    momentum: float, random_start: bool, start: Array | None, is_success,
) -> tuple[Array, Array]:  # fmt: skip
    """Ascends `evaluate(image) -> (value, logits)` around one image `[H, W, C]`.

    Returns the last iterate, and the first with `is_success(logits)` (else the last).
    """

    def inside(x: Array) -> Array:
        return project(x, image, norm=threat.norm, epsilon=epsilon, bounds=threat.bounds)

    def step(_, carry):
        x, velocity, kept, is_kept = carry
        gradient, logits = jax.grad(evaluate, has_aux=True)(x)
        if is_success is not None:
            kept, is_kept = _keep(kept, is_kept, x, is_success(logits))
        if momentum:
            velocity = momentum * velocity + steepest_direction(gradient, "l1")
            gradient = velocity
        x = inside(x + step_size * steepest_direction(gradient, threat.norm))
        return x, velocity, kept, is_kept

    if start is not None:
        x = inside(start)
    elif random_start:
        offset = random_offset(key, image.shape, norm=threat.norm, epsilon=epsilon)
        x = inside(image + offset.astype(image.dtype))
    else:
        x = image
    first = x, jnp.zeros_like(image) if momentum else None, image, jnp.asarray(False)
    x, _, kept, is_kept = lax.fori_loop(0, num_steps, step, first)
    return x, jnp.where(is_kept, kept, x)


def _keep(kept: Array, is_kept: Array, x: Array, is_success: Array) -> tuple[Array, Array]:
    return jnp.where(is_kept | ~is_success, kept, x), is_kept | is_success


def _restart(run, is_broken, num_restarts: int) -> tuple[Array, ...]:
    """Repeats `run(restart)` until all is broken, keeping each example's first success."""

    def unfinished(carry) -> Array:
        restart, _, broken = carry
        return (restart < num_restarts) & ~jnp.all(jnp.stack(broken))

    def again(carry):
        restart, kept, broken = carry
        images = tuple(
            jnp.where(is_done[:, None, None, None], old, new)
            for is_done, old, new in zip(broken, kept, run(restart), strict=True)
        )
        broken = tuple(b | is_broken(x) for b, x in zip(broken, images, strict=True))
        return restart + 1, images, broken

    first = run(jnp.asarray(0))
    carry = jnp.asarray(1), first, tuple(is_broken(x) for x in first)
    return lax.while_loop(unfinished, again, carry)[1]
