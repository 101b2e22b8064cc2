"""Rules: from class statistics to knobs per class, one file each.

A file exports `make(num_classes, *, ...) -> Rule` and `SOURCE`; the keyword arguments of
`make` are config fields, and their defaults the published values; outside the ranges that its
docstring gives it raises a ValueError. `num_classes` is `K`. To add one, copy `variance.py` for
a rule that reads every batch, `cfa.py` for one that reads epochs.
"""

from collections.abc import Callable

import jax.numpy as jnp

from fairmix_jax.types import Array, ClassStatistics, Knobs, Rule


def knobs(num_classes: int, **changes: Array) -> Knobs:
    """Returns knobs that change nothing, but for those given, `[K]` each."""
    ones = jnp.ones(num_classes)
    return Knobs(*(ones for _ in Knobs._fields))._replace(**changes)


def weighed_by_batch(num_classes: int, weigh: Callable[[ClassStatistics], Array]) -> Rule:
    """Returns the rule whose loss weights `[K]` are a function of each batch's statistics."""
    return Rule(
        lambda: jnp.ones(num_classes),
        lambda state: knobs(num_classes, loss_weight=state),
        sets=("loss_weight",), reads=("batch",),
        observe=lambda state, statistics: weigh(statistics),
    )  # fmt: skip
