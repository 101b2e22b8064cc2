"""The card of a PyTorch model of other people: shown by its file, told, known of a zoo, assumed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.export import _zoo
from fairmix_jax.export._torch_file import Tensor
from fairmix_jax.export._torch_names import Family, described, listed
from fairmix_jax.runtime import json_files, registry
from fairmix_jax.runtime.errors import UsageError

_NORMS = {"batch": "epsilon 1e-5 of batch norm", "group": "groups of 8 channels with epsilon 1e-6"}


class Told(NamedTuple):
    """What a user knows of a model and its file may not show.

    Attributes:
      model: the model's name and arguments, as far as they are not to be inferred.
      zoo: `DATASET/THREAT/NAME` in RobustBench's model zoo.
      classes: `cifar10`, `cifar100`, or names in the order of labels with commas between them.
      mean, std: what the network subtracts and divides by, one number a channel.
      image_shape: `(H, W, C)`.
      key: which dictionary in the file to take.
      licence: of the weights.
    """

    model: Mapping[str, Any] = {}
    zoo: str = ""
    classes: str = ""
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    image_shape: Sequence[int] = ()
    key: str = ""
    licence: str = ""


NOTHING = Told()


def card_of(
    tensors: dict[str, Tensor], family: Family, told: Told, entry: _zoo.Entry | None
) -> dict[str, Any]:
    """Returns the card of a model, of what its tensors show, what is told, and what is usual.

    Takes the mean and the standard deviation out of the tensors, if they are there.
    """
    if "linear.bias" not in tensors:
        raise UsageError(f"it has no last layer with a bias that is known; see {listed(tensors)}")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    model = described(shapes)
    if model.get("norm") == "group" and "norm" not in told.model:
        raise UsageError(
            "its norms have no running statistics; give --model.norm=group if they have groups of "
            "8 channels and epsilon 1e-6, as in our own exports (PyTorch's usual one is 1e-5)"
        )
    (number,) = shapes["linear.bias"]
    channels = shapes.get("conv1.weight", (0, (told.image_shape or (1,))[-1]))[1]
    usual = {(len(names), 3): dataset for dataset, names in _zoo.CLASSES.items()}
    chosen = told.classes or (entry.dataset if entry else usual.get((number, channels), ""))
    classes = _zoo.CLASSES.get(chosen) or [name for name in chosen.split(",") if name]
    if not len(classes) == len({*classes}) == number:
        raise UsageError(
            f"--classes={chosen!r} are not the {number} classes of its last layer; give their "
            "names in the order of labels, with commas between them"
        )
    mean, std = entry.normalisation if entry else ((0.0,) * channels, (1.0,) * channels)
    if family.options:
        mean, std = _zoo.DEEPMIND.get(dataset_of(classes), (mean, std))
    if has_constants := {"mu", "sigma"} <= tensors.keys():
        mean, std = (tensors.pop(n).array().astype(float).ravel().tolist() for n in ("mu", "sigma"))
    model |= dict(family.options) | dict(told.model)
    card: dict[str, Any] = {
        "model": {"name": model["name"]} | registry.arguments("models", model),
        "image_shape": list(told.image_shape or (32, 32, channels)),
        "mean": list(told.mean or mean), "std": list(told.std or std), "classes": classes,
    }  # fmt: skip
    if not entry:
        told = told._replace(mean=card["mean"], std=card["std"]) if has_constants else told
        fixed = [] if family.sign else _fixed(card["model"])
        card["source"] = {"assumed": _assumed(card["model"], told) + fixed}
    return card


def require_constants(card: Mapping[str, Any]) -> None:
    """Raises a `UsageError` unless mean and std are numbers that every channel can be scaled by."""
    for name in ("mean", "std"):
        with np.errstate(over="ignore"):
            numbers = np.array(card[name], np.float32)
        are_sound = np.isfinite(numbers).all() and (name == "mean" or (numbers > 0).all())
        if not are_sound or numbers.shape != (card["image_shape"][-1],):
            kind = "number" if name == "mean" else "positive number"
            raise UsageError(
                f"--{name}={card[name]} does not fit images of shape {card['image_shape']}; give "
                f"a {kind} for each channel, with commas between them"
            )


def _fixed(model: Mapping[str, Any]) -> list[str]:
    """What our model of a stranger's names cannot be told, and theirs may have otherwise."""
    if "norm" not in model:
        return []
    norms = [said for kind, said in _NORMS.items() if model["norm"].startswith(kind)]
    return [*["ReLU"] * ("activation" not in model), "strides in place of pooling", *norms]


def _assumed(model: Mapping[str, Any], told: Told) -> list[str]:
    """What neither the file shows nor anybody has told."""
    options = [
        name for name in ("activation", "shortcut") if name in model.keys() - told.model.keys()
    ]
    shown = ["shortcut"] if model.get("shortcut") == "raw3x3" else []
    constants = [name for name in ("mean", "std", "classes") if not getattr(told, name)]
    return [name for name in (*options, *constants) if name not in shown]


def own_card(file: Path, told: Told, sha256: str) -> dict[str, Any]:
    """Returns the card that our export wrote beside a file; empty if something else is told."""
    path = file.with_name("model.json")
    is_ours = path.is_file() and b'"torch_sha256"' in path.read_bytes()
    if not is_ours or told._replace(licence="", key="") != NOTHING:
        return {}
    card = json_files.load(path)
    return card if card.pop("torch_sha256") == sha256 else {}


def dataset_of(classes: Sequence[str]) -> str:
    """Returns the name of the data set with these classes, `"unknown"` for others."""
    return next((name for name, own in _zoo.CLASSES.items() if own == classes), "unknown")


def shown(model: Mapping[str, Any]) -> str:
    """Returns a model and its arguments on one line."""
    return " ".join([model["name"], *(f"{k}={v}" for k, v in model.items() if k != "name")])
