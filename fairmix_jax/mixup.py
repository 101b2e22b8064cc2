"""Same-class mixup: convex combinations of samples of one class, label kept.

The mixing of the seed idea (Zhong and Tandon 2024, arXiv 2411.14424): mix within a class,
then train adversarially on the mixed inputs. `same_class_mixup` is a draw of partners
(`same_class_partners`), a draw of weights (`mixing_weights`) and their combination
(`mix`); each can be used alone. All are pure, jittable and vmappable over keys.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.types import Array, Key

Mixing = Callable[[Key, Array, Array, Array], tuple[Array, Array]]
"""`(key, images [B, H, W, C], labels [B], strength [K]) -> (images, targets [B, K])`."""


def same_class_partners(key: Key, labels: Array, *, num_partners: int = 1) -> Array:
    """Returns for every example the positions of others of its class.

    The members of a class are put in a random cyclic order; partner number `j` is the
    `j`-th successor. One sort by (label, random number); no loop over classes.

    Guarantees: `labels[partners] == labels`; no example is its own partner unless its
    class has one member; partners of an example differ as long as the class has more than
    `num_partners` members (then they repeat in turn); each row is a permutation of the
    batch, so class frequencies are kept; each partner is uniform among the other members.

    Args:
      key: the key is consumed.
      labels: `[B]` int, any values; absent classes do not matter.
      num_partners: static, at least 0.

    Returns: `[num_partners, B]` int32.
    """
    (size,) = labels.shape
    position = jnp.arange(size, dtype=jnp.int32)
    grouped, _, order = lax.sort(
        (labels, jax.random.bits(key, (size,)), position), dimension=0, num_keys=2
    )
    first = jnp.searchsorted(grouped, grouped, side="left").astype(jnp.int32)
    count = jnp.searchsorted(grouped, grouped, side="right").astype(jnp.int32) - first

    def partner(number: Array) -> Array:
        hop = jnp.where(count > 1, 1 + number % jnp.maximum(count - 1, 1), 0)
        successor = first + (position - first + hop) % count
        return jnp.zeros_like(order).at[order].set(order[successor])

    return jax.vmap(partner)(jnp.arange(num_partners, dtype=jnp.int32))


def mixing_weights(
    key: Key,
    shape: tuple[int, ...],
    num_samples: Array | int,
    *,
    law: str = "dirichlet",
    alpha: Array | float = 1.0,
    max_samples: int | None = None,
) -> Array:
    """Returns convex weights, largest first.

    `"uniform"` gives `1 / num_samples` each. `"dirichlet"` draws from
    Dirichlet(alpha, ..., alpha), for two samples `lambda ~ Beta(alpha, alpha)`, and then
    swaps the largest weight to the front, so that an example stays nearest to itself.

    Guarantees: nonnegative; each row sums to 1 up to rounding; weights beyond `num_samples`
    are zero; `num_samples = 1` and `alpha = 0`, the limit of small `alpha`, give
    `(1, 0, ...)`. The shrinkage of a class's covariance is `s = sum_i weight_i^2`, with
    mean `1 / k` for `"uniform"` and `(alpha + 1) / (k alpha + 1)` for `"dirichlet"`.

    Args:
      key: the key is consumed; not used by `"uniform"`.
      shape: leading shape of the result, e.g. `(B,)`.
      num_samples: `k >= 1`, broadcastable to `shape`.
      law: `"dirichlet"` or `"uniform"`, static.
      alpha: at least 0, broadcastable to `shape`.
      max_samples: static length of a row; `num_samples` if that is a Python int.

    Returns: `[*shape, max_samples]` float32.

    Raises:
      ValueError: unknown law.
    """
    if max_samples is None:
        max_samples = int(num_samples)
    count = jnp.broadcast_to(jnp.asarray(num_samples, jnp.int32), shape)[..., None]
    used = jnp.arange(max_samples, dtype=jnp.int32).reshape((1,) * len(shape) + (-1,)) < count
    if law == "uniform":
        return used.astype(jnp.float32) / count.astype(jnp.float32)
    if law != "dirichlet":
        raise ValueError(f"law={law!r} is unknown; choose 'dirichlet' or 'uniform'")
    alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), shape)[..., None]
    log_gamma = jax.random.loggamma(key, jnp.where(alpha > 0, alpha, 1.0), (*shape, max_samples))
    weights = jax.nn.softmax(jnp.where(used, log_gamma, -jnp.inf), axis=-1)
    front = jnp.arange(max_samples) == 0
    front = front.reshape((1,) * len(shape) + (-1,))
    is_largest = jax.nn.one_hot(jnp.argmax(weights, axis=-1), max_samples, dtype=bool)
    largest = jnp.max(weights, axis=-1, keepdims=True)
    swapped = jnp.where(front, largest, jnp.where(is_largest, weights[..., :1], weights))
    return jnp.where(alpha > 0, swapped, front.astype(jnp.float32))


def mix(images: Array, partners: Array, weights: Array) -> Array:
    """Returns `weights[:, 0] images + sum_j weights[:, j] images[partners[j - 1]]`.

    Guarantees: with convex weights each pixel lies between the extremes of its sources, up
    to rounding; weights `(1, 0, ...)` return `images` exactly.

    Args:
      images: `[B, ...]` float: images, features or class probabilities.
      partners: `[k - 1, B]` int.
      weights: `[B, k]`.
    """

    def scaled(weight: Array, array: Array) -> Array:
        return weight.reshape((-1,) + (1,) * (array.ndim - 1)).astype(array.dtype) * array

    mixed = scaled(weights[:, 0], images)
    for number in range(weights.shape[1] - 1):
        mixed += scaled(weights[:, number + 1], images[partners[number]])
    return mixed


def same_class_mixup(
    key: Key,
    images: Array,
    labels: Array,
    *,
    num_samples: int = 2,
    alpha: float = 1.0,
    law: str = "dirichlet",
    probability: Array | float = 1.0,
) -> Array:
    """Returns each image mixed with `num_samples - 1` others of its class.

    Guarantees: labels stay true for the result; a class with one member stays as it is;
    `num_samples=1`, `alpha=0` or `probability=0` return `images`. Not idempotent in
    distribution: the covariance within a class shrinks by `s`, see `mixing_weights`.

    Args:
      key: the key is consumed.
      images: `[B, H, W, C]`, or any `[B, ...]` float.
      labels: `[B]` int.
      num_samples: static, at least 1, the number of images in a combination.
      alpha: at least 0, concentration of the weights; not used by `"uniform"`.
      law: `"dirichlet"` or `"uniform"`.
      probability: `[]` or `[B]`, with which an image is mixed at all.

    Returns: the shape and dtype of `images`.

    Raises:
      ValueError: `num_samples < 1` or unknown law.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} is not a number of images; give 1 or more")
    partner_key, weight_key, choice_key = jax.random.split(key, 3)
    partners = same_class_partners(partner_key, labels, num_partners=num_samples - 1)
    weights = mixing_weights(weight_key, labels.shape, num_samples, law=law, alpha=alpha)
    chosen = jax.random.uniform(choice_key, labels.shape) < probability
    unmixed = jnp.zeros_like(weights).at[:, 0].set(1.0)
    return mix(images, partners, jnp.where(chosen[:, None], weights, unmixed))


def make(
    name: str,
    num_classes: int,
    *,
    num_samples: int,
    law: str,
    alpha: float,
    probability: float,
) -> Mixing:
    """Returns the mixing that a config names, `"none"` or `"same_class"`.

    The result maps `(key, images, labels, strength [K])` to mixed images and class
    probabilities `[B, K]`, one-hot since labels are kept. `strength` multiplies
    `probability`, class by class.
    """

    def mixing(key: Key, images: Array, labels: Array, strength: Array) -> tuple[Array, Array]:
        targets = jax.nn.one_hot(labels, num_classes)
        if name == "none":
            return images, targets
        mixed = same_class_mixup(
            key,
            images,
            labels,
            num_samples=num_samples,
            alpha=alpha,
            law=law,
            probability=probability * strength[labels],
        )
        return mixed, targets

    return mixing
