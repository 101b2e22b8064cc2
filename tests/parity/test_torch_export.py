"""Exported weights in PyTorch: the same logits, by the exported module in a process of its own."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_torch_networks import drawn

from fairmix_jax.export import load_model, save_model, torch_export
from fairmix_jax.models.described import build_model
from fairmix_jax.types import Weights

pytest.importorskip("torch")

MODELS = {
    "small_cnn": dict(name="small_cnn", width=16, norm="batch"),
    "small_cnn-group": dict(name="small_cnn", width=8, norm="group"),
    "small_cnn-none": dict(name="small_cnn", width=8, norm="none"),
    "preact_resnet-18": dict(name="preact_resnet", depth=18, width=64, norm="batch"),
    "preact_resnet-10-group": dict(name="preact_resnet", depth=10, width=8, norm="group"),
    "resnet-18": dict(name="resnet", depth=18, width=16, norm="batch"),
    "resnet-26-bottlenecks": dict(name="resnet", depth=26, width=8, norm="batch"),
    "wide_resnet-16-2": dict(name="wide_resnet", depth=16, width=2, norm="batch"),
    "wide_resnet-10-1-DeepMind": dict(
        name="wide_resnet", depth=10, width=1, norm="batch", activation="silu", padding="same"
    ),
    "preact_resnet-10-DeepMind": dict(
        name="preact_resnet",
        depth=10,
        width=8,
        norm="batch",
        activation="silu",
        padding="same",
        shortcut="raw3x3",
    ),
    "preact_resnet-10-raw": dict(
        name="preact_resnet", depth=10, width=8, norm="group", shortcut="raw", last_norm=False
    ),
    "linear": dict(name="linear"),
}
USE = """
import sys, numpy, torch, torch_model
model = torch_model.load(sys.argv[1])
assert not [m for m in sys.modules if m.startswith(("jax", "fairmix_jax"))]
images = torch.tensor(numpy.load(sys.argv[1] + "/images.npy")).permute(0, 3, 1, 2)
with torch.no_grad():
    numpy.save(sys.argv[1] + "/logits.npy", model(images).numpy())
"""


@pytest.mark.parametrize("name", MODELS)
def test_logits_agree(name, tmp_path):
    shape = (32, 24, 3) if MODELS[name].get("padding") == "same" else (30, 28, 3)
    card = {
        "model": MODELS[name], "image_shape": shape, "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25], "classes": list("abcdefg"),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: build_model(card).init(jax.random.key(0)))
    weights = Weights(*drawn(shapes, rng))
    facts = {"dataset": "x", "threat": {}, "weights": "best"}
    save_model(tmp_path / "run", weights, card, facts)
    torch_export.export(tmp_path / "run", tmp_path / "out")
    images = rng.random((5, *shape)).astype(np.float32)
    np.save(tmp_path / "out" / "images.npy", images)
    result = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "out")],
        cwd=tmp_path / "out", capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ours = load_model(tmp_path / "run")[0](jnp.asarray(images))
    theirs = np.load(tmp_path / "out" / "logits.npy")
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_names_are_those_of_the_preact_resnet_of_the_literature(tmp_path):
    """They fit the PreActResNet-18 with a last normalisation, as Rice et al. 2020 have it."""
    card = {"model": MODELS["preact_resnet-18"], "image_shape": [8, 8, 3], "classes": [0, 1],
            "mean": [0.0] * 3, "std": [1.0] * 3}  # fmt: skip
    weights = Weights(*build_model(card).init(jax.random.key(0)))
    save_model(tmp_path, weights, card, {"dataset": "", "threat": {}, "weights": ""})
    converted = torch_export.state_dict(load_file(tmp_path / "model.safetensors"), card)
    expected = {"conv1.weight", "linear.weight", "linear.bias"}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected |= {f"bn.{name}" for name in norm}
    for stage in range(1, 5):
        for block in range(2):
            place = f"layer{stage}.{block}"
            expected |= {f"{place}.conv{n}.weight" for n in (1, 2)}
            expected |= {f"{place}.bn{n}.{name}" for n in (1, 2) for name in norm}
        if stage > 1:
            expected.add(f"layer{stage}.0.shortcut.0.weight")
    assert set(converted) == expected
    assert converted["layer4.0.conv1.weight"].shape == (512, 256, 3, 3)
