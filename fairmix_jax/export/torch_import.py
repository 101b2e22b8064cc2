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
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairmix_jax.export import _torch_card, _torch_file, _zoo, save_model
from fairmix_jax.export._torch_card import NOTHING, Told, shown
from fairmix_jax.export._torch_file import Tensor
from fairmix_jax.export._torch_names import renamed, state_dict
from fairmix_jax.export.torch_export import ARRAYS, columns, layers
from fairmix_jax.models.described import build_model
from fairmix_jax.runtime import json_files
from fairmix_jax.runtime.errors import UsageError, exits_on_usage_error
from fairmix_jax.runtime.sealed import named
from fairmix_jax.types import Weights

_CARD = ("model", "image_shape", "mean", "std", "classes")


def import_model(file: Path, output: Path, told: Told = NOTHING) -> tuple[str, dict[str, Any]]:
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
        if card := _torch_card.own_card(file, told, sha256):
            what = "our own export, as the model.json beside it says"
        else:
            card, what = _torch_card.card_of(tensors, family, told, entry), family.what
        _torch_card.require_constants(card)
        weights = _weights(tensors, card)
    known = {"zoo": "", "licence": entry.licence if entry else "", "assumed": []}
    chosen = {name: value for name in ("zoo", "licence") if (value := getattr(told, name))}
    number = sum(leaf.size for leaf in jax.tree.leaves(weights.params))
    own = {"file": file.name, "sha256": sha256, "parameters": number}
    source = known | card.get("source", {}) | own | chosen
    facts = {"threat": {}, "weights": "imported"} | card
    facts.setdefault("dataset", _torch_card.dataset_of(card["classes"]))
    save_model(output, weights, card | {"source": source}, facts)
    return f"{key or 'the whole'}: {what}", json_files.load(output / "model.json")


def _weights(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Weights:
    """The weights of a card's model; each tensor has its place in them, and each place a tensor."""
    places = dict(islice(layers(card), 1001))
    if len(places) > 1000:  # to build them takes minutes
        raise UsageError(f"a {shown(card['model'])} has more than 1,000 layers")
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
        raise UsageError(f"for a {shown(card['model'])} it {faults}")
    leaves = [_converted(tensors[key], key, shape, card) for key, shape in keys.items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _converted(
    tensor: Tensor, key: str, shape: tuple[int, ...], card: Mapping[str, Any]
) -> np.ndarray:
    """A tensor as our array of a shape: OIHW as HWIO, and a matrix `[out, in]` transposed."""
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)]
    theirs = tuple(shape[order.index(n)] for n in range(len(shape)))
    if tensor.shape != theirs:
        told = f"and {shown(card['model'])} has {list(theirs)}"
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
    print(f"  model        {shown(card['model'])}")
    for name in _CARD[1:]:
        print(f"  {name:<12} {', '.join(map(str, card[name]))}")
    print(f"  licence      {card['source']['licence'] or 'not told'}")
    if assumed := card["source"]["assumed"]:
        print(f"  assumed      {', '.join(assumed)}: the file does not show them, so check them")
    print(f"{output}: model.safetensors, model.json")


if __name__ == "__main__":
    main()
