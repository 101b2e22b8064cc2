"""A bias fitted on validation points under attack, in the two-Gaussian model (S17 to S19).

Quantities as in `fairmix_jax.theory`; `num_images` are the validation points of each class. A
fitted bias makes the larger of the two *empirical* risks under the attack of its budget as small as
it can be: `t=1`, without shrinking. docs/theory/calibration.md has the proofs.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from fairmix_jax.theory import minimax_risk
from fairmix_jax.theory.quantities import (
    at_least_one,
    in_closed_unit_interval,
    in_unit_interval,
    nonnegative,
    positive,
)


def calibrated_risks(
    separation: ArrayLike, ratio: ArrayLike, *, calibration_budget: ArrayLike,
    budget: ArrayLike,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the risks of "+" and "-" at one budget with the bias of another, exactly (S17, S18).

    `Phi(-(z + x / K))` and `Phi(-(z + x))` with `z = 2 (m - e_cal) / (K + 1)` and
    `x = e_cal - e`: the risks of the limit of much data.

    Guarantees: both are `minimax_risk` at the budget that was calibrated at. For `ratio > 1` the
    wide class has the larger risk at every smaller budget, the narrow one at every larger budget.
    Mixing in training changes nothing of it (S19).
    """
    separation, ratio = positive(separation=separation, ratio=ratio)
    fitted, tested = nonnegative(calibration_budget=calibration_budget, budget=budget)
    (margin,) = positive(margin=separation - fitted)
    z, x = 2 * margin / (ratio + 1), fitted - tested
    return special.ndtr(-(z + x / ratio)), special.ndtr(-(z + x))


def calibrated_bias(margin: ArrayLike, ratio: ArrayLike, *, t: ArrayLike) -> np.ndarray:
    """Returns the bias that maximises `(1 - t) average + t worst class` under attack (S17).

    For `ratio >= 1`, with `L = max(0, ln(K (1 - t) / (1 + t)))`:

      beta = ((K^2 - 1) mu^2 - 2 K^2 L) / ((K^2 + 1) mu + K sqrt(4 mu^2 + 2 (K^2 - 1) L))

    Guarantees: it is `equal_error_bias`, so both classes have the same risk, exactly if
    `t >= (K - 1) / (K + 1)`; at `t = 0` it is `optimal_bias`.
    """
    (margin,), (ratio,) = positive(margin=margin), at_least_one(ratio=ratio)
    (weight,) = in_closed_unit_interval(t=t)
    level = np.maximum(0.0, np.log(ratio) - 2 * np.arctanh(np.minimum(weight, 1 - 1e-16)))
    square = ratio**2
    root = np.sqrt(4 * margin**2 + 2 * (square - 1) * level)
    above = (square - 1) * margin**2 - 2 * square * level
    return (above / ((square + 1) * margin + ratio * root))[()]


def bias_deviation(margin: ArrayLike, ratio: ArrayLike, num_images: ArrayLike) -> np.ndarray:
    """Returns the standard deviation of a fitted bias around the minimax bias (S17).

    `sqrt(2 r (1 - r) / n) / (phi(z) (1 + 1 / K))` with `r = minimax_risk` and
    `z = 2 mu / (K + 1)`; for large n.
    """
    margin, ratio = positive(margin=margin, ratio=ratio)
    risk, z = minimax_risk(margin, ratio), 2 * margin / (ratio + 1)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    (number,) = at_least_one(num_images=num_images)
    return np.sqrt(2 * risk * (1 - risk) / number) / (density * (1 + 1 / ratio))


def expected_excess(risk: ArrayLike, num_images: ArrayLike) -> np.ndarray:
    """Returns by how much the worse class's risk exceeds the minimax risk, on average (S17).

    `sqrt(r (1 - r) / (pi n))`, for large n; neither K nor the margin enters but through `r`.
    """
    (risk,), (number,) = in_unit_interval(risk=risk), at_least_one(num_images=num_images)
    return np.sqrt(risk * (1 - risk) / (np.pi * number))


def excess_bound(num_images: ArrayLike, *, confidence: ArrayLike = 0.95) -> np.ndarray:
    """Returns what that excess stays below with a probability of at least `confidence` (S17).

    `sqrt(2 ln(4 / (1 - confidence)) / n)`, for every n. It holds for any two classes and any
    scores of which a bias moves the threshold, Gaussian or not.
    """
    (number,) = at_least_one(num_images=num_images)
    (confidence,) = in_unit_interval(confidence=confidence)
    return np.sqrt(2 * np.log(4 / (1 - confidence)) / number)
