"""CFA: the radius and the robustness weight follow each class's training robustness."""

import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import accuracy
from fairmix_jax.methods.rules import checked, knobs
from fairmix_jax.types import Amount, EpochStatistics, Natural, Rule, Source

SOURCE = Source("Wei et al. 2023, arXiv 2303.14460", "PKU-ML/CFA", "none")


@checked
def make(
    num_classes: int, *, radius_offset: Amount = 0.5, beta_offset: Amount = 0.5,
    warmup_epochs: Natural = 10,
) -> Rule:  # fmt: skip
    """Returns radius `radius_offset + t` and beta `beta_offset + t` of each class.

    `t` is the class's robust accuracy in the last epoch, on the adversarial training
    examples themselves: hard classes get a smaller radius. The step size stays.

    Guarantees: classes of equal accuracy `1 - offset` get the plain radius and beta. Knobs are
    ones for the first `warmup_epochs`, as in the official code (the paper has no warm-up). A class
    without examples keeps its knobs.

    The third part of the method, gated weight averaging, is `averaging.name=fawa`. The paper
    divides the TRADES loss by `1 + beta`: `base.normalize=true`. The published `radius_offset` is
    0.5 for PGD-AT, 0.3 for TRADES; `beta_offset` is for bases with a robustness weight.
    """

    def update(state, statistics: EpochStatistics):
        robust = accuracy(statistics.train.counts)
        is_set = (statistics.train.counts.total > 0) & (statistics.epoch >= warmup_epochs)
        return {
            "radius": jnp.where(is_set, radius_offset + robust, state["radius"]),
            "beta": jnp.where(is_set, beta_offset + robust, state["beta"]),
        }

    return Rule(
        lambda: {"radius": jnp.ones(num_classes), "beta": jnp.ones(num_classes)},
        lambda state: knobs(num_classes, **state),
        sets=("radius", "beta"), reads=("train",), update=update,
    )  # fmt: skip
