"""Workdirs and import paths of version 0.1."""

import importlib
import json
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT

from fairmix_jax.lab import workdir
from fairmix_jax.report import runs
from fairmix_jax.runtime import json_files, moved
from fairmix_jax.runtime.errors import UsageError


def test_a_run_that_version_0_1_began_goes_on_and_is_evaluated_and_reported(tmp_path):
    """It was stopped by SIGTERM after step 10 of 18; some fields are younger."""
    with tarfile.open(ROOT / "tests" / "data" / "run_of_version_0_1.tar.gz") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "stopped"
    before = json.loads((folder / "config.json").read_text())
    command = [sys.executable, "launch.py", f"--workdir={folder}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "resuming at step 10 of 18" in result.stdout
    after = json_files.load(folder / "config.json")
    assert after.pop("calibration") == {"name": "none"} and after.pop("audit")
    assert after["evaluate"].pop("search_precision") == "default"
    assert after == before  # else; these three are younger than it
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    assert epochs == [1, 2, 3, 4, 5, 6]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert list(evaluation["attacks"]) == ["clean", "pgd5", "fast@50"]
    assert evaluation["attacks"]["clean"]["average"] > 0.6
    assert (folder / "report" / "index.html").stat().st_size > 0


def test_the_rule_head_norm_of_version_0_1_is_a_calibration(tmp_path):
    chosen = {"seed": 0, "rule": {"name": "head_norm", "to": "mean"}}
    (tmp_path / "config.json").write_text(json.dumps(chosen))
    (tmp_path / "evaluation.json").write_text("{}")
    config = workdir.get_config(str(tmp_path))
    assert config.rule.name == "none"
    assert (config.calibration.name, config.calibration.to) == ("head_norm", "mean")
    workdir.require(tmp_path, config)


def test_an_argument_younger_than_a_run_had_its_default_there(tmp_path):
    model = {"name": "preact_resnet", "depth": 10, "width": 8, "norm": "batch"}
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0, "model": model}))
    (tmp_path / "evaluation.json").write_text("{}")
    config = workdir.get_config(str(tmp_path))
    with config.unlocked():
        config.model.padding = "torch"
        workdir.require(tmp_path, config)
        config.model.padding = "same"
        with pytest.raises(UsageError, match=r"model\.padding='torch', now"):
            workdir.require(tmp_path, config)
    held = {"config": {"model": model}}
    younger = {"config": {"model": {**model, "padding": "torch", "activation": "silu"}}}
    old, new = map(runs.config_of, (held, younger))
    assert old == new | {"model.activation": "relu"}


@pytest.mark.parametrize("old", moved.NEW_PATHS)
def test_import_paths_of_version_0_1_are_other_names_of_the_same_modules(old):
    new = importlib.import_module(f"fairmix_jax.{moved.NEW_PATHS[old]}")
    assert importlib.import_module(f"fairmix_jax.{old}") is new
    assert new.__name__ == new.__spec__.name == f"fairmix_jax.{moved.NEW_PATHS[old]}"


def test_members_have_one_identity_under_both_paths():
    from fairmix_jax.methods.rules import dafa
    from fairmix_jax.rules import dafa as old

    assert old is dafa


@pytest.mark.parametrize("old", ["torch_export", "robustbench"])
def test_commands_of_version_0_1_still_run(old):
    command = [sys.executable, "-m", f"fairmix_jax.{old}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "usage: " in result.stdout
