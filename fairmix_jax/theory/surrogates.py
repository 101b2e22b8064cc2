"""Checks of what the closed forms of `theory` assume: uniform means, fixed weights, 0-1 loss.

Any mean comes back to them by a projection (S10), random weights by the mean of their factor,
nearly (S8). The logistic loss (S15) has no closed form and is solved numerically, to about 1e-10
in the bias. Conventions, ranges and errors as in `theory`; statements in
docs/theory/statements.md.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax.theory.quantities import (
    at_least_one,
    finite,
    nonnegative,
    positive,
    training_setup,
)


def optimal_direction(mean: ArrayLike, *, epsilon: float = 0.0) -> np.ndarray:
    """Returns the optimal weights `[d]` for any mean `[d]`, of Euclidean norm 1 (S10).

    Proportional to `sign(theta_j) max(|theta_j| - epsilon, 0)`, whatever factors and prior;
    coordinates that the attack can reverse get no weight. `epsilon`, at least 0, is the radius
    of training in the units of the mean; ValueError if no coordinate exceeds it.

    Guarantees: of all unit vectors it has the largest margin, `w theta - epsilon ||w||_1`.
    """
    (mean,), (radius,) = finite(mean=mean), nonnegative(epsilon=epsilon)
    weights = np.sign(mean) * np.maximum(np.abs(mean) - radius, 0.0)
    if not weights.any():
        raise ValueError(f"epsilon={epsilon} is not below the largest |mean|, {abs(mean).max()}")
    return weights / np.linalg.norm(weights)


def project(
    direction: ArrayLike, mean: ArrayLike, *, epsilon: ArrayLike = 0.0, sigma: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns separation and budget of the model as a linear classifier sees it (S10).

    `w theta / sigma` and `epsilon ||w||_1 / sigma` for `||w||_2 = 1`, with which every function of
    `theory` holds for any mean. Direction (of any length but 0) and mean are `[d]`; `epsilon` is at
    least 0, the standard deviation of the narrow class, `sigma`, positive.
    """
    (deviation,), (radius,) = positive(sigma=sigma), nonnegative(epsilon=epsilon)
    direction, mean = finite(direction=direction, mean=mean)
    if direction.shape != mean.shape or not direction.any():
        raise ValueError(
            f"{direction=} is no direction for {mean=}; give [d] each, one other than 0"
        )
    direction = direction / np.linalg.norm(direction)
    separation = direction @ mean / deviation
    return separation, radius * np.abs(direction).sum() / deviation


def expected_factor(
    num_samples: ArrayLike, *, law: str = "dirichlet", alpha: ArrayLike = 1.0
) -> np.ndarray:
    """Returns the mean of `s` under the weights of `mixup.mixing_weights` (S8).

    `(alpha + 1) / (k alpha + 1)` for `"dirichlet"` with `alpha` at least 0, `1 / k` for
    `"uniform"`, k at least 1; ValueError for another law.

    Guarantees: between `1 / k` and 1; `alpha=0` gives 1.
    """
    (count,), (alpha,) = at_least_one(num_samples=num_samples), nonnegative(alpha=alpha)
    if law == "uniform":
        return 1 / count
    if law != "dirichlet":
        raise ValueError(f"law={law!r} is unknown; choose 'dirichlet' or 'uniform'")
    return (alpha + 1) / (count * alpha + 1)


def factor_with_replacement(s: ArrayLike, pool: ArrayLike) -> np.ndarray:
    """Returns the mean factor if samples are drawn with replacement from a pool (S14).

    `s + (1 - s) / n` for n members of the class. `mixup` draws without and needs no correction.
    """
    (s,), (pool,) = nonnegative(s=s), at_least_one(pool=pool)
    return s + (1 - s) / pool


def squared_loss_bias(margin: ArrayLike, ratio: ArrayLike, **mixing: ArrayLike) -> np.ndarray:
    """Returns the bias of least squares on labels +1 and -1 (S15 a).

    Training points are shifted by the budget towards the boundary, as against the 0-1 loss.

    Guarantees: 0 for `prior=0.5`, whatever the factors: mixing does nothing.
    """
    margin, ratio, plus, minus, prior = training_setup(margin, ratio, **mixing)
    covariance = 4 * prior * (1 - prior) * margin
    variance = prior * ratio**2 * plus + (1 - prior) * minus + covariance * margin
    return (2 * prior - 1) * (variance / covariance - margin)


def logistic_bias(
    margin: float, ratio: float, *, s: float = 1.0, s_minus: float | None = None,
    prior: float = 0.5, weight_decay: float = 0.0,
) -> tuple[float, float]:  # fmt: skip
    """Returns slope `a` and bias `beta` of logistic regression on the population (S15 b, c).

    Minimises the mean of `log(1 + exp(-y a (z + beta)))` over the attacked projection `z`
    plus `weight_decay a^2 / 2`, by damped Newton steps; means are trapezoid sums on
    [-12, 12] standard deviations with step 0.01.

    Takes numbers; the factors must be positive, the decay at least 0, and the intercept is not
    decayed. ValueError, too, if both classes can be more than 8 standard deviations from the
    boundary, too far for these sums.
    """
    s_minus = s if s_minus is None else s_minus
    positive(s=s, s_minus=s_minus)
    *_, pi = training_setup(margin, ratio, prior=prior)
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
