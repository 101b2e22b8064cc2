"""The README's commands, the pins and the house rules that a file can break."""

import re
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        r.name.lower().replace("_", "-"): r for r in found if not r.marker or r.marker.evaluate()
    }


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_requirement_is_pinned_within_its_range(requirement):
    (pin,) = pins()[requirement.name.lower().replace("_", "-")].specifier
    assert pin.operator == "==" and requirement.specifier.contains(pin.version)


@pytest.mark.parametrize(
    "name, needed",
    [("run", ".venv/bin/fairmix --config=quickstart"), ("test", ".venv/bin/pytest")],
)
def test_readme_has_both_commands_complete(name, needed):
    text = (ROOT / "README.md").read_text()
    (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*?)```", text, re.S)
    assert "-m venv .venv" in command and "-c constraints.txt" in command and needed in command


def test_neither_tensorflow_nor_torch_is_imported():
    code = (
        "import sys, fairmix_jax.lab.command_line, fairmix_jax.lab.sweeps, fairmix_jax.data._tfds, "
        "fairmix_jax.data.prepare; "
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr
