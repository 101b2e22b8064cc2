"""Programs compiled for TPUs that are not here; needs libtpu (the extra `tpu`)."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[tpu]'"
)
TINY = [
    "--mode=compile", "--config=configs/digits.py:smoke", "--config.model.width=8",
    "--config.mixing.name=same_class", "--config.mixing.num_groups=8", "--config.rule.name=dafa",
    "--config.model.norm=batch:8", "--config.compile.largest_batch=False",
]  # fmt: skip


def launch(*arguments, timeout=600):
    return subprocess.run(
        [sys.executable, "launch.py", *arguments], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": ""},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@needs_libtpu
def test_a_step_compiled_for_eight_chips_reduces_once_and_never_in_a_loop(tmp_path):
    topology = "--config.compile.topology=v5e:2x4"
    result = launch(*TINY, topology, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "compile.json").read_text())
    assert content["chips"] == 8 and "v5" in content["device_kind"]
    step, *evaluations = content["programs"].values()
    assert {c["kind"] for c in step["found"]} == {"all-reduce"} and len(step["found"]) <= 3
    assert not [c for p in (step, *evaluations) for c in p["found"] if c["in_loop"]]
    assert all(not p["found"] for p in evaluations)
    clean, pgd = (p["products"] for p in evaluations)
    assert step["products"]["highest"] <= 2  # sums over classes
    assert set(clean) == {"highest"}
    assert pgd["highest"] == 2 * clean["highest"] and pgd["default"] >= pgd["highest"]
    whole, predicted = content["training_step"], content["predicted"]
    assert whole["flops"] > step["flops"] > 0 and whole["bytes"] > step["bytes"] > 0
    told = sum(c["num_bytes"] for c in step["found"])
    assert predicted["reduced_bytes"] <= told <= predicted["reduced_bytes"] + 4 * 200
    assert "predicted / compiled" in (tmp_path / "compile.md").read_text()


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("model", ["fashion_mnist", "preact_resnet", "wide_resnet"])
def test_the_cost_model_is_within_five_percent_of_the_compiled_programs(
    model, tfds_dir, tmp_path, monkeypatch
):
    """The three models of docs/scaling/tpu_programs.md; WideResNet-28-10 for v5p."""
    monkeypatch.setenv("TFDS_DATA_DIR", tfds_dir)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_crs_combiner_threshold_in_bytes=1073741824")
    name = "fashion_mnist" if model == "fashion_mnist" else "cifar10"
    chips, topology = (16, "v5p:2x2x4") if model == "wide_resnet" else (8, "v5e:2x4")
    wide = ["--config.model.name=wide_resnet", "--config.model.depth=28", "--config.model.width=10"]
    result = launch(
        "--mode=compile", f"--config=configs/{name}.py", f"--workdir={tmp_path}",
        "--config.mixing.name=same_class", f"--config.mixing.num_groups={chips}",
        f"--config.model.norm=batch:{chips}", "--config.rule.name=dafa",
        f"--config.batch_size={128 * chips}", f"--config.evaluate.batch_size={128 * chips}",
        "--config.evaluate.attacks=clean", f"--config.compile.topology={topology}",
        "--config.compile.largest_batch=False", *(wide if model == "wide_resnet" else []),
        timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "compile.json").read_text())
    found = content["programs"]["training step"]["found"]
    assert [c["kind"] for c in found] == ["all-reduce"] * 2
    assert not any(c["in_loop"] for c in found)
    predicted, whole = content["predicted"], content["training_step"]
    assert predicted["flops"] == pytest.approx(whole["flops"], rel=0.05)
    told = sum(c["num_bytes"] for c in found)
    assert predicted["reduced_bytes"] == pytest.approx(told, rel=0.05)


@needs_libtpu
def test_what_does_not_fit_is_said_in_a_line(tmp_path):
    result = launch(
        *TINY, "--config.compile.topology=v5e:2x4", f"--workdir={tmp_path}",
        "--config.batch_size=33554432",
    )  # fmt: skip
    assert result.returncode == 2 and "does not fit v5e:2x4" in result.stderr.splitlines()[-1]


@needs_libtpu
def test_what_cannot_be_compiled_is_said_in_a_line(tmp_path):
    for change, message in (
        (["--config.compile.topology=v99:2x4"], "v99:2x4' is not understood"),
        (["--config.compile.topology=v5e:4x4", "--config.batch_size=104"], "multiples of 16"),
    ):
        result = launch(*TINY, *change, f"--workdir={tmp_path}")
        assert result.returncode == 2 and message in result.stderr.splitlines()[-1]


def test_a_topology_must_be_named(tmp_path):
    result = launch(*TINY, f"--workdir={tmp_path}")
    assert result.returncode == 2 and "compile.topology is empty" in result.stderr
