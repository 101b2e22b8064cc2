"""From a model and validation images to biases, and to the model with them."""

from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fairmix_jax.methods.class_bias import accuracies
from fairmix_jax.methods.class_bias.cross_fitting import Fit, fit
from fairmix_jax.methods.class_bias.margin_tables import margin_table
from fairmix_jax.methods.class_bias.search import objective_of
from fairmix_jax.types import Array, LogitsFn, ThreatModel


def calibrate(
    logits_fn: LogitsFn, images: Any, labels: Any, *, threat: ThreatModel,
    objective: Literal["worst_class", "gap"] = "worst_class", t: float = 0.2, floor: float = 0.0,
    clean_share: float = 0.0, num_steps: int = 20, num_restarts: int = 1, num_folds: int = 5,
    seed: int = 0, index: Any = None, batch_size: int = 256, workdir: Path | str | None = None,
) -> Fit:  # fmt: skip
    """Returns one bias a class, chosen on validation images under attack, and what they reach.

    The images have to be others than those trained on and those tested on. Nothing is trained. The
    biases suit the threat and the objective they were chosen for; the attack knows them, since a
    margin table holds at any biases.

    Edge cases: `t=0` gives zeros. A class without images gets 0.

    Args:
      objective, t, floor, clean_share: as in `class_bias`.
      logits_fn, images, labels, threat, num_steps, num_restarts, seed, index, batch_size, workdir:
        as in `margin_table`.
      num_folds: as in `fit`, which shrinks the biases.

    Raises:
      ValueError: as `margin_table` and `class_bias` do.
    """
    wanted = objective_of(objective, t=t, floor=floor)
    given: Any = dict(seed=seed, index=index, batch_size=batch_size)
    table = margin_table(
        logits_fn, images, labels, threat=threat, num_steps=num_steps, num_restarts=num_restarts,
        workdir=workdir, **given,
    )  # fmt: skip
    clean = None
    if clean_share:
        at_rest = ThreatModel(threat.norm, 0.0, threat.bounds)
        clean = margin_table(logits_fn, images, labels, threat=at_rest, num_steps=1, **given)
    margins = accuracies.margins(table, labels, clean=clean, clean_share=clean_share)
    number = np.arange(len(table)) if index is None else np.asarray(index)
    number = np.resize(number, len(margins.labels))  # of attacked rows, then of clean ones
    return fit(margins, wanted, num_folds=num_folds, seed=seed, index=number)


def with_bias(logits_fn: LogitsFn, offsets: Any) -> Partial:
    """Returns a function with the biases `[K]` added to its logits; it may be differentiated."""
    return Partial(_added, jnp.asarray(offsets, jnp.float32), Partial(logits_fn))


def _added(offsets: Array, logits_fn: Partial, images: Array) -> Array:
    logits = logits_fn(images)
    return logits + offsets.astype(logits.dtype)[None]
