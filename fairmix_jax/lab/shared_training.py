"""Runs of a sweep that differ in what comes after training only are trained once."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fairmix_jax.lab import workdir
from fairmix_jax.runtime.console import console, printable
from fairmix_jax.runtime.json_files import load, write_json

_FILES = ("metrics.jsonl", "run.json")  # the last one says that training has ended
_FOLDERS = ("calibration", "checkpoints")


def take_over(directory: Path, config: ConfigDict, done: Sequence[Path]) -> None:
    """Copies what training made of a run with the same config into the folder of another one.

    The configs may differ in the fields that a run may change once it is trained. Of several such
    runs one with a kept margin table is taken. Nothing happens if there is none, or if
    `directory` has checkpoints of its own.
    """
    if (directory / "checkpoints").exists():
        return
    wanted = workdir.binding(config)
    like = [
        path for path in done
        if (path / "checkpoints").exists() and workdir.stored_binding(path) == wanted
    ]  # fmt: skip
    if not like:
        return
    source = max(like, key=lambda path: (path / "calibration").exists())
    directory.mkdir(exist_ok=True)
    console.print(f"trained as {printable(source.name)} was: taken from there")
    for name in _FOLDERS:
        if (source / name).exists():
            part = directory / f".{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / name, part)
            part.rename(directory / name)
    for name in _FILES:
        if name == "run.json":
            write_json(directory / name, load(source / name) | {"trained_in": source.name})
        elif (source / name).exists():
            shutil.copy(source / name, directory / name)
