"""Rules: from class statistics to knobs per class, one file each.

A file exports `make(num_classes, *, ...) -> Rule` and `SOURCE`; the keyword arguments of
`make` are config fields, and their defaults the published values.
"""

import jax.numpy as jnp

from fairmix_jax.types import Array, Knobs


def knobs(num_classes: int, **changes: Array) -> Knobs:
    """Returns knobs that change nothing, but for those given, `[K]` each."""
    ones = jnp.ones(num_classes)
    return Knobs(*(ones for _ in Knobs._fields))._replace(**changes)
