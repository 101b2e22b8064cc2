"""Models that leave the house: weights and cards as safetensors and JSON, PyTorch, RobustBench."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from fairmix_jax.models.described import build_model, weights_template
from fairmix_jax.models.exported import read_card, read_tensors, read_weights
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import write_bytes, write_json
from fairmix_jax.runtime.sealed import digest, named
from fairmix_jax.types import LogitsFn, Weights


def save_model(
    workdir: Path, weights: Weights, card: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> None:
    """Writes `model.safetensors` (the weights, see `tensors`) and `model.json` (what they are).

    That is the card, from the evaluation the data set, the threat and which weights these are, and
    the digest of the weights.
    """
    write_bytes(workdir / "model.safetensors", save(tensors(weights)))
    facts = {name: evaluation[name] for name in ("dataset", "threat", "weights")}
    write_json(workdir / "model.json", dict(card) | facts | {"sha256": digest(weights)})


def name_of(path: str) -> str:
    """Returns what a model in `NAME.safetensors`, or in `NAME/model.safetensors`, is called."""
    file = Path(path)
    return file.resolve().parent.name if file.stem == "model" else file.stem


def tensors(weights: Weights) -> dict[str, np.ndarray]:
    """Returns the arrays of the weights by their paths, e.g. `params/Conv_0/kernel`."""
    return {name: np.asarray(leaf, order="C") for name, leaf in named(weights).items()}


def load_model(path: Path | str) -> tuple[LogitsFn, dict[str, Any]]:
    """Returns an exported model as a function of images, and its card.

    The function maps images `[B, H, W, C]` in pixel units to logits `[B, K]`; it is pure,
    and normal JAX code can differentiate, jit and vmap it. `path` is the folder of a run, or
    `NAME.safetensors` with its card in `NAME.json` beside it.

    Raises:
      FileNotFoundError: there is no exported model there.
      ValueError: the weights are damaged (which a card of version 0.1, without a digest, does not
        tell), or do not fit the card.
      UsageError: the card is damaged.
    """
    card = read_card(path)
    model = build_model(card)
    weights = read_weights(path, weights_template(model))

    def logits_fn(images: jax.Array) -> jax.Array:
        return model.apply(weights.params, weights.batch_stats, images, train=False)[0]

    return logits_fn, card


def is_whole(workdir: Path) -> bool:
    """Whether nothing that belongs to an exported model is damaged or missing."""
    try:
        read_tensors(workdir)
    except (OSError, ValueError, UsageError):
        return False
    return (workdir / "model_card.md").exists()
