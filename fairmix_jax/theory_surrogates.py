"""What the closed forms of `theory` take for granted: uniform means, fixed weights, 0-1 loss.

Any mean comes back to them by a projection (S10). Random weights (S8, S9) and the logistic
loss (S15) have no closed form and are solved numerically, to about 1e-10 in the bias.
Conventions and statements as in `theory`; see docs/theory.md.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from fairmix_jax.theory import in_unit_interval, nonnegative, optimal_bias, positive, training_risk

_GRID = 257
_PAD = 1e-6


def optimal_direction(mean: ArrayLike, *, epsilon: float = 0.0) -> np.ndarray:
    """Returns the optimal weights for any mean, of Euclidean norm 1 (S10).

    Proportional to `sign(theta_j) max(|theta_j| - epsilon, 0)`, whatever factors and prior;
    coordinates that the attack can reverse get no weight.

    Guarantees: of all unit vectors it has the largest margin, `w theta - epsilon ||w||_1`,
    which is the norm of the thresholded mean.

    Args:
      mean: `[d]`, theta.
      epsilon: radius of training in the units of the mean, at least 0.

    Raises:
      ValueError: no coordinate exceeds epsilon, or epsilon is negative.
    """
    mean, (radius,) = np.asarray(mean, np.float64), nonnegative(epsilon=epsilon)
    weights = np.sign(mean) * np.maximum(np.abs(mean) - radius, 0.0)
    if not weights.any():
        raise ValueError(f"epsilon={epsilon} is not below the largest |mean|, {abs(mean).max()}")
    return weights / np.linalg.norm(weights)


def project(
    direction: ArrayLike, mean: ArrayLike, *, epsilon: ArrayLike = 0.0, sigma: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns separation and budget of the model as a linear classifier sees it (S10).

    `w theta / sigma` and `epsilon ||w||_1 / sigma` for `||w||_2 = 1`; their difference is
    the margin. With them every function of `theory` holds for any mean.

    Args:
      direction: `[d]`, any length but 0.
      mean: `[d]`.
      epsilon: radius, at least 0.
      sigma: standard deviation of the narrow class, positive.
    """
    (deviation,), (radius,) = positive(sigma=sigma), nonnegative(epsilon=epsilon)
    direction = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    separation = direction @ np.asarray(mean, np.float64) / deviation
    return separation, radius * np.abs(direction).sum() / deviation


def expected_factor(
    num_samples: ArrayLike, *, law: str = "dirichlet", alpha: ArrayLike = 1.0
) -> np.ndarray:
    """Returns the mean of `s` under the weights of `mixup.mixing_weights` (S8).

    `(alpha + 1) / (k alpha + 1)` for `"dirichlet"`, `1 / k` for `"uniform"`.

    Guarantees: between `1 / k` and 1; `alpha=0` gives 1.

    Args:
      num_samples: k, at least 1.
      alpha: concentration, at least 0; not used by `"uniform"`.

    Raises:
      ValueError: unknown law, or an argument is out of its range.
    """
    (count,), (alpha,) = positive(num_samples=num_samples), nonnegative(alpha=alpha)
    if law == "uniform":
        return 1 / count
    if law != "dirichlet":
        raise ValueError(f"law={law!r} is unknown; choose 'dirichlet' or 'uniform'")
    return (alpha + 1) / (count * alpha + 1)


def factor_with_replacement(s: ArrayLike, pool: ArrayLike) -> np.ndarray:
    """Returns the mean factor if samples are drawn with replacement from a pool (S14).

    `s + (1 - s) / n` for a pool of n members of the class. `mixup.same_class_partners`
    draws without replacement and needs no correction.
    """
    (s,), (pool,) = nonnegative(s=s), positive(pool=pool)
    return s + (1 - s) / pool


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
    margin: float,
    ratio: float,
    factors: ArrayLike,
    weights: ArrayLike,
    *,
    probability: float = 1.0,
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

    Raises:
      ValueError: an argument is out of its range.
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


def squared_loss_bias(
    margin: ArrayLike,
    ratio: ArrayLike,
    *,
    s: ArrayLike = 1.0,
    s_minus: ArrayLike | None = None,
    prior: ArrayLike = 0.5,
) -> np.ndarray:
    """Returns the bias of least squares on labels +1 and -1 (S15 a).

    `(2 pi - 1) (var / cov - mu)` with `cov = 4 pi (1 - pi) mu` and
    `var = pi K^2 s + (1 - pi) s_minus + 4 pi (1 - pi) mu^2`. Training points are shifted by
    the budget towards the boundary, as against the 0-1 loss.

    Guarantees: 0 for `prior=0.5`, whatever the factors: mixing does nothing.

    Args: as in `optimal_bias`.
    """
    (margin, ratio), (prior,) = positive(margin=margin, ratio=ratio), in_unit_interval(prior=prior)
    plus, minus = nonnegative(s=s, s_minus=s if s_minus is None else s_minus)
    covariance = 4 * prior * (1 - prior) * margin
    variance = prior * ratio**2 * plus + (1 - prior) * minus + covariance * margin
    return (2 * prior - 1) * (variance / covariance - margin)


def logistic_bias(
    margin: float,
    ratio: float,
    *,
    s: float = 1.0,
    s_minus: float | None = None,
    prior: float = 0.5,
    weight_decay: float = 0.0,
) -> tuple[float, float]:
    """Returns slope `a` and bias `beta` of logistic regression on the population (S15 b, c).

    Minimises the mean of `log(1 + exp(-y a (z + beta)))` over the attacked projection `z`
    plus `weight_decay a^2 / 2`, by damped Newton steps; means are trapezoid sums on
    [-12, 12] standard deviations with step 0.01.

    Guarantees: the problem is convex in `(a, a beta)`; stops at steps below 1e-12.

    Args:
      margin, ratio: positive numbers.
      s, s_minus: positive.
      prior: between 0 and 1.
      weight_decay: at least 0; the intercept is not decayed.

    Raises:
      ValueError: an argument is out of its range, or both classes can be more than 8
        standard deviations from the boundary, too far for these sums.
    """
    (pi,) = in_unit_interval(prior=prior)
    s_minus = s if s_minus is None else s_minus
    positive(margin=margin, ratio=ratio, s=s, s_minus=s_minus)
    if 2 * margin > 8 * (ratio * np.sqrt(s) + np.sqrt(s_minus)):
        raise ValueError(f"margin={margin} is too large for {ratio=}, {s=}, {s_minus=}")
    decay = np.diag([float(*nonnegative(weight_decay=weight_decay)), 0.0])
    grid = np.linspace(-12.0, 12.0, 2401)
    mass = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    plus = np.stack([margin + ratio * np.sqrt(s) * grid, np.ones_like(grid)])
    minus = np.stack([margin + np.sqrt(s_minus) * grid, -np.ones_like(grid)])
    design, mass = np.concatenate([plus, minus], 1), np.concatenate([pi * mass, (1 - pi) * mass])

    def loss(point: np.ndarray) -> float:
        return mass @ np.logaddexp(0.0, -(point @ design)) + point @ decay @ point / 2

    point, step = np.zeros(2), np.ones(2)
    while np.abs(step).max() > 1e-12 * (1 + np.abs(point).max()):
        error = special.expit(-(point @ design))
        gradient = decay @ point - design @ (mass * error)
        step = -np.linalg.solve(design * (mass * error * (1 - error)) @ design.T + decay, gradient)
        while loss(point + step) > loss(point) + 1e-15:
            step /= 2
        point = point + step
    return float(point[0]), float(point[1] / point[0])
