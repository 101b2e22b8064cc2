"""Steps, projections and random starts of one image in an L-inf or L2 ball."""

import jax
import jax.numpy as jnp

from fairmix_jax.types import Array, Key


def steepest_direction(gradient: Array, norm: str) -> Array:
    """Returns the direction of unit `norm` that ascends fastest; zero where the gradient is zero.

    Args:
      gradient: any shape.
      norm: `"linf"` gives `sign(gradient)`, `"l2"` gives `gradient / ||gradient||_2`.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    length = jnp.linalg.norm(gradient.ravel())
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
    length = jnp.linalg.norm(offset.ravel())
    factor = jnp.where(length > epsilon, epsilon / jnp.where(length > 0, length, 1.0), 1.0)
    return jnp.clip(center + offset * factor, *bounds)


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
