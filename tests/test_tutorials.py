"""Tutorials and examples as their readers run them: each a process of its own, with strict JAX."""

import itertools
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, STRICT

# What is in the last lines of each; the scripts themselves assert what their prose claims.
TUTORIALS = {
    "audit_your_model": r"50 steps: .*wrong under PGD-20",
    "same_class_mixup": r"PGD-20 gap .*->.*change",
    "new_rule": r"\| pgd20 \| rule=hard_classes \| 3 \|",
}
EXAMPLES = {"epsilon_sweep": r"  0\.22 "}
RUN_ELSEWHERE = {"own_training_loop"}  # tests/test_library.py
CELL = re.compile(r"^# %%.*\n", re.MULTILINE)


def run(path):
    result = subprocess.run(
        [sys.executable, path],
        env=os.environ | STRICT | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_and_what_its_prose_claims_holds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / "tutorials" / f"{name}.py"
    assert "\nassert " in path.read_text()
    assert re.search(TUTORIALS[name], run(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name):
    assert re.search(EXAMPLES[name], run(ROOT / "examples" / f"{name}.py"))


def test_no_tutorial_and_no_example_is_left_out():
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.py")} == TUTORIALS.keys()
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert examples == EXAMPLES.keys() | RUN_ELSEWHERE


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_can_be_read_in_ten_minutes(name):
    """It begins with a title, is short, and no two cells of code stand without a word between."""
    text = (ROOT / "docs" / "tutorials" / f"{name}.py").read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    assert len(text.split()) < 1_500
    cells = [cell for cell in CELL.split(text) if cell.strip()]
    prose = [all(line.startswith("#") for line in cell.strip().splitlines()) for cell in cells]
    assert sum(prose) >= 8
    assert all(any(pair) for pair in itertools.pairwise(prose))
