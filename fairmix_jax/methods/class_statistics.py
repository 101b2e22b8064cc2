"""Sums per class over a batch: what rules and reports are made of."""

import jax
import jax.numpy as jnp

from fairmix_jax.attacks.losses import margin
from fairmix_jax.types import Array, Batch, ClassCounts, ClassStatistics


def count(logits: Array, batch: Batch, *, num_classes: int) -> ClassCounts:
    """Returns how many examples of each class there are and how many are classified correctly.

    Padding (where `batch.mask` is false) counts nowhere; so does an example whose logits
    `[B, K]` are not all finite, except in `total`.
    """
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == batch.labels) & finite
    one_hot = jax.nn.one_hot(batch.labels, num_classes, dtype=jnp.int32)

    def per_class(chosen: Array) -> Array:
        return jnp.sum(jnp.where(chosen[:, None], one_hot, 0), axis=0)

    return ClassCounts(per_class(batch.mask), per_class(batch.mask & correct))


def measure(logits: Array, losses: Array, batch: Batch, *, num_classes: int) -> ClassStatistics:
    """Returns the sums of a batch from logits `[B, K]` and losses `[B]`; padding counts nowhere."""
    probabilities = jax.nn.softmax(logits)
    members = jax.nn.one_hot(batch.labels, num_classes)

    def per_class(values: Array) -> Array:
        kept = jnp.where(jnp.expand_dims(batch.mask, range(1, values.ndim)), values, 0.0)
        return jnp.tensordot(members, kept, axes=(0, 0), precision="highest")

    return ClassStatistics(
        count(logits, batch, num_classes=num_classes), per_class(losses),
        per_class(jax.vmap(margin)(probabilities, batch.labels)), per_class(probabilities),
    )  # fmt: skip


def zeros(num_classes: int) -> ClassStatistics:
    """Returns the statistics of no examples."""
    counts = ClassCounts(*(jnp.zeros(num_classes, jnp.int32) for _ in ClassCounts._fields))
    none, square = jnp.zeros(num_classes), jnp.zeros((num_classes, num_classes))
    return ClassStatistics(counts, none, none, square)


def class_mean(sums: Array, counts: Array, *, absent: Array | float = 0.0) -> Array:
    """Returns `sums / counts`, `[K]` or `[K, ...]`, and `absent` for classes without examples."""
    counts = jnp.expand_dims(counts, range(1, sums.ndim)).astype(jnp.float32)
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1.0), absent)


def accuracy(counts: ClassCounts, *, absent: Array | float = 0.0) -> Array:
    """Returns each class's accuracy `[K]`, and `absent` for classes without examples."""
    return class_mean(counts.correct.astype(jnp.float32), counts.total, absent=absent)
