"""FRL: fair robust learning by reweighting, and by larger radii for hard classes."""

import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import accuracy
from fairmix_jax.methods.rules import checked, knobs
from fairmix_jax.types import Amount, Array, Count, EpochStatistics, PositiveShare, Rule, Source

SOURCE = Source("Xu et al. 2021, arXiv 2010.06121", "hannxu123/fair_robust", "none")


@checked
def make(
    num_classes: int, *, tolerance: Amount = 0.07, rate: Amount = 0.05, radius_rate: Amount = 0.2,
    limit: PositiveShare = 0.5, halve_every: Count = 40,
) -> Rule:  # fmt: skip
    """Returns multipliers that grow where a class violates a bound on its excess error.

    After a validation, with `g0 = e - mean(e) - tolerance` the excess clean error of each class and
    `g1 = b - mean(b) - tolerance` the excess boundary error (clean minus robust accuracy):

        m0 <- cap(max(m0 + rate g0, 0))       m1 <- cap(max(m1 + 2 rate g1, 0))
        m2 <- m2 + radius_rate g1

    where `cap` scales a sum above `limit` down to it. `1 + K m0 - sum(m0)` weighs the clean
    loss, the same of `m1` the robust one, and `clip(exp(2 m2), 0.98, 3)` is the radius; the
    step size of all classes follows the largest radius. Means are over all examples.

    Guarantees: the mean weight is 1; with `limit <= 1` no weight is negative; with both
    rates 0 it is `none`. `radius_rate=0, tolerance=0.1` is the paper's "Reweight", the
    default its "Reweight + Remargin". For bases without a robust term `m1` has no effect.

    Where we differ from the official code: it divides by the weights' mean over the batch,
    we by that over the classes; it validates before the first epoch too; it passes the clean
    batch a third time, see `trades`. `rate` is halved before every `halve_every`-th epoch.
    """

    def init() -> dict[str, Array]:
        return {name: jnp.zeros(num_classes) for name in ("clean", "robust", "radius")}

    def to_knobs(state):
        clean, robust = (
            1 + num_classes * state[name] - jnp.sum(state[name]) for name in ("clean", "robust")
        )
        radius = jnp.clip(jnp.exp(2 * state["radius"]), 0.98, 3.0)
        largest = jnp.full(num_classes, jnp.max(radius))
        return knobs(num_classes, ce_weight=clean, beta=robust, radius=radius, step_size=largest)

    def update(state, statistics: EpochStatistics):
        total = statistics.clean.total.astype(jnp.float32)
        clean, robust = accuracy(statistics.clean), accuracy(statistics.robust)
        clean_excess = _excess(1 - clean, total, tolerance)
        boundary_excess = _excess(clean - robust, total, tolerance)
        halvings = ((statistics.epoch + 1) // halve_every).astype(jnp.float32)
        step = rate * 0.5**halvings
        return {
            "clean": _capped(state["clean"] + step * clean_excess, limit),
            "robust": _capped(state["robust"] + 2 * step * boundary_excess, limit),
            "radius": state["radius"] + radius_rate * boundary_excess,
        }

    sets = "ce_weight", "beta", "radius", "step_size"
    return Rule(init, to_knobs, sets=sets, reads=("clean", "robust"), update=update)


def _capped(multiplier: Array, limit: float) -> Array:
    multiplier = jnp.maximum(multiplier, 0.0)
    total = jnp.sum(multiplier)
    return jnp.where(total > limit, multiplier * (limit / jnp.maximum(total, limit)), multiplier)


def _excess(errors: Array, total: Array, tolerance: float) -> Array:
    mean = jnp.sum(errors * total) / jnp.maximum(jnp.sum(total), 1.0)
    return jnp.where(total > 0, errors - mean - tolerance, 0.0)
