"""CFA: the radius and the robustness weight follow each class's training robustness."""

import jax.numpy as jnp

from fairmix_jax.class_statistics import accuracy
from fairmix_jax.rules import knobs
from fairmix_jax.types import EpochStatistics, Rule, Source

SOURCE = Source("Wei et al. 2023, arXiv 2303.14460", "PKU-ML/CFA", "none")


def make(
    num_classes: int,
    *,
    radius_offset: float = 0.5,
    beta_offset: float = 0.5,
    warmup_epochs: int = 10,
) -> Rule:
    """Returns radius `radius_offset + t` and beta `beta_offset + t` of each class.

    `t` is the class's robust accuracy in the last epoch, on the adversarial training
    examples themselves: hard classes get a smaller radius. The step size stays.

    Guarantees: classes of equal accuracy `1 - offset` get the plain radius and beta. Knobs
    are ones for the first `warmup_epochs`. A class without examples keeps its knobs.

    The third part of the method, gated weight averaging, is `averaging.name=fawa`. The
    paper divides the TRADES loss by `1 + beta`: `base.normalize=true`.

    Where paper and official code disagree, we follow the code on the warm-up (the paper has
    none).

    Args:
      num_classes: `K`.
      radius_offset: 0.5 for PGD-AT, 0.3 for TRADES.
      beta_offset: for bases with a robustness weight.
      warmup_epochs: plain epochs before.

    Reference: Wei et al. 2023, arXiv 2303.14460.
    """

    def init():
        return {"radius": jnp.ones(num_classes), "beta": jnp.ones(num_classes)}

    def to_knobs(state):
        return knobs(num_classes, **state)

    def update(state, statistics: EpochStatistics):
        robust = accuracy(statistics.train.counts)
        is_set = (statistics.train.counts.total > 0) & (statistics.epoch >= warmup_epochs)
        return {
            "radius": jnp.where(is_set, radius_offset + robust, state["radius"]),
            "beta": jnp.where(is_set, beta_offset + robust, state["beta"]),
        }

    return Rule(init, to_knobs, sets=("radius", "beta"), reads=("train",), update=update)
