"""Runs, their final results, and the verdict on what a command made of a fault."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from conftest import ROOT

HERE = Path(__file__).parent
PROGRAM = "launch.py"
COMMON = (
    "--config=configs/digits.py:smoke", "--config.model.name=linear", "--config.batch_size=40",
    "--config.attack.num_steps=2", "--config.attack.epsilon=0.1", "--config.data.num_train=250",
    "--config.validation.num_steps=2", "--config.validation.every_epochs=2",
    "--config.total_epochs=6", "--config.checkpoint.every_epochs=1",
    "--config.evaluate.num_examples=20", "--config.evaluate.radii=()",
)  # fmt: skip
RUN = (*COMMON, "--config.evaluate.attacks=clean,pgd3,square")
ATTACKED = (*COMMON, "--config.evaluate.attacks=clean,pgd3,autoattack")
SWEEP = (*RUN, "--mode=sweep", "--config.sweep=seed=0,1")
LIMIT = 300


class Ended(NamedTuple):
    """How a command ended: its status (`None`: too long), and what it wrote to its outputs."""

    status: int | None
    out: str
    err: str


class ForkServer:
    """Runs commands of this process's environment, see `fork_server`; a context manager."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        memory = Path(tempfile.gettempdir()) / f"fairmix_jax_charts_{os.getuid()}"
        with (self._folder / "server.txt").open("w") as shown:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "fork_server.py"), str(memory)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=shown, text=True,
                cwd=ROOT, env=environment(),
            )  # fmt: skip
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def __call__(self, *argv, kill_at=""):
        out, err = self._folder / "out.txt", self._folder / "err.txt"
        request = {"argv": argv, "out": str(out), "err": str(err), "limit": LIMIT}
        request["kill_at"] = str(kill_at)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._folder / "server.txt").read_text()
        return Ended(json.loads(answer), out.read_text(), err.read_text())

    def launch(self, *flags, **options):
        """Runs `launch.py`."""
        return self(PROGRAM, *flags, **options)


def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"TFDS_DATA_DIR": "", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def timeless(value):
    """Plain data without what differs from one run to the next: seconds, dates, commands.

    So do checksums of such data. A curve of survivors over seconds keeps the survivors.
    """
    if isinstance(value, dict):
        return {
            key: [[name, left] for name, _, left in item] if key == "curve" else timeless(item)
            for key, item in value.items()
            if key not in ("provenance", "checksum") and not re.search(r"(^|_)seconds?(_|$)", key)
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def final(folder):
    """Returns the results of a run or sweep, by the files that hold them."""
    found = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        if "checkpoints" not in path.relative_to(folder).parts:
            kept = _content(path)
            if kept is not None:
                found[str(path.relative_to(folder))] = kept
    return found


def _content(path):
    try:
        if path.name == "run.json":
            return json.loads(path.read_text()).get("state_sha256")
        if path.name in ("evaluation.json", "model.json"):
            return timeless(json.loads(path.read_text()))
        if path.name == "sweep.json":
            members = json.loads(path.read_text())["members"]
            return {name: state["status"] for name, state in members.items()}
        if path.name == "metrics.jsonl":
            return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        if path.suffix == ".npz" and path.name != "under_way.npz":
            with (
                path.open("rb") as file,
                np.load(file) as arrays,
            ):  # which leaves a path's file open
                return {name: _digest(arrays[name].tobytes()) for name in arrays.files}
        if path.name == "table.md":
            return re.sub(r"(?m)^\| seconds \|.*\n", "", path.read_text())
        if path.name == "model_card.md":
            return path.read_text().split("## Where it comes from")[0]
        if path.name in ("model.safetensors", "classes.png", "tradeoff.png", "training.png"):
            return _digest(path.read_bytes())
    except Exception as error:  # a damaged file, which is not the sound result
        return repr(error)
    return None


def _digest(content):
    return hashlib.sha256(content).hexdigest()


def differing(expected, found):
    """Returns the names of the files whose results differ."""

    def text(content):  # in which NaN is NaN
        return json.dumps(content, sort_keys=True)

    names = sorted(expected.keys() | found.keys())
    return [name for name in names if text(expected.get(name)) != text(found.get(name))]


def said_clearly(ended, *, about=()):
    """Returns what is wrong with how a command refused; empty if it is one clear line.

    `about` are names of which the message has one.
    """
    lines = ended.err.strip().splitlines()
    if "Traceback" in ended.err + ended.out:
        return f"traceback: {lines[-1] if lines else ''}"
    if ended.status not in (1, 2):
        return f"status {ended.status}"
    if not lines or not lines[-1].startswith((f"{PROGRAM}: ", "load: ")):
        return f"no line says why: {lines[-1:]}"
    if sum(line.startswith(PROGRAM) for line in lines) > 1:
        return f"several lines: {lines}"
    if about and not any(name in ended.err for name in about):
        return f"names no file: {lines[-1]}"
    return ""


def copied(source, target):
    shutil.copytree(source, target, symlinks=True)
    return target
