"""The package as `pip install` leaves it: a wheel in an environment of its own, no clone."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, STRICT

MY_CONFIG = '''
"""Digits, for a moment."""

from fairmix_jax.lab.configs import digits


def get_config(arg: str = ""):
    config = digits.get_config("smoke").unlock()
    config.model.width = 8
    config.attack.num_steps = 2
    config.validation.num_steps = 2
    config.evaluate.attacks = "clean,pgd2"
    config.evaluate.radii = ()
    return config.lock()
'''


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the source tree, with the tools that are installed here."""
    source = tmp_path_factory.mktemp("source")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    for name in ("configs", "fairmix_jax", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir=dist", cwd=source)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment with the wheel, and with what is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip(f"--python={folder / 'bin' / 'python'}", "install", "--no-deps", "--no-index", str(wheel))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def pip(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def run(*command, cwd, **environment):
    """Runs a command where no clone is near."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TFDS_DATA_DIR")}
    return subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_holds_configs_and_templates_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        digits = archive.read("fairmix_jax/lab/configs/digits.py")
    assert digits == (ROOT / "configs" / "digits.py").read_bytes()
    tracked = subprocess.run(
        ["git", "ls-files", "configs/*.py", "fairmix_jax"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    shipped = {re.sub("^configs/", "fairmix_jax/lab/configs/", name) for name in tracked}
    assert len(shipped) > 100 and shipped <= names
    assert not [name for name in names if "test" in Path(name).parts[0] or "__pycache__" in name]
    assert {name.split("/")[0] for name in names} == {
        "fairmix_jax", f"fairmix_jax-{wheel.name.split('-')[1]}.dist-info",
    }  # fmt: skip


def test_the_installed_package_is_the_one_that_is_imported(installed, tmp_path):
    code = "import fairmix_jax; print(fairmix_jax.__file__)"
    result = run(installed / "python", "-c", code, cwd=tmp_path)
    assert Path(result.stdout.strip()).is_relative_to(installed.parent), result.stderr


def test_a_config_of_ones_own_trains_to_a_report_in_any_folder(installed, tmp_path):
    (tmp_path / "my.py").write_text(MY_CONFIG)
    result = run(installed / "fairmix", f"--config={tmp_path / 'my.py'}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run_json = json.loads((tmp_path / "runs" / "my" / "run.json").read_text())
    assert run_json["commit"] is None
    assert "pgd2" in (tmp_path / "runs" / "my" / "report" / "table.md").read_text()
    assert (tmp_path / "runs" / "my" / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.parametrize("argument", ["--help", "configs", "fields", "doctor"])
def test_the_command_answers_about_itself(installed, tmp_path, argument):
    result = run(installed / "fairmix", argument, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) > 8


def example(name):
    text = (ROOT / "README.md").read_text()
    return re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_readme_evaluates_any_function_class_by_class(installed, tmp_path):
    result = run(installed / "python", "-c", example("classwise"), cwd=tmp_path, **STRICT)
    assert result.returncode == 0, result.stderr
    said = re.search(r"# (\d), ([.\d]+), ([.\d]+)\n", example("classwise"))
    name, worst, average = result.stdout.split()[-3:]
    assert name == said[1]
    assert float(worst) == pytest.approx(float(said[2]), abs=0.01)
    assert float(average) == pytest.approx(float(said[3]), abs=0.01)


def test_the_readme_attacks_a_function_that_is_not_a_model_of_ours(installed, tmp_path):
    """The example runs as printed after the one before it, which has the model and the images."""
    whole = example("classwise") + example("autoattack")
    result = run(installed / "python", "-c", whole, cwd=tmp_path, **STRICT)
    assert result.returncode == 0, result.stderr
    robust_accuracy, broken = result.stdout.splitlines()[-1].split(" ", 1)
    assert 0 < float(robust_accuracy) < 1
    assert list(ast.literal_eval(broken)) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
