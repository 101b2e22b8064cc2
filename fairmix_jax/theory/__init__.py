"""Same-class mixing in the two-Gaussian model: optimal linear classifiers, in closed form.

The classes are N(theta, K^2 sigma^2 I) and N(-theta, sigma^2 I). Averaging k samples of one
class multiplies its covariance by s = sum of squared weights; an L-inf attack on a linear
classifier moves both means towards the boundary; what is left to choose is one number, the
bias. Lengths are in units of sigma, along the direction of the classifier:

  separation  m = sqrt(d) eta / sigma, for theta = eta (1, ..., 1); positive
  budget      e = sqrt(d) epsilon / sigma of the test attack, at least 0
  margin      mu = m - e with the e of training (0 for natural training); positive
  ratio       K, positive; class "+" is the wide, hard one if K > 1
  s           variance factor of mixing, at least 0, of both classes or of "+" if `s_minus` is given
  prior       probability of class "+", between 0 and 1
  beta        b / (sqrt(d) sigma); "+" is predicted where the projection exceeds -beta

Host-side NumPy in float64; array arguments broadcast, and one that is out of its range raises a
ValueError which names it. `**mixing` are `s`, `s_minus` and `prior` of `optimal_bias`. The model
is that of Xu et al. 2021, arXiv 2010.06121, the idea of mixing within a class that of Zhong and
Tandon 2024, arXiv 2411.14424. Statements S1 to S16 are proved in docs/theory/statements.md.
`surrogates` has what they take for granted: other means, laws of the weights and losses.
`calibration` has biases fitted on validation points, S17 to S19.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from fairmix_jax.theory.quantities import nonnegative, not_one, positive, training_setup


def optimal_bias(
    margin: ArrayLike, ratio: ArrayLike, *, s: ArrayLike = 1.0, s_minus: ArrayLike | None = None,
    prior: ArrayLike = 0.5,
) -> np.ndarray:  # fmt: skip
    """Returns the bias that minimises `training_risk` (S2, S11, S12).

    With `u = K^2 s`, `v = s_minus`, `T = u v (ln(u / v) + 2 ln((1 - prior) / prior))`:

      beta = ((u - v) mu^2 - T) / ((u + v) mu + sqrt(4 u v mu^2 + (u - v) T))

    Guarantees: a global minimiser; finite for `prior=0.5`; no cancellation near `u = v`, where beta
    is 0 at equal priors; strictly falling in a common `s` if `ratio > prior / (1 - prior)` and beta
    is finite (S4). For `s_minus=None`, `prior=0.5` and `ratio > 1` it rises with the margin, stays
    below `equal_error_bias`, and is positive exactly if `s < (K^2 - 1) mu^2 / (2 K^2 ln K)`.

    Edge cases: where the constant rule of risk `min(prior, 1 - prior)` is better, or no
    stationary point exists, `inf` ("+" always) or `-inf`; `s=0` gives the limit, for equal
    factors `equal_error_bias`.
    """
    margin, ratio, plus, minus, prior = training_setup(margin, ratio, s, s_minus, prior)
    largest = np.maximum(plus, minus)
    wide = ratio**2 * np.where(largest > 0, plus / np.where(largest > 0, largest, 1.0), 1.0)
    narrow = np.where(largest > 0, minus / np.where(largest > 0, largest, 1.0), 1.0)
    odds = 2 * wide * narrow * special.logit(1 - prior)
    tilt = narrow * special.xlogy(wide, wide) - wide * special.xlogy(narrow, narrow) + odds
    tilt = largest * tilt
    root = 4 * margin**2 * wide * narrow + (wide - narrow) * tilt
    denominator = (wide + narrow) * margin + np.sqrt(np.maximum(root, 0.0))
    beta = ((wide - narrow) * margin**2 - tilt) / denominator
    risk = training_risk(beta, margin, ratio, s=plus, s_minus=minus, prior=prior)
    constant = (prior != 0.5) & ((root < 0) | (risk > np.minimum(prior, 1 - prior)))
    return np.where(constant, np.where(prior > 0.5, np.inf, -np.inf), beta)[()]


def training_risk(
    beta: ArrayLike, margin: ArrayLike, ratio: ArrayLike, **mixing: ArrayLike
) -> np.ndarray:
    """Returns the 0-1 risk on mixed data under the training attack.

    `prior Phi(-(mu + beta) / (K sqrt(s))) + (1 - prior) Phi(-(mu - beta) / sqrt(s_minus))`;
    beta may be infinite. With `s=0` a class is a point, an error if strictly on the wrong side.
    """
    margin, ratio, plus, minus, prior = training_setup(margin, ratio, **mixing)
    beta = np.asarray(beta, np.float64)

    def error(distance: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        spread = deviation > 0
        tail = special.ndtr(-distance / np.where(spread, deviation, 1.0))
        return np.where(spread, tail, distance < 0)

    wide = error(margin + beta, ratio * np.sqrt(plus))
    return (prior * wide + (1 - prior) * error(margin - beta, np.sqrt(minus)))[()]


def class_risks(
    beta: ArrayLike, separation: ArrayLike, ratio: ArrayLike, *, budget: ArrayLike = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the risks of "+" and "-" on original data under attack (S1).

    `Phi(-(m - e + beta) / K)` and `Phi(-(m - e - beta))`; beta may be infinite, and the budget
    more than the separation.
    """
    separation, ratio = positive(separation=separation, ratio=ratio)
    margin = separation - nonnegative(budget=budget)[0]
    beta = np.asarray(beta, np.float64)
    return special.ndtr(-(margin + beta) / ratio), special.ndtr(-(margin - beta))


def disparity(
    beta: ArrayLike, separation: ArrayLike, ratio: ArrayLike, *, budget: ArrayLike = 0.0
) -> np.ndarray:
    """Returns the signed disparity, risk of "+" minus risk of "-", of `class_risks` (S1, S4).

    Guarantees: strictly falling in beta for every budget, zero exactly at
    `(K - 1) / (K + 1) (m - e)`.
    """
    plus, minus = class_risks(beta, separation, ratio, budget=budget)
    return plus - minus


def trained_risks(
    separation: ArrayLike, ratio: ArrayLike, *, training_budget: ArrayLike = 0.0,
    budget: ArrayLike = 0.0, **mixing: ArrayLike,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the risks of "+" and "-" of the classifier optimal for its training data.

    Training is natural at `training_budget=0`, adversarial at more (below the separation), and so
    are the risks by `budget`; unmixed data have `s=1`, mixed data less.

    Guarantees, for equal priors and factors: `s=1` gives the formulas of Xu et al. (S3).
    With `ratio > 1` the signed disparity rises with `s`, so more mixing lowers it (S4);
    if `budget <= training_budget` it is positive for every `s > 0` (S5), the average
    adversarial risk at the training budget falls with `s` and the worst rises (S7). For a
    larger test budget see `flip_factor`.
    """
    (separation,) = positive(separation=separation)
    margin = separation - nonnegative(training_budget=training_budget)[0]
    beta = optimal_bias(margin, ratio, **mixing)
    return class_risks(beta, separation, ratio, budget=budget)


def equal_error_bias(margin: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Returns `beta0 = (K - 1) / (K + 1) mu`, where both classes have the same risk (S5, S6).

    Guarantees: the minimax classifier at the budget of the margin; the limit of
    `optimal_bias` for `s -> 0`, whatever the prior.
    """
    margin, ratio = positive(margin=margin, ratio=ratio)
    return (ratio - 1) / (ratio + 1) * margin


def minimax_risk(margin: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Returns `Phi(-2 mu / (K + 1))`, the least risk of the worse class (S6).

    Guarantees: the risk of both classes at `equal_error_bias`.
    """
    margin, ratio = positive(margin=margin, ratio=ratio)
    return special.ndtr(-2 * margin / (ratio + 1))


def disparity_rate(margin: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Returns the limit of disparity over `s` for `s -> 0` at the training budget (S6).

    At a smaller test budget the disparity tends to `disparity(equal_error_bias(margin, ratio),
    ...) > 0` instead, if `ratio > 1`.
    """
    margin, ratio = positive(margin=margin, ratio=ratio)
    half = 2 * margin / (ratio + 1)
    return np.exp(-(half**2) / 2) / np.sqrt(2 * np.pi) * np.log(ratio) / half


def factor_of_bias(beta: ArrayLike, margin: ArrayLike, ratio: ArrayLike) -> np.ndarray:
    """Returns the `s` for which `beta` is optimal at equal priors, the inverse of S2.

    For `K != 1`; NaN where no `s > 0` makes `beta` optimal. With the `beta` of natural training
    without mixing it gives the `s` at which the average natural risk of adversarial training is
    least; above 1 that is passed already (S7).
    """
    (margin,), (ratio,) = positive(margin=margin), not_one(ratio=ratio)
    beta = np.asarray(beta, np.float64)
    s = ((margin - beta) ** 2 - ((margin + beta) / ratio) ** 2) / (2 * np.log(ratio))
    least = (ratio**2 - 1) * beta < (ratio**2 + 1) * margin
    return np.where(least & (s > 0), s, np.nan)[()]


def flip_factor(margin: ArrayLike, ratio: ArrayLike, excess: ArrayLike) -> np.ndarray:
    """Returns the `s` at which the disparity at a larger test budget is zero (S5).

    For `K != 1`; `excess`, at least 0, is the budget of the test minus that of training.

    Guarantees: for `ratio > 1` the disparity is positive for larger `s` and negative for
    smaller, so below this point more mixing increases its absolute value. At least 1: the
    narrow class is the worse one already without mixing.
    """
    (margin,), (ratio,) = positive(margin=margin), not_one(ratio=ratio)
    (excess,) = nonnegative(excess=excess)
    scale = (ratio - 1) * excess / (2 * ratio * (ratio + 1) * np.log(ratio))
    return scale * (4 * margin + (ratio - 1) ** 2 * excess / ratio)


def bias_sensitivity(
    margin: ArrayLike, ratio: ArrayLike, **mixing: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the derivatives of `optimal_bias` by the factors of "+" and of "-" (S4, S13).

    The factors must be positive. Mixing a class a little more moves the boundary in its own favour
    if its risk on the mixed training data lies between Phi(-1) = 0.1587 and Phi(1), and in favour
    of the other class if it lies outside. At equal factors and priors the sum is
    `-K ln K / sqrt(4 mu^2 + 2 s (K^2 - 1) ln K)`. NaN where the optimum is a constant rule.
    """
    margin, ratio, s, s_minus, _ = training_setup(margin, ratio, **mixing)
    positive(s=s, s_minus=s_minus)
    beta = optimal_bias(margin, ratio, **mixing)
    beta = np.where(np.isfinite(beta), beta, np.nan)
    wide, narrow = ratio * np.sqrt(s), np.sqrt(s_minus)
    plus, minus = (margin + beta) / wide, (margin - beta) / narrow
    curvature = 2 * (plus / wide + minus / narrow)
    return (plus**2 - 1) / (curvature * s), (1 - minus**2) / (curvature * s_minus)


def equalising_strength(margin: float, ratio: float, *, s: float = 1.0) -> float:
    """Returns the `s_minus` at which both classes have the same adversarial risk (S13).

    Solves `t^2 (1 / s_minus - 1 / s) = 2 ln K + ln(s / s_minus)`, `t = 2 mu / (K + 1)`, for
    positive `s` and `K >= 1` (exchange the classes otherwise); `K = 1` gives `s`.

    Guarantees: the only solution in `(0, s)`, there is one for every model; with it
    `optimal_bias` is `equal_error_bias`.
    """
    positive(margin=margin, s=s, ratio=ratio)
    if ratio < 1:
        raise ValueError(f"ratio={ratio} is below 1; exchange the classes")
    if ratio == 1:
        return s
    start = (2 * margin / (ratio + 1)) ** 2 / s
    level = start - np.log(start) + 2 * np.log(ratio)
    bracket = max(start, 1.0), 2 * level
    return s * start / optimize.brentq(lambda y: y - np.log(y) - level, *bracket, xtol=1e-15)
