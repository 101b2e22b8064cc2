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


def load_model(path: Path | str) -> tuple[LogitsFn, dict[str, Any]]:
    """Returns an exported model as a function of images, and its card.

    The function maps images `[B, H, W, C]` in pixel units to logits `[B, K]`; it is pure,
    and normal JAX code can differentiate, jit and vmap it.

    Args:
      path: the folder of a run, or `NAME.safetensors` with its card in `NAME.json` beside it.

    Raises:
      FileNotFoundError: there is no exported model there.
      ValueError: the weights do not fit the card.
    """
    card = read_card(path)
    model = build_model(card)
    shapes = jax.eval_shape(lambda: Weights(*model.init(jax.random.key(0))))
    weights = read_weights(path, shapes)

    def logits_fn(images: jax.Array) -> jax.Array:
        return model.apply(weights.params, weights.batch_stats, images, train=False)[0]

    return logits_fn, card


def read_card(path: Path | str) -> dict[str, Any]:
    """Returns the card of an exported model; `path` is as in `load_model`."""
    return json.loads(_file(path, ".json").read_text())


def read_weights(path: Path | str, template: Weights) -> Weights:
    """Returns the weights of an exported model.

    Args:
      path: as in `load_model`.
      template: arrays or shapes, in the structure of the model's weights.

    Raises:
      FileNotFoundError: there is no exported model there.
      ValueError: its tensors are not those of the template.
    """
    file = _file(path, ".safetensors")
    found, names = load_file(str(file)), _named(template)
    if {n: s.shape for n, s in names.items()} != {n: t.shape for n, t in found.items()}:
        raise ValueError(f"the tensors in {file} do not fit the model")
    leaves = [jax.numpy.asarray(found[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _file(path: Path | str, suffix: str) -> Path:
    path = Path(path)
    return path.with_suffix(suffix) if path.suffix == ".safetensors" else path / f"model{suffix}"


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
