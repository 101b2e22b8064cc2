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
    "--config.model.norm=batch:8",
]  # fmt: skip


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "launch.py", *arguments], cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": ""},
        capture_output=True, text=True, timeout=600,
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
    assert content["training_step_flops"] > step["flops"] > 0


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
