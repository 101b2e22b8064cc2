"""Batches of a split, held on the device where one process has them all, and augmentation."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fairmix_jax.data import Split
from fairmix_jax.runtime import sharding
from fairmix_jax.types import Array, Batch, Key


def as_float(images: Any) -> Any:
    """Returns images in pixel units, `255 -> 1.0`; float images as they are."""
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images


@jax.jit
def take(split: Split, rows: Array, size: Array) -> Batch:
    """Returns the batch of examples at `rows`, `[B]` int32, as float images.

    The first `size` of them count, the rest is masked.
    """
    return _batch(split.images[rows], split.labels[rows], rows, size)


@jax.jit
def _batch(images: Array, labels: Array, rows: Array, size: Array) -> Batch:
    return Batch(as_float(images), labels, rows, jnp.arange(rows.shape[0]) < size)


class Feed(NamedTuple):
    """Batches of a split for the devices of a mesh.

    One process keeps the split on all its devices. Of several, each keeps it in its own
    memory, and a batch takes from each only the rows of its devices.
    """

    split: Split
    mesh: Mesh

    def take(self, rows: Array | np.ndarray, size: int) -> Batch:
        """Returns the batch of examples at `rows`, as `take` does, placed on the mesh."""
        if isinstance(self.split.images, jax.Array):
            return sharding.spread(take(self.split, rows, size), self.mesh)
        rows = np.asarray(rows, np.int32)
        positions, (images, labels) = np.arange(len(rows)), self.split
        parts = ((images, rows), (labels, rows), (rows, positions))
        return _batch(*(self._placed(array, chosen) for array, chosen in parts), size)

    def _placed(self, array: np.ndarray, rows: np.ndarray) -> Array:
        """`array[rows]` on the mesh; only the rows of this process's devices are looked up."""
        shape, place = (len(rows), *array.shape[1:]), sharding.of_batch(self.mesh, len(rows))

        def rows_of_device(index: Any) -> np.ndarray:
            return array[rows[index[0]]]

        return jax.make_array_from_callback(shape, place, rows_of_device)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yields the whole split in order, the last batch padded and masked.

        All batches have the same size, `batch_size` or that of the split if it is smaller.
        """
        number = len(self.split.labels)
        batch_size = min(batch_size, number)
        for start in range(0, number, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), number - 1).astype(np.int32)
            yield self.take(rows, min(batch_size, number - start))


def feed(split: Split, mesh: Mesh) -> Feed:
    """Returns a split's batches for a mesh."""
    if sharding.is_of_this_process(mesh):
        split = jax.device_put(split, sharding.replicated(mesh))
    return Feed(split, mesh)


class ClassRows(NamedTuple):
    """A split's rows sorted by class, `[N]` int32, and how many each class has, `[K]` int32."""

    rows: Array
    counts: Array


def by_class(labels: Array | np.ndarray, num_classes: int) -> ClassRows:
    """Returns the rows of labels `[N]` sorted by class."""
    labels = jnp.asarray(labels)
    rows = jnp.argsort(labels, stable=True).astype(jnp.int32)
    return ClassRows(rows, jnp.bincount(labels, length=num_classes).astype(jnp.int32))


@functools.partial(jax.jit, static_argnames="size")
def draw(key: Key, classes: ClassRows, frequencies: Array, *, size: int) -> Array:
    """Returns rows `[size]` drawn with replacement, each `frequencies[label]` times as often.

    The frequencies `[K]` are nonnegative and not all zero; the key is consumed.
    """
    class_key, member_key = jax.random.split(key)
    ends = jnp.cumsum(classes.counts)
    weight = jnp.cumsum(classes.counts.astype(jnp.float32) * frequencies)
    point = jax.random.uniform(class_key, (size,)) * weight[-1]
    label = jnp.clip(jnp.searchsorted(weight, point, side="right"), 0, len(weight) - 1)
    counts = classes.counts[label]
    member = jax.random.randint(member_key, (size,), 0, jnp.maximum(counts, 1))
    return classes.rows[ends[label] - counts + member]


def augment(key: Key, images: Array, *, crop_padding: int, flip: bool) -> Array:
    """Returns randomly shifted and mirrored images.

    Each image `[H, W, C]` is padded with `crop_padding` zeros on all sides, cropped back at a
    random place, and mirrored left to right with probability 1/2 if it may `flip`, independently
    of the others. Padding and flip are static; the key is consumed.
    """

    def one(key: Key, image: Array) -> Array:
        crop_key, flip_key = jax.random.split(key)
        if crop_padding:
            padding = ((crop_padding, crop_padding), (crop_padding, crop_padding), (0, 0))
            y, x = jax.random.randint(crop_key, (2,), 0, 2 * crop_padding + 1)
            corner = y, x, jnp.zeros_like(y)
            image = jax.lax.dynamic_slice(jnp.pad(image, padding), corner, image.shape)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image

    if not crop_padding and not flip:
        return images
    return jax.vmap(one)(jax.random.split(key, len(images)), images)
