"""From a model and validation images to biases, and to the model with them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fairmix_jax.methods.class_bias.accuracies import Goal
from fairmix_jax.methods.class_bias.half_splits import Fit, check_splits, fit
from fairmix_jax.methods.class_bias.margin_tables import margin_table
from fairmix_jax.runtime import inputs
from fairmix_jax.types import Array, LogitsFn, ThreatModel


def calibrate(
    logits_fn: LogitsFn, images: Any, labels: Any, *, threat: ThreatModel,
    objective: Literal["worst_class", "gap"] = "worst_class", t: float = 0.2,
    max_drop: float = 0.02, clean_share: float = 0.0, num_steps: int = 20, num_restarts: int = 1,
    num_splits: int = 5, seed: int = 0, index: Any = None, batch_size: int = 256,
    workdir: Path | str | None = None,
) -> Fit:  # fmt: skip
    """Returns one bias a class, chosen on validation images under attack, and what they reach.

    Use images that were used neither for training nor for testing. Nothing is trained. The biases
    suit the threat and the objective they were chosen for; the attack knows them, since a margin
    table holds at any biases.

    Edge cases: `t=0` gives zeros. A class without images gets 0.

    Args:
      objective, t, max_drop, clean_share: as in `class_bias`.
      logits_fn, images, labels, threat, num_steps, num_restarts, seed, index, batch_size, workdir:
        as in `margin_table`.
      num_splits: as in `fit`, which shrinks the biases.

    Raises:
      ValueError: as `margin_table`, `class_bias` and `fit` do; what follows from the arguments
        before anything is attacked.
    """
    chosen: Any = dict(objective=objective, t=t, max_drop=max_drop)
    Goal(**chosen).check()
    inputs.check_finite(0, 1, clean_share=clean_share)
    inputs.check_labels(labels, len(images))
    check_splits(num_splits, labels)

    def table_at(threat: ThreatModel) -> np.ndarray:
        return margin_table(
            logits_fn, images, labels, threat=threat, num_steps=num_steps,
            num_restarts=num_restarts, seed=seed, index=index, batch_size=batch_size,
            workdir=workdir,
        )  # fmt: skip

    clean = table_at(dataclasses.replace(threat, epsilon=0.0)) if clean_share else None
    table = clean if clean is not None and clean_share == 1 else table_at(threat)
    return fit(
        table, labels, **chosen, clean=clean, clean_share=clean_share, num_splits=num_splits,
        seed=seed, index=index,
    )  # fmt: skip


def with_bias(logits_fn: LogitsFn, offsets: Any) -> Partial:
    """Returns a function with the biases `[K]`, or those of a `Fit`, added to its logits.

    It may be differentiated. Logits of half precision become float32, to which biases were fitted.
    Other numbers of biases than of classes are a `ValueError` when it is called.
    """
    if isinstance(offsets, Fit):
        offsets = offsets.offsets
    return Partial(_added, jnp.asarray(offsets, jnp.float32), Partial(logits_fn))


def _added(offsets: Array, logits_fn: Partial, images: Array) -> Array:
    logits = inputs.as_single(logits_fn(images))
    if offsets.shape != logits.shape[1:]:
        raise ValueError(f"offsets of shape {offsets.shape} do not fit logits {logits.shape}")
    return logits + offsets.astype(logits.dtype)[None]
