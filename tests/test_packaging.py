"""The README's commands, the pins and the house rules that a file can break."""

import ast
import configparser
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement


def requirements():
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    texts = [parsed["options"]["install_requires"], *parsed["options.extras_require"].values()]
    lines = [line.split("#")[0].strip() for text in texts for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


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
    [("run", "launch.py --config=configs/quickstart.py"), ("test", ".venv/bin/pytest")],
)
def test_readme_has_both_commands_complete(name, needed):
    text = (ROOT / "README.md").read_text()
    (command,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*?)```", text, re.S)
    assert "-m venv .venv" in command and "-c constraints.txt" in command and needed in command


def test_neither_tensorflow_nor_torch_is_imported():
    code = (
        "import sys, fairmix_jax.cli, fairmix_jax.study, fairmix_jax.data._tfds, "
        "fairmix_jax.data.prepare; "
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "fairmix_jax").rglob("*.py")), ids=lambda p: p.stem)
def test_only_entry_points_and_builders_see_a_config(path):
    """`ml_collections` is known to few files, and none of them is a kernel."""
    allowed = (
        "benchmark cli compile_report config epoch_end evaluate experiment grid plugins steps "
        "study subject throughput train trainer workdir"
    ).split()
    tree = ast.parse(path.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    }  # fmt: skip
    name = path.parent.stem if path.stem == "__init__" else path.stem
    assert "ml_collections" not in imported or name in allowed


def test_the_readme_evaluates_any_function_class_by_class(capsys):
    text = (ROOT / "README.md").read_text()
    example = re.search(r"<!-- example: classwise -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(example, "README.md", "exec"), {})
    assert "'worst_class': [0" in capsys.readouterr().out.splitlines()[-1]


def test_the_readme_attacks_a_function_that_is_not_a_model_of_ours(capsys):
    """The example runs as printed, in under 15 lines from the images to the report."""
    text = (ROOT / "README.md").read_text()
    example = re.search(r"<!-- example: autoattack -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line.strip()]) < 15
    exec(compile(example, "README.md", "exec"), {})
    robust_accuracy, broken = capsys.readouterr().out.split(" ", 1)
    assert 0 < float(robust_accuracy) < 1
    assert list(ast.literal_eval(broken)) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
