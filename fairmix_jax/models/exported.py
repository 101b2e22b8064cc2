"""Exported models: weights in `NAME.safetensors`, and a card in `NAME.json` that says of what."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load

from fairmix_jax.runtime import json_files
from fairmix_jax.runtime.errors import refused
from fairmix_jax.runtime.sealed import digest, named
from fairmix_jax.types import Weights


def read_card(path: Path | str) -> dict[str, Any]:
    """Returns the card of an exported model; `path` and errors are as in `export.load_model`."""
    return json_files.load(_file(path, ".json"), "model.json")


def read_tensors(path: Path | str) -> dict[str, np.ndarray]:
    """Returns the arrays of an exported model by their names; the rest is as in `read_card`."""
    file, card = _file(path, ".safetensors"), read_card(path)
    content, remedy = file.read_bytes(), "run what wrote it again, or take another copy of both"
    with refused(f"{str(file)!r} is damaged", remedy):  # whatever a damaged head makes of the rest
        found = load(content)
        trees: dict[str, Any] = unflatten_dict(found, sep="/")
        weights = Weights(*(trees.get(name, {}) for name in Weights._fields))
        if card.get("sha256", own := digest(weights)) != own:
            raise ValueError("its weights do not match the sha256 in its card")
    return found


def read_weights(path: Path | str, template: Weights) -> Weights:
    """Returns the weights of an exported model; the rest is as in `read_card`.

    The template has arrays or shapes, in the structure of the model's weights.
    """
    found, names = read_tensors(path), named(template)
    if {n: s.shape for n, s in names.items()} != {n: t.shape for n, t in found.items()}:
        raise ValueError(f"the tensors in {_file(path, '.safetensors')} do not fit the model")
    leaves = [jax.numpy.asarray(found[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _file(path: Path | str, suffix: str) -> Path:
    path = Path(path)
    is_file = path.suffix == ".safetensors" and not path.is_dir()
    return path.with_suffix(suffix) if is_file else path / f"model{suffix}"
