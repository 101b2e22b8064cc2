"""Projected gradient descent, written for one example and vmapped."""

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.attacks.losses import Objective, objective
from fairmix_jax.attacks.projections import as_radius, project, random_offset, steepest_direction
from fairmix_jax.attacks.stepwise import misclassified
from fairmix_jax.models.rewrite_convolutions import rewrite_convolutions
from fairmix_jax.runtime import inputs
from fairmix_jax.runtime.precision import at_full_precision
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel

Keep = Literal["last_iterate", "any_iterate", "both"]


def pgd(
    logits_fn: LogitsFn, key: Key, images: Array, labels: Array, *, threat: ThreatModel,
    num_steps: int, step_size: Array | float, num_restarts: int = 1, loss: str | Objective = "ce",
    momentum: float = 0.0, random_start: bool = True, start: Array | None = None,
    keep: Keep = "last_iterate", targets: Any = None, scale: Array | float = 1.0,
    step_scale: Array | float | None = None, index: Array | None = None,
    flag_non_finite: bool = False,
) -> Any:  # fmt: skip
    """Returns adversarial images that ascend `loss` by projected steps from a random start.

    From `x_0`, uniform in the ball, each step is `x <- project(x + step_size d(grad))`,
    with `d` the sign (L-inf) or the normalised gradient (L2). The last iterate is returned,
    or, with `keep="any_iterate"`, the first misclassified one where there is any.

    Guarantees: the result lies in the ball, with the exact difference to the image, and in the
    bounds (a traced radius is the float32 that it was traced as; `scale` gives its product);
    an example's result depends on its own image, label, key and `index` only, is finite, and no
    gradient flows through it; `epsilon = 0` or `scale = 0` returns `images`. With restarts an
    example keeps the first result that `logits_fn` misclassifies, so more restarts never
    give fewer successes; nor does `"any_iterate"` give fewer than `"last_iterate"`.

    Edge cases: where the gradient is zero or not finite a step stays in place. Images of half
    precision are attacked in float32, and the result is rounded to their type. Inside a model in
    float16 gradients below 6e-8 vanish, and its robustness may be overrated: give bfloat16.
    GPUs and TPUs round products as they do by default, but for deciding which restart counts.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`, any JAX function that does not couple
        examples: batch norm with running statistics. For weights that change
        `jax.tree_util.Partial(apply, weights)` is faster than a function that closes over them.
      key: of the random starts; consumed. One that is not JAX's default, `rbg` say, only seeds one.
      images: `[B, H, W, C]` float, inside `threat.bounds`; the result has its type.
      labels: `[B]` int, the true classes.
      num_steps: static, at least 0.
      step_size: in pixel units, e.g. 2/255; like the radius it may be traced.
      num_restarts: static, at least 1; stops early once every example is misclassified.
      loss: `"ce"`, `"margin"`, `"dlr"`, `"kl"` or a function `(logits [K], target) -> []`.
      momentum: `mu`; above 0 the direction is that of `m <- mu m + grad / ||grad||_1`
        (Dong et al. 2018, arXiv 1710.06081).
      random_start: whether `x_0` is random; else it is the image itself.
      start: `[B, H, W, C]`, `x_0` of every restart before it is projected, not random.
      keep: the iterate that is returned, and counts with restarts; `"both"` is a pair,
        `(last, any)`, for one price.
      targets: what `loss` compares with, a pytree with leading `B`; `labels` if `None`.
      scale: `[]` or `[B]`, multiplies radius and step size (class-wise radii).
      step_scale: `[]` or `[B]`, multiplies the step size instead of `scale`.
      index: `[B]` int, numbers that tell the examples' random starts apart; `0 .. B - 1`
        if `None`. Give global numbers to make a result independent of the batching.
      flag_non_finite: whether to return a pair, the above and `[B]` bool: a gradient on an
        example's way was not finite.

    A ValueError names what is not as above, of the arguments or what `logits_fn` returns.

    Reference: Madry et al. 2018, arXiv 1706.06083.
    """
    if keep not in (kept := get_args(Keep)):
        raise ValueError(f"keep={keep!r} is unknown; choose one of {', '.join(kept)}")
    inputs.check_function(logits_fn)
    inputs.check_batch(images, labels, threat)
    _check_numbers(num_steps, num_restarts, step_size, momentum)
    start = _given_start(start, images)
    dtype, images, labels = images.dtype, inputs.as_single(images), jnp.asarray(labels)
    key = inputs.threefry(key)
    targets = labels if targets is None else targets
    targets = jnp.asarray(targets) if isinstance(targets, list) else targets
    index = jnp.arange(len(images)) if index is None else index
    inputs.check_rows("index", index, len(images))
    index = jnp.asarray(index)
    factors = _factors(scale, step_scale, images)
    loss_fn = objective(loss)
    inputs.check_model(logits_fn, images, by_gradient=num_steps > 0)
    are_classes = isinstance(loss, str) and hasattr(targets, "dtype") and targets.ndim == 1
    compared = targets if are_classes else None
    logits_fn = inputs.checked_model(rewrite_convolutions(logits_fn), labels, targets=compared)
    radius, step = as_radius(threat.epsilon, images.dtype), jnp.asarray(step_size, images.dtype)
    # XLA folds constants into what is around them, which rounds otherwise than a traced radius.
    radius, step = lax.optimization_barrier((jnp.asarray(radius), step))

    how: Any = dict(num_steps=num_steps, momentum=momentum, random_start=random_start)
    one = _of_one(logits_fn, loss_fn, threat, radius, step, keep != "last_iterate", **how)

    @at_full_precision
    def is_broken(x: Array) -> Array:
        return misclassified(logits_fn(x), labels)

    def run(restart: Array) -> tuple[tuple[Array, ...], Array]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, restart), index)
        found = jax.vmap(one)(keys, images, labels, targets, factors, start)
        last, any_, spoiled = lax.stop_gradient(found)
        kept = {"last_iterate": (last,), "any_iterate": (any_,), "both": (last, any_)}[keep]
        return kept, spoiled

    kept, spoiled = _restart(run, is_broken, num_restarts)
    kept = tuple(x.astype(dtype) for x in kept)
    result = kept if keep == "both" else kept[0]
    return (result, spoiled) if flag_non_finite else result


def _of_one(
    logits_fn: LogitsFn, loss_fn: Any, threat: ThreatModel, radius: Array, step: Array,
    keep_first: bool, *, num_steps: int, momentum: float, random_start: bool,
) -> Any:  # fmt: skip
    """The attack on one example, with what `_ascend` returns."""
    norm = threat.norm

    def one(key: Key, image: Array, label: Array, target: Any, factors: Any, start: Array | None):
        epsilon, length = factors[0] * radius, factors[1] * step
        inside = partial(project, center=image, norm=norm, epsilon=epsilon, bounds=threat.bounds)

        def move(x: Array, gradient: Array) -> Array:
            return inside(x + length * steepest_direction(gradient, norm))

        def evaluate(x: Array) -> tuple[Array, Array]:
            logits = logits_fn(x[None])[0]
            return loss_fn(logits, target), misclassified(logits, label)

        if start is None and random_start:
            offset = random_offset(key, image.shape, norm=norm, epsilon=epsilon)
            start = image + offset.astype(image.dtype)
        first = image if start is None else inside(start)
        return _ascend(evaluate, move, first, num_steps, momentum, keep_first)

    return one


def fgsm(
    *arguments: Any, threat: ThreatModel, step_size: Array | float | None = None, **options: Any
) -> Array:
    """Returns `pgd` with one step of `step_size`, `1.25 epsilon` if `None` (arXiv 2001.03994)."""
    step_size = 1.25 * threat.epsilon if step_size is None else step_size
    return pgd(*arguments, threat=threat, num_steps=1, step_size=step_size, **options)


def mi_fgsm(
    *arguments: Any, threat: ThreatModel, num_steps: int = 10,
    step_size: Array | float | None = None, momentum: float = 1.0, random_start: bool = False,
    **options: Any,
) -> Array:  # fmt: skip
    """Returns `pgd` with momentum, from the image, `step_size` `epsilon / num_steps` if `None`."""
    options |= dict(momentum=momentum, random_start=random_start, num_steps=num_steps)
    inputs.check_whole(0, num_steps=num_steps)
    step_size = threat.epsilon / max(num_steps, 1) if step_size is None else step_size
    return pgd(*arguments, threat=threat, step_size=step_size, **options)


def _given_start(start: Any, images: Array) -> Any:
    if start is not None and jnp.shape(start) != jnp.shape(images):
        raise ValueError(f"start has shape {jnp.shape(start)}; give {jnp.shape(images)}")
    return start if start is None else inputs.as_single(start)


def _check_numbers(num_steps: Any, num_restarts: Any, step_size: Any, momentum: Any) -> None:
    inputs.check_whole(0, num_steps=num_steps)
    inputs.check_whole(1, num_restarts=num_restarts)
    inputs.check_finite(0, step_size=step_size, momentum=momentum)
    if jnp.ndim(step_size) or jnp.ndim(momentum):
        raise ValueError("step_size and momentum: give one number; step_scale may differ by image")


def _factors(scale: Array | float, step_scale: Any, images: Array) -> list[Array]:
    """`[B]` each: factors of radius and step size, given as one number or as one an image."""
    inputs.check_finite(0, scale=scale, step_scale=step_scale)
    given = scale, scale if step_scale is None else step_scale
    factors = [jnp.asarray(factor, images.dtype) for factor in given]
    if any(factor.shape not in ((), (len(images),)) for factor in factors):
        raise ValueError(f"scale and step_scale: give one number, or {len(images)}, one an image")
    return [jnp.broadcast_to(factor, (len(images),)) for factor in factors]


def _ascend(evaluate, move, x: Array, num_steps: int, momentum: float, keep_first: bool):
    """Returns the last of the points `move(x, gradient)`, and the first that is misclassified.

    `evaluate` is `x -> (value, misclassified)`. The second is the last unless `keep_first`. The
    third is whether a gradient was not finite.
    """

    def step(_, carry):
        x, velocity, kept, is_kept, spoiled = carry
        gradient, is_wrong = jax.grad(evaluate, has_aux=True)(x)
        spoiled |= ~jnp.all(jnp.isfinite(gradient))
        if keep_first:
            kept, is_kept = jnp.where(is_kept | ~is_wrong, kept, x), is_kept | is_wrong
        if momentum:
            velocity = momentum * velocity + steepest_direction(gradient, "l1")
            gradient = velocity
        return move(x, gradient), velocity, kept, is_kept, spoiled

    velocity, no = jnp.zeros_like(x) if momentum else None, jnp.asarray(False)
    first = x, velocity, x, no, no
    x, _, kept, is_kept, spoiled = lax.fori_loop(0, num_steps, step, first)
    return x, jnp.where(is_kept, kept, x), spoiled


def _restart(run, is_broken, num_restarts: int) -> tuple[tuple[Array, ...], Array]:
    """Repeats `run(restart)` until all is broken, keeping each example's first success."""

    def unfinished(carry) -> Array:
        restart, (_, broken), _ = carry
        return (restart < num_restarts) & ~jnp.all(jnp.stack(broken))

    def again(carry):
        restart, (kept, broken), spoiled = carry
        found, also_spoiled = run(restart)
        images = tuple(
            jnp.where(is_done[:, None, None, None], old, new)
            for is_done, old, new in zip(broken, kept, found, strict=True)
        )
        broken = tuple(b | is_broken(x) for b, x in zip(broken, images, strict=True))
        return restart + 1, (images, broken), spoiled | also_spoiled

    first, spoiled = run(jnp.asarray(0))
    if num_restarts == 1:
        return first, spoiled
    carry = jnp.asarray(1), (first, tuple(is_broken(x) for x in first)), spoiled
    _, (images, _), spoiled = lax.while_loop(unfinished, again, carry)
    return images, spoiled
