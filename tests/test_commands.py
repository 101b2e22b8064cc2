"""Every command that a document, a docstring or the help names is one that our programs take.

The whole of a command runs where `WHOLE` says; here each is started in a process of its own, with
its own flags and config, and a last flag that ends it before data are loaded.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import ROOT

from fairmix_jax.lab import workdir
from fairmix_jax.lab.configs import cifar10, cifar10_recipes

# What stands for something of the reader's, and what it is here.
MEANT = {
    ":RECIPE": f":{next(iter(cifar10_recipes.RECIPES))}", "rule.name=NAME": "rule.name=faal",
    "CHIPS": "8", "BATCH": "1024", "TOPOLOGY": "v5e:2x4", "WORKDIR": "RUN",
}  # fmt: skip
FORMS = {
    "fairmix", "fairmix --config=NAME", "fairmix --workdir=DIR", "python launch.py",
    "python launch.py --config=configs/NAME.py", "python -m fairmix_jax.lab",
}  # fmt: skip
# Where the whole of a config's run, or of a module's work, is done: by a process, made small.
WHOLE = {
    "digits": "test_launch.py::finished", "quickstart": "test_launch.py::test_smoke_without_data",
    "synthetic": "test_launch.py::test_smoke_without_data",
    "cifar10": "test_launch.py::test_smoke_trains_on_real_images",
    "cifar10:small": "test_launch.py::test_smoke_trains_on_real_images",
    "fashion_mnist": "test_launch.py::test_smoke_trains_on_real_images",
    "studies/": "test_launch.py::test_studies_run_to_their_report",
    "studies/digits_study": "test_launch.py::test_a_killed_sweep_goes_on_and_a_broken_member",
    "--mode=evaluate": "test_launch.py::test_evaluate_mode_needs_only_the_workdir",
    "--mode=report": "test_launch.py::test_report_mode_compares_workdirs",
    "--mode=audit": "test_audit.py::test_five_models_are_one_command_that_goes_on_where_killed",
    "--mode=benchmark": "test_benchmark.py",  # minutes on an idle machine; small in that file
    "--mode=compile": "test_compile.py",  # where there is libtpu
    "--backend=slurm": "test_engines.py",  # where there is submitit
    "fairmix configs": "test_config_fields.py", "fairmix fields": "test_config_fields.py",
    "fairmix --help": "test_config_fields.py", "fairmix doctor": "test_doctor.py",
    "python -m fairmix_jax.data.prepare": "test_prepare.py",  # of files, not of 160 MiB to download
    "python -m fairmix_jax.export.torch_export": "test_export.py",
    "python -m fairmix_jax.export.torch_import": "test_torch_import.py",
    "python -m fairmix_jax.export.robustbench": "test_export.py",
    "python -m fairmix_jax.report.packed": "test_packed.py",
    "python tools/config_page": "test_config_fields.py",
    "python -m tools.method_page": "test_method_page.py",
    "python tools/house": "test_commands.py::test_the_counts",
}  # fmt: skip
OURS = r"fairmix|python (?:launch\.py|-m (?:fairmix_jax|tools)\.[\w.]+|tools/\w+\.py)"
COMMAND = re.compile(rf"(?:^|(?<=[\s`;&\"'(/]))(?:{OURS})(?= |$)[^`\n]*", re.M)
END = r"( --\w+=\.{3}| {2,}\w| +#| > | ?\[| \| |=?\.{3}|[.]?$).*"
LAST = {
    "compile": ["--config.compile.topology="], "report": ["--workdir=my.py"],
    "audit": ["nowhere.safetensors"],
}  # fmt: skip
SAID = {
    "compile": "compile.topology is empty", "report": "'my.py' cannot be written",
    "audit": "does not exist",
}  # fmt: skip


def texts() -> Iterator[str]:
    """What is code in a document, the help, and the docstrings of modules."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("configs/*.md")]
    for path in (*pages, *ROOT.glob("docs/**/*.md")):
        fenced = re.compile(r"```\w*\n(.*?)```", re.S)
        yield from fenced.findall(path.read_text())
        yield from re.findall(r"`([^`\n]+)`", fenced.sub("", path.read_text()))
    yield (ROOT / "fairmix_jax" / "lab" / "help.j2").read_text()
    folders = ("fairmix_jax", "configs", "tools", "examples", "docs")
    for path in (ROOT / "launch.py", *(p for f in folders for p in (ROOT / f).rglob("*.py"))):
        yield ast.get_docstring(ast.parse(path.read_text())) or ""
        if path.is_relative_to(ROOT / "docs"):  # a tutorial: its prose is comments
            yield "\n".join(re.findall(r"`([^`\n]+)`", path.read_text()))


def documented() -> list[str]:
    """The commands, as a shell would take them; what only shows a form is left out."""
    found = set()
    for text in texts():
        for match in COMMAND.finditer(re.sub(r" *\\\n\s*", " ", text)):
            command = re.sub(END, "", match[0])
            for placeholder, value in MEANT.items():
                command = command.replace(placeholder, value)
            found.add(" ".join(command.split()))
    return sorted(found - FORMS)


COMMANDS = documented()
LAUNCHES = [c for c in COMMANDS if re.match(r"(fairmix|python launch\.py) --(?!help)", c)]


def mode_of(command: str) -> str:
    """What its `--mode` is."""
    return (re.findall(r"--mode=(\w+)", command) or ["train"])[-1]


def test_every_documented_command_has_a_test_of_the_whole():
    """A new program, mode or config that is documented needs one."""
    assert len(COMMANDS) > 50 and len(LAUNCHES) > 35
    for command in COMMANDS:
        plain = command.replace("configs/", "").replace(".py", "") + " "
        known = [key for key in WHOLE if re.search(rf"(^|[ =]){key}([ :]|(?<=/))", plain)]
        assert known or "my" in command, f"{command}: name its test in WHOLE"
    for test in WHOLE.values():
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / "tests" / file).read_text(), test


FORKING = """
import contextlib, json, os, sys
from fairmix_jax.lab import command_line, engines, sweeps
import fairmix_jax.lab.benchmark, fairmix_jax.lab.compile.pod_programs
for number, argv in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        with open(f"{number}.txt", "w") as said:
            os.dup2(said.fileno(), 2)
        sys.argv = argv
        command_line.main()
    with open(f"{number}.status", "w") as file:
        file.write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of each launch its exit status and what it said; a process each, that share their imports."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("configs", "results"):
        (place / name).symlink_to(ROOT / name)
    for name in ("my.py", "my_study.py"):
        (place / name).write_text("from fairmix_jax.lab.configs.digits import get_config\n")
    for name in ("my", "cifar10", "digits"):
        workdir.claim(place / "runs" / name, cifar10.get_config())
    lines = []
    for command in LAUNCHES:
        argv = shlex.split(command.removeprefix("python "))
        lines.append([*argv, *LAST.get(mode_of(command), ["--config.sweep=nosuch=1"])])
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], input=json.dumps(lines), text=True,
        cwd=place, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return {
        command: (int((place / f"{n}.status").read_text()), (place / f"{n}.txt").read_text())
        for n, command in enumerate(LAUNCHES)
    }


@pytest.mark.parametrize("command", LAUNCHES)
def test_a_documented_launch_is_understood(command, outcomes):
    """Its flags and its config; the last flag then ends it, in one line and with status 2."""
    status, said = outcomes[command]
    expected = SAID.get(mode_of(command), "nosuch is not a config field")
    is_engine_missing = "--backend=slurm" in command and "install the extra `sweep`" in said
    assert status == 2 and said.count("\n") == 1, said
    assert expected in said or is_engine_missing
    for named in re.findall(r"results/\S+", command):
        assert (ROOT / named).exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m fairmix_jax" in c])
def test_another_documented_program_takes_its_arguments(command, tmp_path):
    """What it is given is not there, which it says in one line."""
    last = ["--source=/nowhere"] if "prepare" in command else []
    if "robustbench" in command:
        last = [f"--{name}=x" for name in ("link", "name", "authors", "venue")]
    result = subprocess.run(
        [sys.executable, *shlex.split(command)[1:], *last], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr


def test_the_counts_of_the_house_are_printed():
    result = subprocess.run(
        [sys.executable, "tools/house.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert "lines of Python in the package" in result.stdout and not result.stderr
