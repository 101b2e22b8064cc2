"""CFOL: classes are drawn more often the more they are misclassified."""

from typing import Literal

import jax
import jax.numpy as jnp

from fairmix_jax.methods.rules import checked, knobs
from fairmix_jax.types import Amount, Array, ClassStatistics, PositiveShare, Rule, Source

SOURCE = Source(
    "Pethick et al. 2023, arXiv 2302.08872", "LIONS-EPFL/class-focused-online-learning-code", "MIT"
)


@checked
def make(
    num_classes: int, *, gamma: PositiveShare = 0.5, learning_rate: Amount = 5e-6,
    by: Literal["sampling", "weight"] = "sampling",
) -> Rule:  # fmt: skip
    """Returns class frequencies `p = gamma / K + (1 - gamma) softmax(w)`: the Exp3 algorithm.

    After each batch `w_c` grows by `learning_rate / p_c` for every misclassified adversarial
    example of class `c`. Examples are drawn with replacement, `p_c` times as often as in the
    data set. No validation is used.

    Guarantees: no class is drawn less than `gamma` times its share; `learning_rate = 0`
    gives equal frequencies (then still drawn with replacement).

    Edge cases: the original draws the class from `p` alone, so it also balances the classes
    of a data set that is not balanced; here a class keeps its share, times `K p_c`.

    Defaults are those of the official task. By sampling `w_c` grows by about `learning_rate *
    error_c` for each draw. `by="weight"` draws uniformly and weighs the loss by `K p_c` instead.
    """
    knob = {"sampling": "sampling", "weight": "loss_weight"}[by]

    def frequencies(state: Array) -> Array:
        return gamma / num_classes + (1 - gamma) * jax.nn.softmax(state)

    def observe(state: Array, statistics: ClassStatistics) -> Array:
        counts = statistics.counts
        wrong = (counts.total - counts.correct).astype(jnp.float32)
        state = state + learning_rate * wrong / frequencies(state)
        return state - jnp.max(state)

    return Rule(
        lambda: jnp.zeros(num_classes),
        lambda state: knobs(num_classes, **{knob: num_classes * frequencies(state)}),
        sets=(knob,), reads=("batch",), observe=observe,
    )  # fmt: skip
