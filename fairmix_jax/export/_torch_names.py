"""State dicts of other people: where a file has them, and by the names of `torch_export`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairmix_jax.export._torch_file import Tensor
from fairmix_jax.models.resnet import BLOCKS, BOTTLENECKS
from fairmix_jax.runtime.errors import UsageError

_WRAPPERS = ("state_dict", "model_state_dict", "net", "model", "ema", "model_ema", "last")
_PREFIXES = ("module.", "model.", "0.", "1.", "base_model.", "_orig_mod.")
# Counters of batches, and blocks that TRADES builds and saves and never calls.
_UNUSED = re.compile(r"sub_block1\.|(.*\.)?num_batches_tracked$")


class Family(NamedTuple):
    """Networks whose layers have the same names.

    Attributes:
      what: whose they are.
      sign: the start of keys that only they have.
      names: regular expressions of their names, and ours.
      options: of the model, which the file does not show.
    """

    what: str
    sign: str
    names: Sequence[tuple[str, Any]]
    options: Mapping[str, Any] = {}


_DEEPMIND = [
    (r"^(init_conv|conv_2d)\.", "conv1."),
    (r"^layer[._](\d)\.(?:block\.)?(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}."),
    (r"\.batchnorm_0\.", ".bn1."), (r"\.batchnorm_1\.", ".bn2."), (r"^batchnorm\.", "bn."),
    (r"\.conv_(0|2d_1)\.", ".conv1."), (r"\.conv_(1|2d_2)\.", ".conv2."),
    (r"\.shortcut\.weight$", ".shortcut.0.weight"), (r"^logits\.", "linear."),
]  # fmt: skip
_TRADES = [
    (r"^block(\d)\.layer\.(\d+)\.", r"layer\1.\2."), (r"\.convShortcut\.", ".shortcut.0."),
    (r"^bn1\.", "bn."), (r"^fc\.", "linear."),
]  # fmt: skip
_SMOOTH = {"activation": "silu", "padding": "same"}
_FAMILIES = (
    Family("a WideResNet of DeepMind's code", "init_conv.", _DEEPMIND, _SMOOTH),
    Family("a PreActResNet of DeepMind's code", "conv_2d.", _DEEPMIND, _SMOOTH),
    Family("a WideResNet of TRADES' code", "block1.layer.", _TRADES),
    Family("a network with the names of `torch_export`", "", []),
)


def state_dict(content: Any, key: str = "") -> tuple[str, dict[str, Tensor]]:
    """Returns the state dict in what a file holds, and its name there, empty for the whole.

    Prefixes that all its keys have, such as `module.`, are taken off, and tensors that no network
    computes with are left out. A `UsageError` if there is none, or there are several and `key` does
    not choose.
    """
    if not isinstance(content, dict):
        raise UsageError("it holds no dictionary of tensors; save model.state_dict()")
    if key and key not in content:
        raise UsageError(f"--key={key!r} is not in it; it has {listed(content)}")
    wrapped = {name: content[name] for name in _WRAPPERS if name in content}
    places = {key: content[key]} if key else {"": content} | wrapped
    fitting = {name: found for name, found in places.items() if _is_state(found)}
    if len(fitting) > 1:
        raise UsageError(f"it holds several state dicts: {listed(fitting)}; choose with --key=NAME")
    if not fitting:
        raise UsageError(f"it has {listed(content)}, and no state dict there; give --key=NAME")
    name, found = fitting.popitem()
    while shared := [p for p in _PREFIXES if all(known.startswith(p) for known in found)]:
        found = {known.removeprefix(shared[0]): tensor for known, tensor in found.items()}
    return name, {known: tensor for known, tensor in found.items() if not _UNUSED.match(known)}


def _is_state(found: Any) -> bool:
    are_known = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )
    return are_known and bool(found)


def listed(names: Mapping[Any, Any]) -> str:
    """Returns the first names of a dictionary, for a message."""
    return ", ".join(str(name)[:60] for name in list(names)[:6]) or "nothing"


def renamed(tensors: Mapping[str, Tensor]) -> tuple[Family, dict[str, Tensor]]:
    """Returns whose names a state dict has, and its tensors by those of `torch_export`.

    Raises a `UsageError` if two tensors get the same name.
    """
    signs = (f for f in _FAMILIES if any(name.startswith(f.sign) for name in tensors))
    family, found = next(signs), dict[str, Tensor]()
    for name, tensor in tensors.items():
        ours = name
        for pattern, replacement in family.names:
            ours = re.sub(pattern, replacement, ours)
        if found.setdefault(ours, tensor) is not tensor:
            raise UsageError(f"{name} and another tensor of it are both {ours} here")
    return family, found


def described(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Returns the model, its name and arguments, that has tensors of these shapes.

    The file does not show what the convolution in a shortcut reads. It is taken to be the activated
    input, and the input itself where there is no last normalisation, as in RobustBench's networks.
    A norm without running statistics is taken to be ours, of groups. A `UsageError` if the depth is
    none of our models', or a tensor has not as many sizes as ours.
    """
    for name, shape in shapes.items():
        kernel = re.search(r"(conv\d|shortcut\.0)\.weight$", name)
        sizes = 4 if kernel else 1 if name.endswith(".bias") else len(shape)
        if len(shape) != sizes:
            told = f"its {name[:60]} has shape {list(shape)}"
            raise UsageError(f"{told}, and ours is of {sizes} dimensions")
    places = [re.match(r"layer(\d)\.(\d+)\.conv1\.weight$", name) for name in shapes]
    stages = [int(place[1]) for place in places if place]
    blocks = tuple(stages.count(stage) for stage in sorted(set(stages)))
    has_norm = any(len(shape) == 1 for name, shape in shapes.items() if name.endswith(".weight"))
    norm = "group" if has_norm else "none"
    norm = "batch" if any(name.endswith(".running_mean") for name in shapes) else norm
    if not blocks and "conv1.weight" in shapes:
        return {"name": "small_cnn", "width": shapes["conv1.weight"][0], "norm": norm}
    if not blocks:
        return {"name": "linear"}
    if not {"conv1.weight", first := "layer1.0.conv1.weight"} <= shapes.keys():
        raise UsageError(f"it lacks conv1.weight or {first}, with which our models start")
    width = shapes[first][0]
    if "bn1.weight" in shapes:
        table = BOTTLENECKS if "layer1.0.conv3.weight" in shapes else BLOCKS
        return {"name": "resnet", "depth": _depth(table, blocks), "width": width, "norm": norm}
    has_last = "bn.weight" in shapes
    size = shapes.get("layer2.0.shortcut.0.weight", (1,))[-1]
    shortcut = "raw3x3" if size == 3 else "activated" if has_last else "raw"
    options = {"norm": norm, "shortcut": shortcut, "last_norm": has_last}
    if len(blocks) == 3:
        return {"name": "wide_resnet", "depth": 6 * blocks[0] + 4, "width": width // 16, **options}
    return {"name": "preact_resnet", "depth": _depth(BLOCKS, blocks), "width": width, **options}


def _depth(table: Mapping[int, tuple[int, ...]], blocks: tuple[int, ...]) -> int:
    for depth, known in table.items():
        if blocks == known:
            return depth
    raise UsageError(f"its stages have {list(blocks)} blocks, and our models {[*table.values()]}")
