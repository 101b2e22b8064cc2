"""No rule: every class is treated alike."""

from fairmix_jax.methods.rules import knobs
from fairmix_jax.types import Rule, Source

SOURCE = Source("-")


def make(num_classes: int) -> Rule:
    """Returns the rule whose knobs are ones and whose state is empty."""
    return Rule(init=lambda: (), knobs=lambda state: knobs(num_classes))
