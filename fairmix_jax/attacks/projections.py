"""Steps, projections and random starts of one image in an L-inf or L2 ball."""

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.types import Array, Key


def steepest_direction(gradient: Array, norm: str) -> Array:
    """Returns the gradient as a direction of unit `norm`; zero where the gradient is zero.

    Args:
      gradient: any shape.
      norm: `"linf"` gives `sign(gradient)`, `"l2"` and `"l1"` divide by that norm.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    length = jnp.linalg.norm(gradient.ravel(), ord=1 if norm == "l1" else 2)
    return gradient / jnp.where(length > 0, length, 1.0)


def project(
    image: Array, center: Array, *, norm: str, epsilon: Array, bounds: tuple[float, float]
) -> Array:
    """Returns `image` moved into the ball around `center` and then into `bounds`.

    For `center` in `bounds` the result satisfies both: clipping to the box only brings it
    nearer to the center. In L-inf it is the nearest point of the intersection.

    Args:
      image, center: the same shape.
      norm: `"linf"` or `"l2"`.
      epsilon: `[]`, the radius.
      bounds: `(low, high)`.
    """
    if norm == "linf":
        return jnp.clip(jnp.clip(image, center - epsilon, center + epsilon), *bounds)
    offset = image - center
    length = lp_norm(offset, norm)
    factor = jnp.minimum(epsilon, length) / (length + 1e-12)
    return jnp.clip(center + offset * factor, *bounds)


def lp_norm(offset: Array, norm: str) -> Array:
    """Returns the `"linf"` or `"l2"` norm of an array of any shape."""
    if norm == "linf":
        return jnp.max(jnp.abs(offset))
    return jnp.sqrt(jnp.sum(offset**2))


def normalize(offset: Array, norm: str) -> Array:
    """Returns `offset / (||offset|| + 1e-12)`, which is zero for zero."""
    return offset / (lp_norm(offset, norm) + 1e-12)


def to_hyperplane(
    point: Array, weights: Array, level: Array, *, norm: str, bounds: tuple[float, float]
) -> Array:
    """Returns the shortest displacement of `point` to `weights . x = level` within `bounds`.

    If no point of the box lies on the hyperplane, the displacement is the one in the box
    that comes nearest to it. Coordinates without weight do not move.

    Coordinate `i` moves by `min(t v_i, room_i)` against the sign of the violation, with
    `v = 1` in L-inf and `v = |weights|` in L2; `t` solves a piecewise linear, concave,
    increasing equation. Newton's method from 0 never passes its root and reaches the right
    piece in a few steps, so the solution is exact and needs no sorting.

    Args:
      point, weights: any equal shape; `point` inside `bounds`.
      level: `[]`.
      norm: whose displacement is shortest, `"linf"` or `"l2"`.
      bounds: `(low, high)`, possibly infinite.

    Reference: Croce and Hein 2020, arXiv 1907.02044, section 2.3 (which sorts).
    """
    excess = jnp.sum(weights * point) - level
    size = jnp.abs(weights)
    if norm == "l2":
        size = jnp.where(size < 1e-8, 0.0, size)
    speed = jnp.ones_like(size) if norm == "linf" else size
    direction = -jnp.sign(weights) * jnp.where(excess >= 0, 1.0, -1.0)
    room = jnp.where(direction > 0, bounds[1] - point, point - bounds[0])
    room = jnp.where(size > 0, room, 0.0)
    goal = jnp.abs(excess)

    def newton(carry):
        time, _, rounds = carry
        blocked = time * speed >= room
        reached = jnp.sum(jnp.where(blocked, size * room, 0.0))
        slope = jnp.sum(jnp.where(blocked, 0.0, size * speed))
        solution = (goal - reached) / jnp.where(slope > 0, slope, 1.0)
        solution = jnp.where(slope > 0, solution, jnp.inf)
        return jnp.maximum(solution, time), solution > time, rounds + 1

    zero = jnp.zeros_like(goal)
    start = newton((zero, jnp.asarray(True), jnp.asarray(0)))
    time, *_ = lax.while_loop(lambda c: c[1] & (c[2] < point.size), newton, start)
    moved = jnp.where(size > 0, jnp.where(jnp.isinf(time), room, time * speed), 0.0)
    return direction * jnp.minimum(moved, room)


def random_offset(key: Key, shape: tuple[int, ...], *, norm: str, epsilon: Array) -> Array:
    """Returns a point drawn uniformly from the ball of radius `epsilon`.

    For `"l2"` a normal direction is scaled by `epsilon U^(1/d)`, `U` uniform on `[0, 1]`,
    which is uniform in the ball of dimension `d` (not on its surface). The key is consumed.
    """
    if norm == "linf":
        return epsilon * jax.random.uniform(key, shape, minval=-1.0)
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, shape)
    radius = jax.random.uniform(radius_key) ** (1 / direction.size)
    return epsilon * radius * steepest_direction(direction, "l2")
