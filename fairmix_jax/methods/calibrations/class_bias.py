"""Class bias: one offset a class on the logits, fitted under attack after training."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fairmix_jax.methods import calibrations
from fairmix_jax.methods.class_bias import calibrate as fit_biases
from fairmix_jax.models.described import logits_partial
from fairmix_jax.runtime import processes
from fairmix_jax.runtime.registry import checked
from fairmix_jax.types import Calibration, CalibrationData, Count, Share, Source, Weights

SOURCE = Source("ours; for clean accuracy Menon et al. 2021, arXiv 2007.07314")

REACHED = ("as_trained", "fitted", "expected")
"""The facts that are accuracies, each as average, worst class and gap."""


@checked
def make(
    num_classes: int, *, objective: Literal["worst_class", "gap"] = "worst_class",
    t: Share = 0.2, max_drop: Share = 0.02, clean_share: Share = 0.0, num_steps: Count = 20,
    num_restarts: Count = 1,
) -> Calibration:  # fmt: skip
    """Returns a calibration that adds a bias to each class's logit, chosen on validation images.

    The biases are those of `fairmix_jax.calibration.calibrate`. They go into the last layer's own
    bias, so the result is an ordinary network.

    Guarantees: with `t=0` the weights stay bit for bit. Nothing but validation images is looked at.

    Args:
      objective: make `(1 - t) average + t worst class` large, or the `"gap"` small.
      t: weight of the worst class.
      max_drop: how much of the average may be given up where the gap is made small.
      clean_share: how much clean accuracies count beside those under attack.
      num_steps: of the attack towards each wrong class.
      num_restarts: of that attack.

    Raises:
      ValueError: on use: the last layer cannot be told, or has no bias.
    """

    def bias_of(weights: Weights) -> Any:
        layer = calibrations.head(weights, num_classes)
        if "bias" not in layer:
            raise ValueError("calibration.name='class_bias' needs a last layer with a bias")
        return layer["bias"]

    def calibrate(weights: Weights, data: CalibrationData) -> tuple[Weights, dict[str, Any]]:
        bias = bias_of(weights)

        def moved_by(offsets: np.ndarray) -> Weights:
            added = jnp.asarray(offsets, bias.dtype)
            return calibrations.with_head(weights, num_classes, bias=bias + added)

        probe = np.arange(num_classes)
        _require_added(data, weights, moved_by(probe), probe)
        found = fit_biases(
            logits_partial(data.apply, weights), data.images, data.labels, threat=data.threat,
            objective=objective, t=t, max_drop=max_drop, clean_share=clean_share,
            num_steps=num_steps, num_restarts=num_restarts, seed=data.seed, index=data.index,
            workdir=data.workdir,
        )  # fmt: skip
        facts = {"offsets": found.offsets.tolist(), "factor": found.factor}
        facts |= {name: getattr(found, name)._asdict() for name in REACHED}
        # Computed by each process for itself, where there are several.
        offsets = np.asarray(processes.from_main(lambda: facts["offsets"]))
        return moved_by(offsets) if offsets.any() else weights, facts

    return Calibration(calibrate, check=bias_of, reads_validation=True)


def _require_added(
    data: CalibrationData, weights: Weights, moved: Weights, offsets: np.ndarray
) -> None:
    """The layer that was found is the last one: its bias moves the logits by as much."""
    look = jax.jit(lambda logits_fn, images: logits_fn(images))
    images = jnp.asarray(data.images[:8])
    before, after = (look(logits_partial(data.apply, each), images) for each in (weights, moved))
    if not jnp.isfinite(before).all():
        raise ValueError("calibration.name='class_bias' needs finite logits; train the model anew")
    room = 1e-3 * (1 + float(jnp.abs(before).max()))
    if not np.allclose(after - before, offsets, rtol=0, atol=room):
        raise ValueError(
            "calibration.name='class_bias' needs a model whose logits are its last layer's outputs"
        )
