"""Steps, projections and random starts of one image in an L-inf or L2 ball."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from fairmix_jax.types import Array, Key


def steepest_direction(gradient: Array, norm: str) -> Array:
    """Returns the gradient as a direction of unit `norm`; zero where the gradient is zero.

    `"linf"` gives `sign(gradient)`; `"l2"` and `"l1"` divide by that norm. Coordinates that are not
    finite count as zero, and finite ones have a direction however large or small they are.
    """
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    if norm == "linf":
        return jnp.sign(gradient)
    largest = jnp.max(jnp.abs(gradient))
    is_extreme = (largest > 1e15) | ((largest > 0) & (largest < 1e-18))  # its squares would be lost
    gradient = gradient / jnp.where(is_extreme, largest, 1.0)
    length = jnp.linalg.norm(gradient.ravel(), ord=1 if norm == "l1" else 2)
    return gradient / jnp.where(length > 0, length, 1.0)


def as_radius(epsilon: Array | np.ndarray | float, dtype: Any = np.float32) -> Any:
    """Returns a radius as an array of the type, rounded down; one that is traced, as it is."""
    if isinstance(epsilon, Tracer):
        return jnp.asarray(epsilon, dtype)
    nearest = np.asarray(epsilon, dtype)
    is_above = nearest > np.asarray(epsilon, np.float64)
    return np.where(is_above, np.nextafter(nearest, nearest.dtype.type(0)), nearest)


def project(
    image: Array, center: Array, *, norm: str, epsilon: Array, bounds: tuple[float, float]
) -> Array:
    """Returns `image` moved into the ball around `center` and then into `bounds`.

    For `center` in `bounds` the result satisfies both: clipping to the box only brings it
    nearer to the center. In L-inf it is the nearest point of the intersection.

    The difference to `center`, taken exactly, is never more than `epsilon`. In L2 points outside
    come to `(1 - 1e-6) epsilon` less the rounding of the largest pixel.
    """
    # Where the center is a constant of the program, XLA would otherwise take `(center + offset) -
    # center` for the offset, and see no rounding.
    center = lax.optimization_barrier(center)
    if norm == "linf":
        low, high = _added(center, -epsilon), _added(center, epsilon)
        return jnp.clip(jnp.clip(image, low, high), *bounds)
    offset = image - center
    largest = jnp.max(jnp.abs(offset))
    offset = offset / jnp.where(largest > 1e15, largest * 1e-15, 1.0)  # its squares would overflow
    length = lp_norm(offset, norm)
    # Room for the rounding of norms, and for that of a sum of image and perturbation, which is most
    # of a small radius: four standard deviations of what it changes in the norm.
    limit = (1 - norm_rounding(image)) * epsilon
    reach = limit - jnp.finfo(image.dtype).eps * jnp.max(jnp.abs(center))
    offset = offset * (jnp.minimum(jnp.maximum(reach, 0.0), length) / (length + 1e-12))
    moved = center + offset
    is_inside = lp_norm(moved - center, norm) <= limit
    return jnp.clip(jnp.where(is_inside, moved, _added(center, offset)), *bounds)


def _added(center: Array, offset: Array) -> Array:
    """`center + offset`, where that is rounded, towards `center`: it moves by `offset` at most."""
    total = center + offset
    moved = total - center
    error = (center - (total - moved)) + (offset - moved)  # of the sum, exactly (Knuth's TwoSum)
    is_beyond = jnp.where(offset < 0, error > 0, error < 0)
    nearer = jnp.nextafter(*lax.stop_gradient((total, center)))  # it has no derivative
    return jnp.where(is_beyond, nearer, total)


def norm_rounding(image: Array) -> float:
    """Returns more than a norm of images of this type errs by, relatively.

    Eight units of rounding, about 1e-6 in float32; norms of 150,000 pixels erred by two.
    """
    return 8 * float(jnp.finfo(image.dtype).eps)


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

    `point` is inside `bounds`, which may be infinite. If no point of the box lies on the
    hyperplane, the displacement is the one in the box that comes nearest to it. Coordinates
    without weight do not move.

    Coordinate `i` moves by `min(t v_i, room_i)` against the sign of the violation, with
    `v = 1` in L-inf and `v = |weights|` in L2; `t` solves a piecewise linear, concave,
    increasing equation. Newton's method from 0 never passes its root and reaches the right
    piece in a few steps, so the solution is exact and needs no sorting.

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


def noise(key: Key, like: Array, norm: str) -> Array:
    """Returns noise of the shape and type of an array, in a direction drawn evenly in `norm`.

    Uniform on `[-1, 1)` for L-inf, standard normal for L2; to be scaled. Consumes the key.
    """
    if norm == "linf":
        return jax.random.uniform(key, like.shape, like.dtype, minval=-1.0)
    return jax.random.normal(key, like.shape, like.dtype)


def surface_start(key: Key, image: Array, epsilon: Array, norm: str) -> Array:
    """Returns the image plus `noise` scaled to norm `epsilon`, before the bounds."""
    return image + epsilon * normalize(noise(key, image, norm), norm)


def random_offset(key: Key, shape: tuple[int, ...], *, norm: str, epsilon: Array) -> Array:
    """Returns a point drawn uniformly from the ball (not its surface); the key is consumed."""
    if norm == "linf":
        return epsilon * jax.random.uniform(key, shape, minval=-1.0)
    direction_key, radius_key = jax.random.split(key)
    direction = jax.random.normal(direction_key, shape)
    radius = jax.random.uniform(radius_key) ** (1 / direction.size)
    return epsilon * radius * steepest_direction(direction, "l2")
