"""Chi-square DRO: the worst class weights in a ball around the batch, in closed form."""

import jax.numpy as jnp
from jax import lax

from fairmix_jax.methods.class_statistics import class_mean
from fairmix_jax.methods.rules import checked, weighed_by_batch
from fairmix_jax.types import Amount, Array, ClassStatistics, Rule, Source

SOURCE = Source(
    "chi-square ball: Duchi and Namkoong 2019, arXiv 1610.02581; for classes CODAT 2025, "
    "arXiv 2501.04527 (formulas not read)"
)

_HALVINGS = 60


@checked
def make(num_classes: int, *, ball_radius: Amount = 0.05) -> Rule:
    """Returns the loss weights that maximise the batch's mean loss in a chi-square ball.

    With `pi_c` the classes' shares of the batch and `L_c` their mean losses, the weights are
    `p_c / pi_c` of the distribution `p` that maximises `sum_c p_c L_c` subject to
    `1/2 sum_c (p_c - pi_c)^2 / pi_c <= ball_radius`.

    Guarantees: as long as no weight is zero they are `1 + sqrt(2 ball_radius) (L_c - mean) /
    std`, moments under `pi`, and training descends `mean + sqrt(2 ball_radius) std`. Equal
    losses, and `ball_radius = 0`, give ones. Absent classes weigh 1.

    This is the standard result that CODAT names; the default is our choice.
    """

    def weigh(statistics: ClassStatistics) -> Array:
        counts = statistics.counts.total
        share = counts.astype(jnp.float32) / jnp.maximum(jnp.sum(counts), 1).astype(jnp.float32)
        losses = class_mean(statistics.loss, counts)
        return jnp.where(counts > 0, worst_ratios(losses, share, ball_radius=ball_radius), 1.0)

    return weighed_by_batch(num_classes, weigh)


def worst_ratios(losses: Array, share: Array, *, ball_radius: float | Array) -> Array:
    """Returns `u = p / share` for the worst `p` in the chi-square ball around `share`.

    The optimum has the form `u_c` proportional to `max(L_c - nu, 0)`; its divergence rises with
    `nu`, which is found by bisection. A ball that holds the distribution on the largest loss alone
    gives that one. `losses` and `share` are `[K]`; classes without a share do not matter.
    """
    present = share > 0
    top = jnp.max(jnp.where(present, losses, -jnp.inf))
    below = jnp.where(present, top - losses, 0.0)
    width = jnp.max(below)
    gap = below / jnp.where(width > 0, width, 1.0)

    def ratios(log_reach: Array) -> Array:
        height = jnp.maximum(1 - gap / jnp.exp(log_reach), 0.0)
        return height / jnp.sum(share * height)

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        is_too_far = jnp.sum(share * (ratios(middle) - 1) ** 2) > 2 * ball_radius
        return jnp.where(is_too_far, middle, low), jnp.where(is_too_far, high, middle)

    ends = tuple(jnp.log(jnp.asarray(end, losses.dtype)) for end in (1e-7, 1e7))
    _, log_reach = lax.fori_loop(0, _HALVINGS, halve, ends)
    is_free = (width > 0) & (jnp.asarray(ball_radius) > 0)
    return jnp.where(is_free, ratios(log_reach), jnp.ones_like(losses))
