"""Engines that run the members of a study elsewhere: `--backend=NAME` is the file `NAME.py`.

An engine places processes and replaces those that are lost. What a process runs is
`launch.py` on the folder of one member, which goes on where it was; so a member ends in the
same state wherever it runs, and the folder of the study must be one that all machines see.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairmix_jax.errors import EXIT_INTERRUPTED


class Job(NamedTuple):
    """A member to run.

    Attributes:
      name: in the study.
      path: its folder, which holds its `config.json`.
      with_training: whether to train it, or to evaluate it again.
      total_epochs: of its training.
      place: the working directory, to which paths in its config are relative.
      environment: variables that it is given beside those of its machine.
    """

    name: str
    path: Path
    with_training: bool
    total_epochs: int
    place: Path
    environment: Mapping[str, str]


def job(name: str, path: Path, *, with_training: bool, total_epochs: int) -> Job:
    """Returns a job that runs elsewhere as it would here."""
    chosen = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
    return Job(name, path.absolute(), with_training, total_epochs, Path.cwd(), chosen)


_PASSED_ON = ("JAX_", "XLA_", "LIBTPU_", "TFDS_")


OnChange = Callable[[str, dict[str, Any]], None]
"""Told a member's name and its new entry in `sweep.json`: `status` and what belongs to it."""


class Launch(NamedTuple):
    """What each run is given: `config.launch`.

    Attributes:
      num_processes: of one run, joined.
      processes_per_node: under Slurm.
      cpus, gpus: of a process.
      max_running: runs at a time; 0 for as many as fit.
      max_failures: how often a run may lose its worker, under Ray.
      asha_grace_epochs, asha_reduction: under Ray, runs that are behind are stopped from so
        many epochs on, all but one in so many; 0 epochs for none.
      minutes: after which Slurm has a run save and queues it again.
      partition: Slurm's; empty for its default.
      submitit: its executor, `"slurm"` or `"local"`; empty for Slurm where there is one.
    """

    num_processes: int = 1
    processes_per_node: int = 1
    cpus: int = 1
    gpus: int = 0
    max_running: int = 0
    max_failures: int = 3
    asha_grace_epochs: int = 0
    asha_reduction: int = 3
    minutes: int = 60
    partition: str = ""
    submitit: str = ""


Engine = Callable[[Sequence[Job], Path, Launch, OnChange], None]
"""`(jobs, folder, launch, on_change)`: runs the jobs and returns when the last one has ended.

`folder` is that of the study, for records of the engine's own.
"""


def tied(*program: Any) -> list[str]:
    """Returns a command that runs a Python program which ends when this process or thread does."""
    return [
        sys.executable,
        str(Path(__file__).parent / "tied.py"),
        str(os.getpid()),
        *map(str, program),
    ]


class Member:
    """One process of a member, which ends when this process or thread does.

    A context manager; leaving it early asks the process to save and stop.
    """

    def __init__(self, job: Job, *flags: str, number: int = 0):
        """Starts it; what it prints goes to `log.txt` in its folder, `log-N.txt` of others."""
        launcher = Path(__file__).parents[2] / "launch.py"
        mode = "train" if job.with_training else "evaluate"
        self._log = job.path / (f"log-{number}.txt" if number else "log.txt")
        self._start = time.monotonic()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                tied(launcher, f"--workdir={job.path}", f"--mode={mode}", *flags),
                cwd=job.place, env=os.environ | dict(job.environment), stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self, patience: float = 60.0) -> None:
        """Asks the process to save and stop, and ends it if it does not.

        Works in a signal handler that interrupts `outcome`, too, which holds the lock that
        `Popen.wait` needs.
        """
        deadline = time.monotonic() + patience
        if self._process.returncode is None:
            self._process.terminate()
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._has_ended():
            self._process.kill()

    def _has_ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, look) is not None
        except ChildProcessError:
            return True

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def outcome(self) -> dict[str, Any]:
        """Waits for the end; returns the entry in `sweep.json`.

        Raises:
          InterruptedError: it saved and stopped before its end, or was killed.
        """
        status = self._process.wait()
        if status == EXIT_INTERRUPTED or status < 0:
            raise InterruptedError(f"ended with status {status} before it was done")
        if status == 0:
            return {"status": "done", "seconds": round(time.monotonic() - self._start, 1)}
        lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        return {"status": "failed", "error": lines[-1].strip() if lines else f"status {status}"}


def joined(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the entry of a member of several processes: the first that failed, else done."""
    failed = [outcome for outcome in outcomes if outcome["status"] != "done"]
    return dict(failed[0] if failed else outcomes[0])
