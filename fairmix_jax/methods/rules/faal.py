"""FAAL: the worst class weights in a ball around uniform, for each batch."""

from typing import Annotated

import jax.numpy as jnp
from jax import lax

from fairmix_jax.methods.class_statistics import class_mean
from fairmix_jax.methods.rules import checked, weighed_by_batch
from fairmix_jax.types import Array, ClassStatistics, Rule, Source

SOURCE = Source("Zhang et al. 2024, arXiv 2402.17729", "TrustAI/FAAL", "none")

_HALVINGS = 50


@checked
def make(num_classes: int, *, ball_radius: Annotated[float, ("low", 0), ("high", 9)] = 0.5) -> Rule:
    """Returns loss weights `K p`, where `p` maximises the batch's margins in a KL ball.

    `p` solves `max sum_c n_c m_c p_c` over class distributions with `KL(U || p) <= ball_radius`
    (`worst_distribution`), with `m_c` the mean of `max_{k != y} softmax_k - softmax_y` over
    the batch's `n_c` adversarial examples of the class, and `U` uniform.

    Guarantees: `ball_radius = 0` is `none`. It is 0.5 in the logs of the official repository, 1.0
    by default in its script. The solver is ours.

    Edge cases: classes absent from the batch are left out of `U` and weigh 1 (in the official
    code they have `n_c m_c = 0`, more than most, and with it a share of `p`).
    """

    def weigh(statistics: ClassStatistics) -> Array:
        counts = statistics.counts.total
        present = counts > 0
        gains = class_mean(statistics.margin, counts) * counts.astype(jnp.float32)
        worst = worst_distribution(gains, ball_radius=ball_radius, present=present)
        weights = worst * jnp.sum(present).astype(jnp.float32)
        return jnp.where(present, weights, 1.0)

    return weighed_by_batch(num_classes, weigh)


def worst_distribution(
    gains: Array, *, ball_radius: float | Array, present: Array | None = None
) -> Array:
    """Returns `argmax_p sum_c gains_c p_c` over distributions with `KL(U || p) <= ball_radius`.

    The optimum is `p_c = eta U_c / (nu - gains_c)` with `eta` the normaliser and `nu` above
    all gains such that the constraint is tight. The divergence falls with `nu`, which is
    found by bisection of `log(nu - max gains)`.

    `U` is uniform over the classes `present`, `[K]` bool, `p` zero elsewhere; all if `None`.

    Guarantees: equal gains `[K]`, and `ball_radius = 0`, give `U`.
    """
    present = jnp.ones(gains.shape, bool) if present is None else present
    uniform = present.astype(gains.dtype)
    uniform = uniform / jnp.maximum(jnp.sum(uniform), 1)
    top = jnp.max(jnp.where(present, gains, -jnp.inf))
    below = jnp.where(present, top - gains, 0.0)
    width = jnp.max(below)
    gap = below / jnp.where(width > 0, width, 1.0)

    def distribution(log_distance: Array) -> Array:
        share = uniform / (jnp.exp(log_distance) + gap)
        return share / jnp.sum(share)

    def divergence(log_distance: Array) -> Array:
        odds = jnp.where(present, distribution(log_distance), 1.0)
        ratio = jnp.where(present, uniform, 1.0) / odds
        return jnp.sum(uniform * jnp.log(ratio))

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        is_too_near = divergence(middle) > ball_radius
        return jnp.where(is_too_near, middle, low), jnp.where(is_too_near, high, middle)

    ends = tuple(jnp.log(jnp.asarray(end, gains.dtype)) for end in (1e-9, 1e6))
    _, log_distance = lax.fori_loop(0, _HALVINGS, halve, ends)
    is_free = (width > 0) & (jnp.asarray(ball_radius) > 0)
    return jnp.where(is_free, distribution(log_distance), uniform)
