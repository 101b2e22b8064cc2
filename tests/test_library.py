"""The package as a library: light imports, its main names, and a program of a user's own."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import fairmix_jax

HEAVY = (
    "PIL", "absl", "altair", "flax", "jinja2", "matplotlib", "ml_collections", "optax", "orbax",
    "pandas", "rich", "safetensors", "sklearn", "tensorboardX", "tensorflow_datasets",
)  # fmt: skip


def run_python(*arguments):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "statement, rooms",
    [
        ("from fairmix_jax import ThreatModel", {"types"}),
        ("from fairmix_jax.mixup import same_class_mixup", {"mixup", "types"}),
        ("from fairmix_jax import pgd, autoattack", {"attacks", "models", "types"}),
    ],
    ids=["types", "mixup", "attacks"],
)
def test_attacks_and_mixup_load_jax_and_numpy_and_nothing_of_data_reports_or_checkpoints(
    statement, rooms
):
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run_python("-c", code).splitlines()[-1])
    assert {"jax", "numpy"} <= set(loaded)
    assert set(HEAVY).isdisjoint(loaded)
    ours = {name.split(".")[1] for name in loaded if name.startswith("fairmix_jax.")}
    assert ours == rooms | {"runtime"}


@pytest.mark.parametrize("name", fairmix_jax.__all__)
def test_every_name_that_the_package_offers_is_there_and_documented(name):
    assert len(getattr(fairmix_jax, name).__doc__.splitlines()[0]) > 20
    assert name in dir(fairmix_jax)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pdg'"):
        _ = fairmix_jax.pdg


def test_a_training_loop_of_ones_own_fits_in_a_file_and_learns():
    path = ROOT / "examples" / "own_training_loop.py"
    assert len(path.read_text().splitlines()) < 80
    lines = run_python(path).splitlines()
    robust = json.loads(lines[-1].partition(": ")[2])
    assert len(robust) == 10 and sum(robust) > 450 * 0.35
    assert any(line.startswith("clean: average 9") for line in lines)
