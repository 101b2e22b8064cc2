"""Runs of a sweep that differ in what comes after training only are trained once."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from fairmix_jax.lab import workdir
from fairmix_jax.runtime import processes
from fairmix_jax.runtime.console import console, printable
from fairmix_jax.runtime.json_files import load, write_bytes, write_json


def take_over(directory: Path, config: ConfigDict, done: Sequence[Path]) -> None:
    """Copies what training made of a run with the same config into the folder of another one.

    The configs may differ in the fields that training does not read. Of several such runs one with
    a kept margin table is taken. Nothing happens if there is none, or if `directory` has
    checkpoints of its own. Stopped at any moment, it is done again or goes on as that run would.
    Of several processes all call this; errors as in `workdir.claim`.
    """
    source = processes.from_main(partial(_source, directory, config, done))
    if source is not None:
        console.print(f"training is that of {printable(source.name)} and is copied from there")
        workdir.claim(directory, config)
        processes.from_main(partial(_copy, source, directory))


def _source(directory: Path, config: ConfigDict, done: Sequence[Path]) -> Path | None:
    if (directory / "checkpoints").exists():
        return None
    wanted = workdir.binding(config, workdir.UNREAD_BY_TRAINING)
    like = [
        path for path in done if (path / "checkpoints").exists()
        and workdir.stored_binding(path, workdir.UNREAD_BY_TRAINING) == wanted
    ]  # fmt: skip
    return max(like, key=lambda path: (path / "calibration").exists(), default=None)


def _copy(source: Path, directory: Path) -> None:
    """The checkpoints come after the log, which is not written again where they are."""
    if (log := source / "metrics.jsonl").exists():
        write_bytes(directory / log.name, log.read_bytes())
    for name in ("calibration", "checkpoints"):
        if (source / name).exists():
            part = directory / f".{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source / name, part)
            part.rename(directory / name)
    told = {"trained_in": source.name} | load(source / "run.json")  # which may itself have it
    write_json(directory / "run.json", told)  # the last: it says that training has ended
