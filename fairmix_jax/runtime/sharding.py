"""One program on many devices: batches are split among them, everything else is on each."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fairmix_jax.runtime.errors import UsageError

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all devices, or of those given, along which batches are split."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (_AXIS,), (AxisType.Auto,), devices=devices)


def chosen_devices(number: int) -> list[Any]:
    """Returns the first `number` devices of all processes, all if 0.

    Raises a `UsageError` if there are fewer, or several processes would not use all of theirs.
    """
    found = jax.devices()
    if number > len(found):
        raise UsageError(f"num_devices={number}, but there are {len(found)}; give 0 for all")
    if jax.process_count() > 1 and number not in (0, len(found)):
        raise UsageError(f"num_devices={number}, but several processes use all of theirs; give 0")
    return found[: number or None]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is on every device: weights, states, keys, sums."""
    return NamedSharding(mesh, PartitionSpec())


def is_of_this_process(mesh: Mesh) -> bool:
    """Whether all devices of a mesh are this process's."""
    return all(device.process_index == jax.process_index() for device in mesh.devices.flat)


def on_each(mesh: Mesh, tree: Any) -> Any:
    """Returns a pytree of arrays, equal in all processes, on every device of all of them."""
    if is_of_this_process(mesh):
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
    size = jax.tree.leaves(batch)[0].shape[0]
    return batch if mesh.size == 1 else jax.device_put(batch, of_batch(mesh, size))
