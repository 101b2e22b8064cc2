"""One program on many devices: batches are split among them, everything else is on each."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fairmix_jax.errors import UsageError

_AXIS = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all devices, or of those given, along which batches are split."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (_AXIS,), (AxisType.Auto,), devices=devices)


def chosen_devices(number: int) -> list[Any]:
    """Returns the first `number` devices, all if 0.

    Raises:
      UsageError: there are not so many.
    """
    found = jax.devices()
    if number > len(found):
        raise UsageError(
            f"num_devices={number}, but there are {len(found)}; give at most that, or 0 for all"
        )
    return found[: number or None]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is on every device: weights, states, keys, sums."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays with a leading batch axis, in equal consecutive parts."""
    return NamedSharding(mesh, PartitionSpec(_AXIS))


def spread(batch: Any, mesh: Mesh) -> Any:
    """Returns a pytree of arrays with a leading batch axis, split among the devices.

    A batch that does not divide among them, such as a short validation set, is on each.
    """
    if mesh.size == 1:
        return batch
    size = jax.tree.leaves(batch)[0].shape[0]
    return jax.device_put(batch, replicated(mesh) if size % mesh.size else along_batch(mesh))
