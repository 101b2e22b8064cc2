"""What is done to the weights of a trained network before they are evaluated; one file each."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from fairmix_jax.types import Weights

_LAYERS = {"kernel": ("bias", 1), "w": ("b", 1), "weight": ("bias", 0)}
"""What flax, Haiku and Equinox call a matrix: its bias there, and the axis of its outputs."""


def head(weights: Weights, num_classes: int) -> dict[str, Any]:
    """Returns the last linear layer, the only one with `K` outputs.

    That is its `kernel` `[*, K]` and, if it has one, its `bias` `[K]`.

    Raises:
      ValueError: there is none, or several.
    """
    flat = flatten_dict(weights.params)
    paths, axis = _place(flat, num_classes)
    found = {name: flat[path] for name, path in paths.items() if path in flat}
    return found if axis else found | {"kernel": found["kernel"].T}


def with_head(weights: Weights, num_classes: int, **arrays: Any) -> Weights:
    """Returns the weights with other arrays in the last linear layer; errors as in `head`."""
    flat = flatten_dict(weights.params)
    paths, axis = _place(flat, num_classes)
    changes = {
        paths[name]: array if axis or name != "kernel" else array.T
        for name, array in arrays.items()
    }
    return weights._replace(params=unflatten_dict(flat | changes))


def _place(
    flat: dict[tuple[str, ...], Any], num_classes: int
) -> tuple[dict[str, tuple[str, ...]], int]:
    """The paths of kernel and bias, and the kernel's axis of outputs."""
    axes = {path: _LAYERS[path[-1]][1] for path in flat if path[-1] in _LAYERS}
    kernels = [
        path for path, axis in axes.items()
        if flat[path].ndim == 2 and flat[path].shape[axis] == num_classes
    ]  # fmt: skip
    if len(kernels) != 1:
        raise ValueError(
            f"calibration.name found {len(kernels)} layers with {num_classes} outputs; it needs a "
            "model with exactly one"
        )
    *layer, name = kernels[0]
    return {"kernel": kernels[0], "bias": (*layer, _LAYERS[name][0])}, axes[kernels[0]]
