"""Trained weights for PyTorch: `python -m fairmix_jax.torch_export WORKDIR OUT`.

OUT then holds `model_torch.safetensors`, a state dict with the names and layouts PyTorch
users expect (`layer1.0.conv1.weight`, OIHW), `model.json`, and `torch_model.py`, the module
it belongs to, which needs PyTorch and safetensors only:

    import torch_model
    model = torch_model.load("OUT")  # maps [B, C, H, W] in [0, 1] to logits

Nothing here needs PyTorch.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from fairmix_jax import plugins
from fairmix_jax.errors import UsageError
from fairmix_jax.export import write_json

_ARRAYS = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_FLATTENING = ("small_cnn", "linear")
_KNOWN = (*_FLATTENING, "preact_resnet", "wide_resnet", "resnet")


def state_dict(tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors of `model.safetensors` as a PyTorch state dict of NumPy arrays.

    Convolutions become OIHW and matrices `[out, in]`; a matrix behind a flattened image has
    its columns reordered from rows, columns, channels to channels, rows, columns. Batch
    norm gets the `num_batches_tracked` that PyTorch expects.

    Args:
      tensors: names are paths, e.g. `params/Conv_0/kernel`.
      card: content of `model.json`.

    Raises:
      UsageError: the model has no counterpart in PyTorch here.
    """
    layers = dict(_layers(card))
    found = {}
    for path, array in tensors.items():
        _, _, rest = path.partition("/")
        layer, _, name = rest.rpartition("/")
        if layer not in layers:
            raise UsageError(
                f"model.name={card['model']['name']!r} has {layer!r}, for which no PyTorch name "
                "is known; add it to fairmix_jax/torch_export.py and torch_model.py"
            )
        target = layers[layer]
        if name == "kernel":
            found[f"{target}.weight"] = _weight(array, card)
        else:
            found[f"{target}.{_ARRAYS[name]}"] = array
        if name == "mean":
            found[f"{target}.num_batches_tracked"] = np.zeros((), np.int64)
    return {name: np.asarray(array, order="C") for name, array in found.items()}


def _weight(kernel: np.ndarray, card: Mapping[str, Any]) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if card["model"]["name"] in _FLATTENING:
        halvings = 2 if card["model"]["name"] == "small_cnn" else 0
        height, width = (-(-size // 2**halvings) for size in card["image_shape"][:2])
        kernel = kernel.reshape(height, width, -1, kernel.shape[-1])
        kernel = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
    return kernel.T


def _layers(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Our name of each layer and PyTorch's."""
    chosen = card["model"]
    if chosen["name"] not in _KNOWN:
        return
    yield "Dense_0", "linear"
    if chosen["name"] == "small_cnn":
        for number in range(3):
            yield f"Conv_{number}", f"conv{number + 1}"
            for kind in ("BatchNorm", "GroupNorm"):
                yield f"{kind}_{number}", f"bn{number + 1}"
    if chosen["name"] in _FLATTENING:
        return
    is_preact = chosen["name"] != "resnet"
    yield "Conv_0", "conv1"
    for kind in ("BatchNorm", "GroupNorm"):
        yield f"{kind}_0", "bn" if is_preact else "bn1"
    module = plugins.load("models", chosen["name"])(
        len(card["classes"]), **plugins.arguments("models", chosen)
    )
    places = [(s, b) for s, blocks in enumerate(module.blocks, 1) for b in range(blocks)]
    stem = getattr(module, "stem", module.features[0])
    for number, (stage, block) in enumerate(places):
        changes = block == 0 and (stage > 1 or module.features[0] != stem)
        ours = f"{'PreActBlock' if is_preact else 'BasicBlock'}_{number}"
        theirs = f"layer{stage}.{block}"
        for mine, its in _block(is_preact, changes).items():
            yield f"{ours}/{mine}", f"{theirs}.{its}"


def _block(is_preact: bool, changes: bool) -> dict[str, str]:
    """The layers of a block, whose shortcut is a convolution where the shape changes."""
    if not is_preact:
        names = {"Conv_0": "conv1", "Conv_1": "conv2", "Conv_2": "shortcut.0"}
        norms = ("bn1", "bn2", "shortcut.1")
    elif changes:
        names = {"Conv_0": "shortcut.0", "Conv_1": "conv1", "Conv_2": "conv2"}
        norms = ("bn1", "bn2")
    else:
        names = {"Conv_0": "conv1", "Conv_1": "conv2"}
        norms = ("bn1", "bn2")
    for kind in ("BatchNorm", "GroupNorm"):
        names |= {f"{kind}_{number}": norm for number, norm in enumerate(norms)}
    return names


def export(workdir: Path, output: Path) -> None:
    """Writes the model in `workdir` to `output`, see the head of this file.

    Raises:
      UsageError: there is no exported model in `workdir`, or none that PyTorch has here.
    """
    if not (workdir / "model.json").is_file():
        raise UsageError(f"there is no model.json in {str(workdir)!r}; evaluate the run first")
    card = json.loads((workdir / "model.json").read_text())
    converted = state_dict(load_file(str(workdir / "model.safetensors")), card)
    output.mkdir(parents=True, exist_ok=True)
    save_file(converted, str(output / "model_torch.safetensors"))
    write_json(output / "model.json", card)
    shutil.copy(Path(__file__).with_name("torch_model.py"), output / "torch_model.py")


def main() -> None:
    """Runs the command line; see the head of this file."""
    parser = argparse.ArgumentParser(description="Exports a trained model for PyTorch.")
    parser.add_argument("workdir", type=Path, help="folder of an evaluated run")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    try:
        export(arguments.workdir, arguments.output)
    except UsageError as error:
        print(f"torch_export: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.output}: model_torch.safetensors, model.json, torch_model.py")


if __name__ == "__main__":
    main()
