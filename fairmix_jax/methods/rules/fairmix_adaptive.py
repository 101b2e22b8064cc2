"""fairmix_adaptive: each class is mixed as strongly as its validation risk suggests."""

from typing import Literal

import jax
import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import accuracy
from fairmix_jax.methods.rules import checked, stated
from fairmix_jax.types import Amount, Array, EpochStatistics, Rule, Source

SOURCE = Source("this project; after Zhong and Tandon 2024, arXiv 2411.14424", "this one", "Apache")


@checked
def make(
    num_classes: int, *, gain: Amount = 2.0, signal: Literal["easy", "boundary"] = "easy",
    risk: Literal["robust", "clean"] = "robust",
) -> Rule:  # fmt: skip
    """Returns mixing strengths from the validation risk `r` of each class.

    The strength, a factor of `mixing.probability`, is `clip(1 + gain (a - mean(a)), 0, 2)`
    with the advantage `a` of mixing the class: where nothing is clipped there is as much
    mixing as with the same strength for all. It needs a mixing to act on; with a probability
    of 0.5 the whole range has an effect.

    * `signal="easy"`: `a = -r`, more mixing for the classes that do well. It gives up some of
      their accuracy and moves the boundary in favour of the others.
    * `signal="boundary"`: `a = (r - mean(r)) (1 - min(z^2, 4))` with `z = Phi^-1(r)`.

    In the two-class Gaussian model mixing a class a little more pushes the boundary towards it if
    `z^2 > 1`, a risk below 15.9 % (or above 84.1 %), and away from it, in its favour, otherwise. At
    equal mean strength, to first order, `"boundary"` therefore never does worse than uniform mixing
    while `z^2 <= 4`; `"easy"` does better exactly if the two classes' `z^2` sum to more than 2
    (docs/theory/statements.md, S16). With more classes, or another model, both are conjectures.

    Guarantees: `gain = 0` is `none`; equal risks give ones, so the rule rests once it has won.
    Classes without validation examples keep the strength 1.

    `gain` is the strength per unit of advantage, `risk` which validation risk is read.
    """

    def update(_: Array, statistics: EpochStatistics) -> Array:
        counts = getattr(statistics, risk)
        present = counts.total > 0
        risks = jnp.where(present, 1 - accuracy(counts), 0.0)
        z = jax.scipy.stats.norm.ppf(jnp.clip(risks, 1e-4, 1 - 1e-4))
        favour = 1 - jnp.minimum(z**2, 4.0)  # positive for risks in (15.9 %, 84.1 %)
        advantage = -risks if signal == "easy" else _centred(risks, present) * favour
        strength = jnp.clip(1 + gain * _centred(advantage, present), 0.0, 2.0)
        return jnp.where(present, strength, 1.0)

    return stated(num_classes, "mixing", reads=(risk,), update=update)


def _centred(values: Array, present: Array) -> Array:
    number = jnp.maximum(jnp.sum(present).astype(jnp.float32), 1.0)
    return values - jnp.sum(jnp.where(present, values, 0.0)) / number
