"""Trained weights for PyTorch: `python -m fairmix_jax.export.torch_export WORKDIR OUT`.

OUT then holds `model_torch.safetensors`, a state dict with the names and layouts PyTorch
users expect (`layer1.0.conv1.weight`, OIHW), `model.json`, and `torch_model.py`, the module
it belongs to, which needs PyTorch and safetensors only:

    import torch_model
    model = torch_model.load("OUT")  # maps [B, C, H, W] in [0, 1] to logits

Nothing here needs PyTorch.
"""

import argparse
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from fairmix_jax.export import read_card, read_tensors
from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import UsageError, exits_on_usage_error
from fairmix_jax.runtime.json_files import write_bytes, write_json

ARRAYS = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
    "var": "running_var",
}  # fmt: skip
"""Our names of the arrays in a layer, and PyTorch's."""
_FLATTENING, _RESIDUAL = ("small_cnn", "linear"), ("preact_resnet", "wide_resnet", "resnet")


def state_dict(tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the tensors of `model.safetensors` as a PyTorch state dict of NumPy arrays.

    Convolutions become OIHW and matrices `[out, in]`; a matrix behind a flattened image has
    its columns reordered from rows, columns, channels to channels, rows, columns. Batch norm gets
    the `num_batches_tracked` that PyTorch expects. `card` is the content of `model.json`; a
    `UsageError` says that its model has no counterpart in PyTorch here.
    """
    places, found = dict(layers(card)), {}
    for path, array in tensors.items():
        layer, _, name = path.partition("/")[2].rpartition("/")
        target = places.get(re.sub("(Batch|Group)Norm", "Norm", layer))
        if target is None:
            raise UsageError(
                f"model.name={card['model']['name']!r} has {layer!r}, for which no PyTorch name "
                "is known; add it to fairmix_jax/export/torch_export.py and torch_model.py"
            )
        found[f"{target}.{ARRAYS[name]}"] = _weight(array, card) if name == "kernel" else array
        if name == "mean":
            found[f"{target}.num_batches_tracked"] = np.zeros((), np.int64)
    return {name: np.asarray(array, order="C") for name, array in found.items()}


def _weight(kernel: np.ndarray, card: Mapping[str, Any]) -> np.ndarray:
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if size := columns(card):
        kernel = kernel.reshape(*size, -1, kernel.shape[-1])
        kernel = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
    return kernel.T


def columns(card: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the rows and columns of the image that the last layer reads; `None` of a mean."""
    if card["model"]["name"] not in _FLATTENING:
        return None
    halvings = 2 if card["model"]["name"] == "small_cnn" else 0
    height, width = (-(-size // 2**halvings) for size in card["image_shape"][:2])
    return height, width


def layers(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields our name of each layer, `Norm` for any normalisation, and PyTorch's."""
    chosen = card["model"]
    if chosen["name"] in (*_FLATTENING, *_RESIDUAL):
        yield "Dense_0", "linear"
    if chosen["name"] == "small_cnn":
        for number in range(3):
            yield f"Conv_{number}", f"conv{number + 1}"
            yield f"Norm_{number}", f"bn{number + 1}"
    if chosen["name"] not in _RESIDUAL:
        return
    is_preact = chosen["name"] != "resnet"
    yield "Conv_0", "conv1"
    yield "Norm_0", "bn" if is_preact else "bn1"
    module = registry.load("models", chosen["name"])(
        len(card["classes"]), **registry.arguments("models", chosen)
    )
    places = ((s, b) for s, blocks in enumerate(module.blocks, 1) for b in range(blocks))
    kind = "PreActBlock" if is_preact else module.block.__name__
    numbers = (1, 2, 3) if kind == "Bottleneck" else (1, 2)
    for number, (stage, block) in enumerate(places):
        convolutions = [*(f"conv{n}" for n in numbers), "shortcut.0"]
        if is_preact and block == 0 and (stage > 1 or module.stem != module.features[0]):
            convolutions = ["shortcut.0", "conv1", "conv2"]  # the shape changes; it comes first
        for n, name in enumerate(convolutions):
            yield f"{kind}_{number}/Conv_{n}", f"layer{stage}.{block}.{name}"
        for n, name in enumerate([*(f"bn{n}" for n in numbers), "shortcut.1"]):
            yield f"{kind}_{number}/Norm_{n}", f"layer{stage}.{block}.{name}"


def export(workdir: Path, output: Path) -> None:
    """Writes the model in `workdir` to `output`, see the head of this file.

    Raises a `UsageError` if there is none, or one that is damaged or that PyTorch lacks here.
    """
    if not (workdir / "model.json").is_file():
        raise UsageError(f"there is no model.json in {str(workdir)!r}; evaluate the run first")
    card = read_card(workdir)
    content = save(state_dict(read_tensors(workdir), card))
    output.mkdir(parents=True, exist_ok=True)
    write_bytes(output / "model_torch.safetensors", content)
    torch_sha256 = hashlib.sha256(content).hexdigest()
    write_json(output / "model.json", card | {"torch_sha256": torch_sha256})
    shutil.copy(Path(__file__).with_name("torch_model.py"), output / "torch_model.py")


@exits_on_usage_error("torch_export")
def main() -> None:
    """Runs the command line; see the head of this file."""
    parser = argparse.ArgumentParser(description="Exports a trained model for PyTorch.")
    parser.add_argument("workdir", type=Path, help="folder of an evaluated run")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    export(arguments.workdir, arguments.output)
    print(f"{arguments.output}: model_torch.safetensors, model.json, torch_model.py")


if __name__ == "__main__":
    main()
