"""Mixup within a class: convex combinations of samples of one class, label kept.

The idea is that of Zhong and Tandon 2024, arXiv 2411.14424; the laws of the weights are ours.
`same_class_mixup` is a plan (`draw_plan`) and its execution (`mix`); a plan is a draw of partners
(`same_class_partners`) and one of weights (`mixing_weights`). Each can be used alone. All are
pure, jittable and vmappable over keys, which they consume.
`[B]` is the batch, `k` the number of samples. A `PerClass` number is looked up by label, so that
all strengths share one compilation; what is no number nor array is static, as are `num_groups`,
`num_partners` and `max_samples`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fairmix_jax.runtime.inputs import check_finite, check_images, check_labels, check_whole
from fairmix_jax.types import Array, Key

PerClass = Array | np.ndarray | float  # a scalar, or `[K]`, one number for each class


def same_class_mixup(
    key: Key, images: Array, labels: Array, *, num_groups: int = 1, **options: Any
) -> Array:
    """Returns each image mixed with `num_samples - 1` others of its class.

    Guarantees: labels stay true for the result; `num_samples=1`, `alpha=0` or `probability=0`
    return `images`. The mean of a class stays, its covariance shrinks by `s`, see
    `mixing_weights`. Calling it with the same key on another array mixes that one alike. One
    member of a class stays as it is; of less than `num_samples` some count twice.
    `images` are `[B, H, W, C]`, or any `[B, ...]` float; the result has their shape and dtype.
    `options`, like the other arguments and the errors, are those of `draw_plan`.
    """
    plan = draw_plan(key, labels, num_groups=num_groups, **options)
    return mix(images, plan, num_groups=num_groups)


def cross_class_mixup(key: Key, images: Array, labels: Array, **options: Any) -> Array:
    """Returns each image mixed with others of the batch: the control (arXiv 1710.09412).

    As `same_class_mixup`, but labels are to be mixed as well: with the same key, one-hot.
    """
    return same_class_mixup(key, images, labels, across_classes=True, **options)


class Plan(NamedTuple):
    """The partners and weights of a batch."""

    partners: Array  # `[k - 1, B]` int32, positions in the batch
    weights: Array  # `[B, k]` float32, convex; the first is the example's own


def draw_plan(
    key: Key, labels: Array, *, num_samples: PerClass = 2, alpha: PerClass = 1.0,
    law: str | Sequence[float] = "dirichlet", probability: PerClass = 1.0,
    per_batch: bool = False, across_classes: bool = False, num_groups: int = 1,
    max_samples: int | None = None,
) -> Plan:  # fmt: skip
    """Returns partners and weights for a batch; a ValueError names an argument that does not fit.

    Args:
      labels: `[B]` int, in `0 .. K - 1` where a number differs by class.
      num_samples: at least 1, the number of images in a combination.
      alpha: at least 0, concentration of the Dirichlet weights.
      law: `"dirichlet"`, `"uniform"` or a sequence of weights (`num_samples` is not used then).
      probability: with which an image is mixed at all.
      per_batch: one draw of weights and one coin for all classes with equal numbers.
      across_classes: partners from the whole batch instead of the own class.
      num_groups: see `same_class_partners`.
      max_samples: largest `num_samples`, needed if that is traced; a traced one is clipped to it.
    """
    check_labels(labels, len(labels))  # as given: JAX may cut their type
    labels = jnp.asarray(labels)
    check_finite(0, alpha=alpha)
    check_finite(0, 1, probability=probability)
    length = _length(num_samples, law, max_samples)
    partner_key, draw_key = jax.random.split(key)
    pool = jnp.zeros_like(labels) if across_classes else labels
    sizes = dict(num_partners=length - 1, num_groups=num_groups)
    partners = same_class_partners(partner_key, pool, **sizes)

    def of_example(value: PerClass) -> Array:
        value = jnp.asarray(value)
        if not value.ndim:
            return jnp.broadcast_to(value, labels.shape)
        check_labels(labels, len(labels), len(value))
        return value[labels]

    def one(key: Key, num_samples: Array, alpha: Array, probability: Array) -> Array:
        weight_key, choice_key = jax.random.split(key)
        weights = mixing_weights(weight_key, num_samples, law=law, alpha=alpha, max_samples=length)
        unmixed = jnp.zeros_like(weights).at[0].set(1.0)
        return jnp.where(jax.random.uniform(choice_key) < probability, weights, unmixed)

    keys = draw_key if per_batch else jax.random.split(draw_key, len(labels))
    counts = of_example(num_samples if isinstance(law, str) else length)
    draw = jax.vmap(one, in_axes=(None if per_batch else 0, 0, 0, 0))
    return Plan(partners, draw(keys, counts, of_example(alpha), of_example(probability)))


def mix(images: Array, plan: Plan, *, num_groups: int = 1) -> Array:
    """Returns `weights[:, 0] images + sum_j weights[:, j] images[partners[j - 1]]`.

    `images` are `[B, ...]` float: images, hidden features or class probabilities; `num_groups` is
    that of the partners. ValueError if they do not fit the plan, groups only if that is not traced.

    Guarantees: with convex weights each pixel lies between the extremes of its sources, up to
    rounding; one of weight 0 does not count, even if not finite; nothing is gathered across groups.
    """
    check_images(images)
    shape, number = jnp.shape(images), len(plan.weights)
    if shape[:1] != (number,):
        raise ValueError(f"images has shape {shape}; give the {number} of plan")
    weights = plan.weights.reshape(*plan.weights.shape, *(1,) * (images.ndim - 1))
    weights, groups = weights.astype(images.dtype), _split(images, num_groups)
    size = max(groups.shape[1], 1)
    known = [] if isinstance(plan.partners, Tracer) else np.asarray(plan.partners)
    if any((row // size != np.arange(number) // size).any() for row in known):
        raise ValueError(f"num_groups={num_groups} is not that of plan; give its num_groups")

    def part(column: int, images: Array) -> Array:
        weight = weights[:, column]
        return weight * jnp.where(weight == 0, 0, images)  # 0 times infinity would be NaN

    mixed = part(0, images)
    for column, partners in enumerate(plan.partners, start=1):
        local = _split(partners, num_groups) % size
        chosen = jax.vmap(lambda group, rows: group[rows])(groups, local)
        mixed += part(column, chosen.reshape(images.shape))
    return mixed


def same_class_partners(
    key: Key, labels: Array, *, num_partners: int = 1, num_groups: int = 1
) -> Array:
    """Returns for every example the positions of others of its class, `[num_partners, B]` int32.

    The members of a class are put in a random cyclic order; partner number `j` is the
    `j`-th successor. One sort by (label, random number); no loop over classes. `labels` are `[B]`
    int of any values; ValueError unless `num_partners >= 0` and `num_groups` divides `B`.

    Guarantees: `labels[partners] == labels`; no example is its own partner unless its class has one
    member; partners of an example differ as long as the class has more than `num_partners` members
    (then they repeat in turn); each row is a permutation of the batch; each partner is uniform
    among the other members. All of it within each of `num_groups` equal consecutive parts of the
    batch, so that one sharded into as many parts, or fewer, is paired without communication.
    """
    check_whole(0, num_partners=num_partners)
    if not isinstance(labels, jax.Array):  # JAX may cut their type, but not that of their ranks
        labels = np.unique(labels, return_inverse=True)[1]
    groups = _split(jnp.asarray(labels), num_groups)
    keys = jax.random.split(key, num_groups)
    local = jax.vmap(lambda key, group: _partners(key, group, num_partners))(keys, groups)
    start = jnp.arange(num_groups, dtype=jnp.int32) * groups.shape[1]
    return jnp.moveaxis(local + start[:, None, None], 0, 1).reshape(num_partners, len(labels))


def _partners(key: Key, labels: Array, num_partners: int) -> Array:
    position = jnp.arange(len(labels), dtype=jnp.int32)
    keyed = labels, jax.random.bits(key, labels.shape), position
    grouped, _, order = jax.lax.sort(keyed, dimension=0, num_keys=2)
    first = jnp.searchsorted(grouped, grouped, side="left").astype(jnp.int32)
    count = jnp.searchsorted(grouped, grouped, side="right").astype(jnp.int32) - first
    number = jnp.arange(num_partners, dtype=jnp.int32)[:, None]
    hop = 1 + number % jnp.maximum(count - 1, 1)[None]  # a single member comes back to itself
    successor = first[None] + ((position - first)[None] + hop) % count[None]
    return jnp.zeros_like(successor).at[:, order].set(order[successor])


def _split(array: Array, num_groups: int) -> Array:
    check_whole(1, num_groups=num_groups)
    if len(array) % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide the batch of {len(array)}")
    return array.reshape(num_groups, -1, *array.shape[1:])


def mixing_weights(
    key: Key, num_samples: Array | int, *, law: str | Sequence[float] = "dirichlet",
    alpha: Array | float = 1.0, max_samples: int | None = None,
) -> Array:  # fmt: skip
    """Returns the convex weights of one example, its own first: `[max_samples]` float32.

    `"uniform"` gives `1 / num_samples` each. `"dirichlet"` draws from
    Dirichlet(alpha, ..., alpha), for two samples `lambda ~ Beta(alpha, alpha)`, and then
    swaps the largest weight to the front, so that an example stays nearest to itself. Of a
    sequence of weights those beyond `num_samples` go to the first.

    Guarantees: nonnegative; the sum is 1 up to rounding; weights beyond `num_samples` are
    zero; `num_samples = 1` and `alpha = 0`, the limit of small `alpha`, give `(1, 0, ...)`. The
    covariance of a class shrinks by `sum_i weight_i^2`, see `theory.surrogates.expected_factor`.
    Arguments and errors as in `draw_plan`, numbers `[]`. Only `"dirichlet"` uses the key.
    """
    length = _length(num_samples, law, max_samples)
    column = jnp.arange(length, dtype=jnp.int32)
    num_samples = jnp.clip(num_samples, 1, length)  # one that is traced may be any
    used = column < num_samples
    if not isinstance(law, str):
        given = np.asarray(law, np.float64)
        if not (given >= 0).all() or not abs(given.sum() - 1) <= 1e-6:
            raise ValueError(f"weights {tuple(law)} are not convex: nonnegative with sum 1")
        kept = jnp.where(used, jnp.asarray(given, jnp.float32), 0.0)
        return kept.at[0].add(1 - jnp.sum(kept))
    if law == "uniform":
        return used.astype(jnp.float32) / num_samples.astype(jnp.float32)
    if law != "dirichlet":
        raise ValueError(f"law={law!r} is unknown; choose 'dirichlet', 'uniform' or weights")
    check_finite(0, alpha=alpha)
    alpha = jnp.asarray(alpha, jnp.float32)
    log_gamma = _log_gamma(key, jnp.where(alpha > 0, alpha, 1.0), length)
    weights = jax.nn.softmax(jnp.where(used, log_gamma, -jnp.inf))
    swapped = weights.at[jnp.argmax(weights)].set(weights[0]).at[0].set(jnp.max(weights))
    return jnp.where(alpha > 0, swapped, (column == 0).astype(jnp.float32))


def _log_gamma(key: Key, alpha: Array, length: int) -> Array:
    """Logarithms of Gamma(alpha) draws, `[length]`.

    `jax.random.loggamma` rejects in a loop, on whose end all devices of a mesh would have to agree
    in every round. Here the first accepted of twelve proposals is taken: none is with probability
    1e-15 (Marsaglia and Tsang 2000, ACM Transactions on Mathematical Software 26, 363-372).
    """
    normal_key, uniform_key, boost_key = jax.random.split(key, 3)
    shape = (12, length)
    d = alpha + 1 - 1 / 3
    z = jax.random.normal(normal_key, shape)
    v = (1 + z / jnp.sqrt(9 * d)) ** 3
    log_v = jnp.log(jnp.maximum(v, jnp.finfo(jnp.float32).tiny))
    log_u = jnp.log(jax.random.uniform(uniform_key, shape))
    accepted = (v > 0) & (log_u < z * z / 2 + d * (1 - v + log_v))
    log_v = jnp.take_along_axis(log_v, jnp.argmax(accepted, axis=0)[None], axis=0)[0]
    boost = jnp.log(jax.random.uniform(boost_key, (length,), minval=jnp.finfo(jnp.float32).tiny))
    return jnp.log(d) + log_v + boost / alpha


def _length(num_samples: PerClass, law: str | Sequence[float], max_samples: int | None) -> int:
    if not isinstance(law, str):
        return len(law)
    is_traced = isinstance(num_samples, Tracer)
    if is_traced and max_samples is None:
        raise ValueError("num_samples is traced; give max_samples, the static largest of them")
    known = np.ones(1, int) if is_traced else np.asarray(num_samples)
    length = int(known.max()) if max_samples is None else max_samples
    if not (np.issubdtype(known.dtype, np.integer) and 1 <= known.min() <= known.max() <= length):
        most = f"to max_samples={max_samples}" if max_samples else "or more"
        raise ValueError(f"num_samples={num_samples} is no number of images; give 1 {most}")
    return length
