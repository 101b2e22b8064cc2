"""Head normalisation: the norms of the last layer's rows, made equal after training."""

from typing import Any, Literal

import jax.numpy as jnp

from fairmix_jax.methods import calibrations
from fairmix_jax.runtime.registry import checked
from fairmix_jax.types import Calibration, CalibrationData, Share, Source, Weights

SOURCE = Source("OpenReview submission on the implicit bias of class-wise disparity (rejected)")


@checked
def make(num_classes: int, *, to: Literal["one", "mean"] = "one", tau: Share = 1.0) -> Calibration:
    """Returns a calibration that divides each class's row of the last layer by its norm.

    Biases stay. The rows' norms are said to follow the classes' robust accuracy; this takes that
    away for free. With `tau` below 1 it does so in part (tau-normalisation, for long-tailed data).

    Guarantees: with `to="mean"` and rows of equal norm the weights stay, up to rounding; so they
    do with `tau=0` in any case.

    Args:
      to: the common norm, `"one"` or `"mean"`, the rows' mean, which keeps the scale of the
        logits beside the biases.
      tau: in [0, 1]; a norm becomes `norm^(1 - tau)` times `common^tau`.

    Raises:
      ValueError: on use, the parameters hold no such layer, or several.

    References: of the submission abstract and reviews only were read; Kang et al. 2020, arXiv
    1910.09217, for `tau`.
    """

    def calibrate(weights: Weights, data: CalibrationData) -> tuple[Weights, dict[str, Any]]:
        del data
        kernel = calibrations.head(weights, num_classes)["kernel"]
        norms = jnp.linalg.norm(kernel, axis=0, keepdims=True)
        target = jnp.mean(norms) if to == "mean" else jnp.ones(())
        factor = (target / jnp.where(norms > 0, norms, 1.0)) ** tau
        facts = {"row_norms": [float(norm) for norm in norms[0]]}
        return calibrations.with_head(weights, num_classes, kernel=kernel * factor), facts

    return Calibration(calibrate, check=lambda weights: calibrations.head(weights, num_classes))
