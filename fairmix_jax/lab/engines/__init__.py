"""Engines that do the runs of a sweep elsewhere, each in a file of its own.

An engine places processes and replaces those that are lost. A process runs the command line
on the folder of one run, which goes on where it was; so a run ends in the same state wherever
it is done, and the folder of the sweep must be one that all machines see.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fairmix_jax.lab.schema import Launch
from fairmix_jax.runtime.errors import EXIT_INTERRUPTED, refused
from fairmix_jax.runtime.json_files import read_lines


class RunRequest(NamedTuple):
    """A run that an engine is to do."""

    name: str  # in the sweep
    path: Path  # its folder, which holds its `config.json`
    with_training: bool  # or evaluate it again
    total_epochs: int
    cwd: Path  # to which paths in its config are relative
    environment: Mapping[str, str]  # beside that of its machine


def request(name: str, path: Path, with_training: bool, total_epochs: int) -> RunRequest:
    """Returns the request of a run that goes elsewhere as it would here."""
    passed_on = ("JAX_", "XLA_", "LIBTPU_", "TFDS_")
    chosen = {k: v for k, v in os.environ.items() if k.startswith(passed_on)}
    return RunRequest(name, path.absolute(), with_training, total_epochs, Path.cwd(), chosen)


OnChange = Callable[[str, dict[str, Any]], None]
"""Told a run's name and its new entry in `sweep.json`: `status` and what belongs to it."""

Engine = Callable[[Sequence[RunRequest], Path, Launch, OnChange], None]
"""`(requests, folder, launch, on_change)`: does the runs and returns when the last has ended.

`folder` is that of the sweep, for records of the engine's own.
"""


def load(backend: str) -> Engine:
    """Returns the engine of a backend; without the extra `sweep`, a `UsageError` that says so."""
    remedy = "install the extra `sweep`: pip install 'ray[tune]' submitit"
    with refused(f"--backend={backend} cannot be loaded", remedy):
        return importlib.import_module(f"{__name__}.{backend}").run


def start(
    *flags: str, environment: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> subprocess.Popen:
    """Starts the command line in a process that ends when this process or thread does.

    It runs this very package, and finds what users add to it where this process does.
    """
    wrapper = Path(__file__).with_name("dies_with_parent.py")
    added = [Path(entry).absolute() for entry in sys.path if Path(entry, "fairmix_jax").is_dir()]
    folders = dict.fromkeys([Path(__file__).absolute().parents[3], *added])
    path = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.Popen(
        [sys.executable, wrapper, str(os.getpid()), "-P", "-m", "fairmix_jax.lab", *flags],
        env=os.environ | path | dict(environment), **options,
    )  # fmt: skip


class RunProcess:
    """One process of a run, as a context manager; leaving it early asks it to save and stop.

    What it prints goes to `log.txt` in the run's folder; of others than the first, to `log-N.txt`.
    """

    def __init__(self, run: RunRequest, *flags: str, number: int = 0):
        mode = "train" if run.with_training else "evaluate"
        self._log = run.path / (f"log-{number}.txt" if number else "log.txt")
        self._start = time.monotonic()
        with self._log.open("a") as log:
            self._process = start(
                f"--workdir={run.path}", f"--mode={mode}", *flags,
                environment=run.environment, cwd=run.cwd, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> "RunProcess":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """Asks the process to save and stop, and ends it if it has not in a minute."""
        self._process.terminate()
        try:
            self._process.wait(60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def outcome(self) -> dict[str, Any]:
        """Waits for the end; returns the entry in `sweep.json`.

        Raises an `InterruptedError` if it stopped before its end, having saved, or was killed.
        """
        while self.is_running:  # `wait` would hold the lock that `stop` needs in a signal handler
            time.sleep(0.05)
        status = self._process.returncode
        if status == EXIT_INTERRUPTED or status < 0:
            raise InterruptedError(f"ended with status {status} before it was done")
        if status == 0:
            return {"status": "done", "seconds": round(time.monotonic() - self._start, 1)}
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return {"status": "failed", "error": lines[-1].strip() if lines else f"status {status}"}


def lines(path: Path, process: Any) -> Iterator[dict[str, Any]]:
    """Yields the lines of a JSON log, as they are written, until the process ends."""
    seen, is_running = 0, True
    while is_running:
        is_running = process.is_running
        found = read_lines(path) if path.exists() else []
        yield from found[seen:]
        seen = len(found)
        time.sleep(0.5 if is_running else 0)


def combined(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the entry of a run of several processes: the first that failed, else done."""
    failed = (outcome for outcome in outcomes if outcome["status"] != "done")
    return dict(next(failed, outcomes[0]))
