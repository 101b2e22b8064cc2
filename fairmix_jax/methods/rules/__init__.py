"""Rules: from class statistics to knobs per class, one file each.

A file exports `make(num_classes, *, ...) -> Rule`, `checked`, whose defaults are the published
values, and `SOURCE`. `num_classes` is `K`. To add one, copy `variance.py` for a rule that reads
every batch, `cfa.py` for one that reads epochs.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fairmix_jax.runtime.registry import checked as checked
from fairmix_jax.types import Array, ClassStatistics, Knobs, Rule


def knobs(num_classes: int, **changes: Array) -> Knobs:
    """Returns knobs that change nothing, but for those given, `[K]` each."""
    ones = jnp.ones(num_classes)
    return Knobs(*(ones for _ in Knobs._fields))._replace(**changes)


def stated(num_classes: int, *sets: str, **functions: Any) -> Rule:
    """Returns a rule whose state, `[K]`, ones at first, is each of the knobs that it sets."""
    return Rule(
        lambda: jnp.ones(num_classes),
        lambda state: knobs(num_classes, **dict.fromkeys(sets, state)),
        sets=sets, **functions,
    )  # fmt: skip


def weighed_by_batch(num_classes: int, weigh: Callable[[ClassStatistics], Array]) -> Rule:
    """Returns the rule whose loss weights `[K]` are a function of each batch's statistics."""

    def observe(_: Array, statistics: ClassStatistics) -> Array:
        return weigh(statistics)

    return stated(num_classes, "loss_weight", reads=("batch",), observe=observe)
