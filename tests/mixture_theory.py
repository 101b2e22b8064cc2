"""The theory of random weights (docs/theory/statements.md, S8 and S9), solved numerically.

Data that are mixed with random weights are a scale mixture of Gaussians, whose optimal bias has
no closed form. It is found here to about 1e-10. Conventions as in `fairmix_jax.theory`.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from fairmix_jax.theory import optimal_bias, training_risk
from fairmix_jax.theory.quantities import nonnegative, positive

_GRID = 257
_PAD = 1e-6


def dirichlet_factors(
    num_samples: int, *, alpha: float = 1.0, nodes: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Returns values of `s` and their probabilities under Dirichlet weights (S8).

    Gauss-Jacobi quadrature over the sticks `lambda_j ~ Beta(alpha, (k - j) alpha)`.

    Guarantees: means of polynomials in the weights of degree below `2 nodes` are exact.

    Args:
      num_samples: k, at least 1; 2 is a pair with Beta(alpha, alpha).
      alpha: positive.
      nodes: per stick.

    Returns: two arrays of length `nodes ** (k - 1)`, for `mixture_bias`.
    """
    positive(num_samples=num_samples, alpha=alpha, nodes=nodes)
    factors, weights = np.ones(1), np.ones(1)
    for rest in range(1, num_samples):
        points, masses = special.roots_jacobi(nodes, rest * alpha - 1, alpha - 1)
        stick = (1 + points[:, None]) / 2
        factors = (stick**2 + (1 - stick) ** 2 * factors).ravel()
        weights = np.outer(masses / masses.sum(), weights).ravel()
    return factors, weights


def mixture_bias(
    margin: float, ratio: float, factors: ArrayLike, weights: ArrayLike, *, probability: float = 1.0
) -> float:
    """Returns the bias that minimises the training risk if `s` is random (S8, S9).

    Data are a scale mixture: with `probability` they are mixed, with a factor drawn from
    `factors` by `weights`, otherwise they keep `s = 1`; the same law in both classes, equal
    priors.

    Guarantees: lies between `optimal_bias` at the largest and at the smallest factor, hence
    for factors up to 1 and `ratio > 1` never less fair than no mixing; one factor gives
    `optimal_bias`. Where these two lie between `-mu` and `mu` the risk is convex. Beyond,
    for small margins, it can have several minima; the best of those that a grid of 257
    separates is returned.

    Args:
      margin, ratio: positive numbers.
      factors: `[n]`, positive.
      weights: `[n]`, at least 0; divided by their sum.
      probability: of mixing, from 0 to 1.
    """
    (factors,), (weights,) = positive(factors=factors), nonnegative(weights=weights)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} is not between 0 and 1")
    factors = np.append(factors, 1.0)
    weights = np.append(probability * weights / weights.sum(), 1 - probability)
    factors, weights = factors[weights > 0], weights[weights > 0]

    def score(beta: float) -> float:
        """Log density of "-" over that of "+" at the boundary: the sign of the slope."""
        deviation = np.sqrt(factors)
        minus = ((margin - beta) / deviation) ** 2
        plus = ((margin + beta) / (ratio * deviation)) ** 2
        return special.logsumexp(-minus / 2, b=weights / deviation) - special.logsumexp(
            -plus / 2, b=weights / (ratio * deviation)
        )

    ends = optimal_bias(margin, ratio, s=factors)
    low, high = ends.min() - _PAD * margin, ends.max() + _PAD * margin
    grid = np.linspace(low, high, 2 if max(-low, high) <= margin else _GRID)
    upward = np.flatnonzero(np.diff(np.sign([score(beta) for beta in grid])) > 0)
    roots = [optimize.brentq(score, *grid[[i, i + 1]], xtol=1e-14) for i in upward]
    return min(roots, key=lambda beta: weights @ training_risk(beta, margin, ratio, s=factors))
