"""What an attack may do to an image."""

import dataclasses
from collections.abc import Iterable
from numbers import Real
from typing import Any, Literal

import jax
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """The perturbations an attack may use; ValueError for values that are not as required.

    A pytree whose only leaf is `epsilon`: under `jax.jit` one program attacks at any radius, and
    `jax.vmap` attacks at many. A traced radius cannot be checked, so it is not. `autoattack` and
    `classwise.evaluate` run on the host and take a number.

    Attributes:
      norm: `"linf"` or `"l2"`, of the difference to the clean image.
      epsilon: radius in pixel units, at least 0; `8 / 255` on CIFAR-10 by convention. Under
        `"linf"` at most the range of the bounds. An array `[E]` of radii is to be mapped over.
      bounds: `(low, high)`, the valid pixel range; infinite for unbounded data.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float | jax.Array = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose 'linf' or 'l2'")
        radii = [] if isinstance(self.epsilon, Tracer) else np.ravel(self.epsilon).tolist()
        if not all(isinstance(e, Real) and 0 <= e < float("inf") for e in radii):
            raise ValueError(
                f"epsilon={self.epsilon} is not a radius; give a number >= 0 in pixel units"
            )
        bounds = tuple(self.bounds) if isinstance(self.bounds, Iterable) else ()
        object.__setattr__(self, "bounds", bounds)
        is_pair = len(bounds) == 2 and all(isinstance(bound, Real) for bound in bounds)
        if not is_pair or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds={self.bounds} is empty; give (low, high) with low < high")
        widest = (1 + 1e-6) * (bounds[1] - bounds[0])  # and its rounding
        if self.norm == "linf" and any(e > widest for e in radii):
            raise ValueError(
                f"epsilon={self.epsilon} is above the range of bounds={bounds}; give it in pixel "
                "units, e.g. 8 / 255"
            )


def _threat_of(static: tuple[Any, ...], leaves: tuple[Any, ...]) -> ThreatModel:
    """A threat around whatever stands for the radius: JAX puts more than numbers there."""
    threat = object.__new__(ThreatModel)
    for name, value in zip(("norm", "bounds", "epsilon"), (*static, *leaves), strict=True):
        object.__setattr__(threat, name, value)
    return threat


jax.tree_util.register_pytree_node(
    ThreatModel, lambda threat: ((threat.epsilon,), (threat.norm, threat.bounds)), _threat_of
)
