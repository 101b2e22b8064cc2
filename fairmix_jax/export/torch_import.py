"""A PyTorch model of other people as ours: `python -m fairmix_jax.export.torch_import FILE OUT`.

FILE is a state dict, or holds one, in a `.pt` or `.pth` of `torch.save` or a `.safetensors`. It is
read without PyTorch, and nothing in it is run. OUT then holds `model.safetensors` and `model.json`:
`export.load_model` reads them, `evaluate.weights` evaluates them, and `hot_start.workdir` starts
from them. What the file shows of the network is inferred; the rest is told by flags, or by a name
of RobustBench's model zoo, or assumed; all of it is printed. A file of `torch_export` with its
`model.json` beside it needs no flags.
"""

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fairmix_jax.export import _torch_file, _zoo, save_model
from fairmix_jax.export._torch_file import Tensor
from fairmix_jax.export._torch_names import Family, described, listed, renamed, state_dict
from fairmix_jax.export.torch_export import ARRAYS, columns, layers
from fairmix_jax.models.described import build_model
from fairmix_jax.runtime import json_files, registry
from fairmix_jax.runtime.errors import UsageError, exits_on_usage_error
from fairmix_jax.runtime.sealed import named
from fairmix_jax.types import Weights

_CARD = ("model", "image_shape", "mean", "std", "classes")
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


_NOTHING = Told()


def import_model(file: Path, output: Path, told: Told = _NOTHING) -> tuple[str, dict[str, Any]]:
    """Writes `model.safetensors` and `model.json` of the model in a file to a folder.

    Returns what its layers' names say of it in words, and the content of `model.json`. A
    `UsageError` says what cannot be read, is missing or has no place, and that `output` has a run,
    or the file itself.
    """
    if any((output / name).exists() for name in ("run.json", "checkpoints")):
        raise UsageError(f"{str(output)!r} holds a run; give a folder of its own")
    if output.resolve() in (file.parent.resolve(), file.resolve().parent):
        raise UsageError(f"{str(output)!r} holds {file.name!r} itself; give another folder")
    entry = _zoo.entry(told.zoo) if told.zoo else None
    with file.open("rb") as raw:
        sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
    with _torch_file.opened(file) as content:
        key, tensors = state_dict(content, told.key)
        if sum(map(_torch_file.nbytes, tensors.values())) > 2 * file.stat().st_size:
            raise UsageError("its tensors share numbers, and are twice as large as it is")
        family, tensors = renamed(tensors)
        if card := _own_card(file, told, sha256):
            what = "our own export, as the model.json beside it says"
        else:
            card, what = _card(tensors, family, told, entry), family.what
        _require_constants(card)
        weights = _weights(tensors, card)
    known = {"zoo": "", "licence": entry.licence if entry else "", "assumed": []}
    chosen = {name: value for name in ("zoo", "licence") if (value := getattr(told, name))}
    number = sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    own = {"file": file.name, "sha256": sha256, "parameters": number}
    source = known | card.get("source", {}) | own | chosen
    facts = {"dataset": _dataset(card["classes"]), "threat": {}, "weights": "imported"} | card
    save_model(output, weights, card | {"source": source}, facts)
    return f"{key or 'the whole'}: {what}", json_files.load(output / "model.json")


def _own_card(file: Path, told: Told, sha256: str) -> dict[str, Any]:
    """The card that our export wrote beside a file; empty if something else is told of it."""
    path = file.with_name("model.json")
    is_ours = path.is_file() and b'"torch_sha256"' in path.read_bytes()
    if not is_ours or told._replace(licence="", key="") != _NOTHING:
        return {}
    card = json_files.load(path)
    return card if card.pop("torch_sha256") == sha256 else {}


def _dataset(classes: Sequence[str]) -> str:
    return next((name for name, own in _zoo.CLASSES.items() if own == classes), "unknown")


def _card(
    tensors: dict[str, Tensor], family: Family, told: Told, entry: _zoo.Entry | None
) -> dict[str, Any]:
    """The card of a model, of what its tensors show, what is told, and what is usual.

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
        mean, std = _zoo.DEEPMIND.get(_dataset(classes), (mean, std))
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


def _require_constants(card: Mapping[str, Any]) -> None:
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


def _weights(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Weights:
    """The weights of a card's model; each tensor has its place in them, and each place a tensor."""
    places = dict(islice(layers(card), 1001))
    if len(places) > 1000:  # to build them takes minutes
        raise UsageError(f"a {_shown(card['model'])} has more than 1,000 layers")
    model = build_model(card)
    template = jax.eval_shape(lambda: Weights(*model.init(jax.random.key(0))))
    keys = dict[str, Any]()
    for path, leaf in named(template).items():
        layer, _, name = path.partition("/")[2].rpartition("/")
        keys[f"{places[re.sub('(Batch|Group)Norm', 'Norm', layer)]}.{ARRAYS[name]}"] = leaf.shape
    lacking = [f"lacks {key}" for key in keys if key not in tensors]
    left = [f"has {name}, for which there is no place" for name in tensors if name not in keys]
    if lacking or left:
        faults = " and ".join(lacking[:1] + left[:1])
        raise UsageError(f"for a {_shown(card['model'])} it {faults}")
    leaves = [_converted(tensors[key], key, shape, card) for key, shape in keys.items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _converted(
    tensor: Tensor, key: str, shape: tuple[int, ...], card: Mapping[str, Any]
) -> np.ndarray:
    """A tensor as our array of a shape: OIHW as HWIO, and a matrix `[out, in]` transposed."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)]
    theirs = tuple(shape[order.index(n)] for n in range(len(shape)))
    if tensor.shape != theirs:
        told = f"and {_shown(card['model'])} has {list(theirs)}"
        raise UsageError(f"its {key} has shape {list(tensor.shape)}, {told}")
    if tensor.dtype.kind not in "fV":  # V is bfloat16
        raise UsageError(f"its {key} has numbers of type {tensor.dtype}, no floating-point ones")
    with np.errstate(over="ignore"):
        array = tensor.array().astype(np.float32)
    if not np.isfinite(array).all():
        raise UsageError(f"its {key} has NaN, or numbers beyond float32; take other weights")
    if len(shape) == 2 and (size := columns(card)):
        array = array.reshape(len(array), -1, *size).transpose(0, 2, 3, 1).reshape(len(array), -1)
    return np.ascontiguousarray(array.transpose(order))


def _shown(model: Mapping[str, Any]) -> str:
    return " ".join([model["name"], *(f"{k}={v}" for k, v in model.items() if k != "name")])


def _parsed() -> tuple[Path, Path, Told]:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description="Imports a PyTorch model. --model.FIELD=VALUE sets a field of our model.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help=".pt, .pth or .safetensors")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--zoo", default="", help="DATASET/THREAT/NAME in RobustBench's model zoo")
    parser.add_argument("--classes", default="", help="cifar10, cifar100 or names by label: a,b,c")
    parser.add_argument("--mean", default="", help="what is subtracted of pixels in [0, 1]: a,b,c")
    parser.add_argument("--std", default="", help="what they are then divided by: a,b,c")
    parser.add_argument("--image_shape", default="", help="height,width,channels; else 32,32,3")
    parser.add_argument("--key", default="", help="which dictionary in the file")
    parser.add_argument("--licence", default="", help="of the weights, for the card")
    given, more = parser.parse_known_args()
    told, model = vars(given), {}
    for text in more:
        if not (match := re.fullmatch(r"--model\.(\w+)=(.+)", text)):
            raise UsageError(f"{text} is not understood; --help lists the flags")
        number = int(match[2]) if match[2].isdecimal() else match[2]
        model[match[1]] = {"true": True, "false": False}.get(match[2].lower(), number)
    for name, kind in (("mean", float), ("std", float), ("image_shape", int)):
        try:
            told[name] = tuple(kind(part) for part in told[name].split(",") if part)
        except ValueError:
            raise UsageError(f"--{name}={told[name]!r} are no numbers with commas") from None
    if told["image_shape"] and (len(told["image_shape"]) != 3 or min(told["image_shape"]) < 1):
        raise UsageError(f"--image_shape={told['image_shape']} is not height,width,channels")
    return told.pop("file"), told.pop("output"), Told(model=model, **told)


@exits_on_usage_error("torch_import")
def main() -> None:
    """Runs the command line; see the head of this file."""
    file, output, told = _parsed()
    what, card = import_model(file, output, told)
    print(f"{file}: {what}, {card['source']['parameters']:,} parameters")
    print(f"  model        {_shown(card['model'])}")
    for name in _CARD[1:]:
        print(f"  {name:<12} {', '.join(map(str, card[name]))}")
    print(f"  licence      {card['source']['licence'] or 'not told'}")
    if assumed := card["source"]["assumed"]:
        print(f"  assumed      {', '.join(assumed)}: the file does not show them, so check them")
    print(f"{output}: model.safetensors, model.json")


if __name__ == "__main__":
    main()
