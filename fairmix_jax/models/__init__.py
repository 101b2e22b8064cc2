"""Networks, one file each.

A file exports `make(num_classes, *, ...) -> flax.linen.Module`; its keyword arguments are
config fields. The module maps *normalised* images to logits and takes `train` and
`hidden`, see `fairmix_jax.types.ApplyFn`. Outside this package nothing knows flax modules:
`_adapter.py` turns them into pure functions.
"""

from fairmix_jax.models._adapter import build

__all__ = ["build"]
