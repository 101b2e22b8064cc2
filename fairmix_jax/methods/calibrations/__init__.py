"""What is done to the weights of a trained network before they are evaluated; one file each."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from fairmix_jax.types import Weights


def head(weights: Weights, num_classes: int) -> dict[str, Any]:
    """Returns the arrays of the last linear layer, the one with a kernel `[*, K]`, by their names.

    Raises:
      ValueError: there is none, or several.
    """
    flat = flatten_dict(weights.params)
    return {path[-1]: flat[path] for path in flat if path[:-1] == _place(flat, num_classes)}


def with_head(weights: Weights, num_classes: int, **arrays: Any) -> Weights:
    """Returns the weights with other arrays in the last linear layer; errors as in `head`."""
    flat = flatten_dict(weights.params)
    place = _place(flat, num_classes)
    changes = {(*place, name): array for name, array in arrays.items()}
    return weights._replace(params=unflatten_dict(flat | changes))


def _place(flat: dict[tuple[str, ...], Any], num_classes: int) -> tuple[str, ...]:
    kernels = [
        path[:-1] for path, leaf in flat.items()
        if path[-1] == "kernel" and leaf.ndim == 2 and leaf.shape[1] == num_classes
    ]  # fmt: skip
    if len(kernels) != 1:
        raise ValueError(
            f"calibration.name found {len(kernels)} layers with {num_classes} outputs; it needs a "
            "model with exactly one"
        )
    return kernels[0]
