"""The quantities of the model as float64 arrays, and the ranges they must lie in."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike


def _require(
    condition: Callable[[np.ndarray], np.ndarray], words: str, **arguments: ArrayLike
) -> list[np.ndarray]:
    """Returns the arguments as float64; ValueError if one of them is not as required."""
    arrays = []
    for name, value in arguments.items():
        try:
            arrays.append(np.asarray(value, np.float64))
        except (TypeError, ValueError):
            arrays.append(np.asarray(np.nan))
        if not (condition(arrays[-1]) & np.isfinite(arrays[-1])).all():
            shown = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            raise ValueError(f"{name}={shown!r} is not {words}")
    return arrays


positive = partial(_require, lambda array: array > 0, "positive and finite")
at_least_one = partial(_require, lambda array: array >= 1, "at least 1 and finite")
finite = partial(_require, np.isfinite, "finite")
nonnegative = partial(_require, lambda array: array >= 0, "at least 0 and finite")
in_unit_interval = partial(_require, lambda a: (a > 0) & (a < 1), "strictly between 0 and 1")
in_closed_unit_interval = partial(_require, lambda a: (a >= 0) & (a <= 1), "between 0 and 1")
not_one = partial(_require, lambda a: (a > 0) & (a != 1), "positive, finite and other than 1")


def training_setup(
    margin: ArrayLike, ratio: ArrayLike, s: ArrayLike = 1.0, s_minus: ArrayLike | None = None,
    prior: ArrayLike = 0.5,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Returns margin, ratio, both factors and the prior as arrays, checked."""
    factors = nonnegative(s=s, s_minus=s if s_minus is None else s_minus)
    return *positive(margin=margin, ratio=ratio), *factors, *in_unit_interval(prior=prior)
