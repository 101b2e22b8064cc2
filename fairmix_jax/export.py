"""Trained weights as files that need no checkpoint library: safetensors and JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from fairmix_jax.experiment import build_model
from fairmix_jax.types import LogitsFn, Weights


def save_model(
    workdir: Path, weights: Weights, card: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> None:
    """Writes `model.safetensors` (the weights) and `model.json` (what they are).

    Args:
      workdir: where to.
      weights: tensor names are their paths, e.g. `params/Conv_0/kernel`.
      card: as in `Experiment.model_card`, and any further facts.
      evaluation: data set, threat and which weights these are, copied into `model.json`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    save_file(tensors(weights), str(workdir / "model.safetensors"))
    facts = {name: evaluation[name] for name in ("dataset", "threat", "weights")}
    write_json(workdir / "model.json", dict(card) | facts)


def tensors(weights: Weights) -> dict[str, np.ndarray]:
    """Returns the arrays of the weights by their paths, e.g. `params/Conv_0/kernel`."""
    return {name: np.asarray(leaf, order="C") for name, leaf in _named(weights).items()}


def load_model(workdir: Path | str) -> tuple[LogitsFn, dict[str, Any]]:
    """Returns the model in `workdir` as a function of images, and its card.

    The function maps images `[B, H, W, C]` in pixel units to logits `[B, K]`; it is pure,
    and normal JAX code can differentiate, jit and vmap it.

    Raises:
      FileNotFoundError: there is no exported model in `workdir`.
      ValueError: the weights do not fit the card.
    """
    workdir = Path(workdir)
    card = json.loads((workdir / "model.json").read_text())
    found = load_file(str(workdir / "model.safetensors"))
    model = build_model(card)
    shapes = jax.eval_shape(lambda: Weights(*model.init(jax.random.key(0))))
    names = _named(shapes)
    if {n: s.shape for n, s in names.items()} != {n: t.shape for n, t in found.items()}:
        raise ValueError(f"the tensors in {workdir / 'model.safetensors'} do not fit model.json")
    leaves = [jax.numpy.asarray(found[name]) for name in names]
    weights = jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    def logits_fn(images: jax.Array) -> jax.Array:
        return model.apply(weights.params, weights.batch_stats, images, train=False)[0]

    return logits_fn, card


def write_json(path: Path, content: Any) -> None:
    """Writes JSON in one piece: the file is either the old one or the new one, whole."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
