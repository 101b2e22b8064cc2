"""No rule: every class is treated alike."""

import jax.numpy as jnp

from fairmix_jax.types import Knobs, Rule


def make(num_classes: int) -> Rule:
    """Returns the rule whose knobs are ones and whose state is empty."""
    ones = jnp.ones(num_classes)
    return Rule(
        init=lambda: (),
        knobs=lambda state: Knobs(*(ones for _ in Knobs._fields)),
        update=lambda state, counts: state,
    )
