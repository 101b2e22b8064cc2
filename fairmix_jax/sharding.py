"""One program on many devices: batches are split among them, everything else is on each."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fairmix_jax.errors import UsageError

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all devices, or of those given, along which batches are split."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (_AXIS,), (AxisType.Auto,), devices=devices)


def chosen_devices(number: int) -> list[Any]:
    """Returns the first `number` devices of all processes, all if 0.

    Raises:
      UsageError: there are not so many, or several processes would not use all of theirs.
    """
    found = jax.devices()
    if number > len(found):
        raise UsageError(
            f"num_devices={number}, but there are {len(found)}; give at most that, or 0 for all"
        )
    if jax.process_count() > 1 and number not in (0, len(found)):
        raise UsageError(
            f"num_devices={number}, but {jax.process_count()} processes have {len(found)}; "
            "several processes use all of theirs, give 0"
        )
    return found[: number or None]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is on every device: weights, states, keys, sums."""
    return NamedSharding(mesh, PartitionSpec())


def on_each(mesh: Mesh, tree: Any) -> Any:
    """Returns a pytree of arrays, equal in all processes, on every device of all of them."""
    if all(device.process_index == jax.process_index() for device in mesh.devices.flat):
        return jax.device_put(tree, replicated(mesh))
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def along_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays with a leading batch axis, in equal consecutive parts."""
    return NamedSharding(mesh, PartitionSpec(_AXIS))


def of_batch(mesh: Mesh, size: int) -> NamedSharding:
    """Returns the sharding of a batch of `size`: split if it divides among the devices.

    One that does not, such as a short validation set, is on each.
    """
    return replicated(mesh) if size % mesh.size else along_batch(mesh)


def spread(batch: Any, mesh: Mesh) -> Any:
    """Returns a pytree of arrays with a leading batch axis, placed as `of_batch` says."""
    if mesh.size == 1:
        return batch
    size = jax.tree.leaves(batch)[0].shape[0]
    return jax.device_put(batch, of_batch(mesh, size))


def positions_here(place: NamedSharding, size: int) -> np.ndarray:
    """Returns which of `size` rows lie on this process's devices, rising."""
    rows = np.arange(size)
    here = place.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([rows[part] for part in here]))


def assembled(place: NamedSharding, size: int, parts: Any) -> Any:
    """Returns a pytree of arrays of `size` rows from the rows of each process.

    Args:
      place: how they lie.
      size: of the leading axis, over all processes.
      parts: a pytree of NumPy arrays, at the rows `positions_here`.
    """
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(place, part, (size, *part.shape[1:])),
        parts,
    )
