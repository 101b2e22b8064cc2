"""The folder of a run: what it was asked to do and where it came from.

Of several processes all call these functions, and the main one reads and writes.
"""

import datetime
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fairmix_jax import cluster
from fairmix_jax.config import flatten, resolved
from fairmix_jax.errors import UsageError
from fairmix_jax.export import write_json

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
_MAY_CHANGE = (
    "evaluate.", "checkpoint.", "data.dir", "num_devices", "sweep", "report", "benchmark.",
    "compile.", "launch.",
)  # fmt: skip


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes `workdir` the folder of this config: writes `config.json`, or compares with it.

    A run may go on with other settings of evaluation and checkpoints, and with its data in
    another place; nothing else may change.

    Raises:
      UsageError: `workdir` belongs to a run of another config; names the first difference.
    """
    mine = {k: v for k, v in flatten(resolved(config)) if not k.startswith(_MAY_CHANGE)}
    cluster.require_equal("the config", json.dumps(mine, sort_keys=True, default=str))
    cluster.from_main(partial(_claim, workdir, config))


def _claim(workdir: Path, config: ConfigDict) -> None:
    path = workdir / "config.json"
    new = resolved(config)
    if path.exists():
        old = dict(flatten(json.loads(path.read_text())))
        for field, value in flatten(json.loads(json.dumps(new))):
            if field.startswith(_MAY_CHANGE) or old.get(field, value) == value:
                continue
            raise UsageError(
                f"workdir={str(workdir)!r} holds a run with {field}={old[field]!r}, now "
                f"{value!r}; give another --workdir or the same value"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, new)


@contextmanager
def held(workdir: Path, *, patience: float = 20.0) -> Generator[None]:
    """Keeps other runs out of `workdir` while it lasts; a killed run holds nothing.

    Raises:
      UsageError: another run has not left it after `patience` seconds.
    """
    files: list[Any] = []
    cluster.from_main(lambda: files.append(_locked(workdir, patience)))
    try:
        yield
    finally:
        for file in files:
            file.close()


def _locked(workdir: Path, patience: float) -> Any:
    workdir.mkdir(parents=True, exist_ok=True)
    file, deadline = (workdir / ".lock").open("w"), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                file.close()
                raise UsageError(
                    f"workdir={str(workdir)!r} is in use by another run; wait for it, or give "
                    "another --workdir"
                ) from error
            time.sleep(0.2)
        except OSError:
            return file  # a file system without locks
        else:
            return file


def record(workdir: Path, **facts: Any) -> None:
    """Adds facts to `run.json`, beside versions, device, command and commit of this process."""
    content = recorded(workdir) | provenance() | facts
    cluster.from_main(lambda: write_json(workdir / "run.json", content))


def recorded(workdir: Path) -> dict[str, Any]:
    """Returns the content of `run.json`, empty if there is none."""
    return read_json(workdir / "run.json") or {}


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, `None` if there is none."""
    return cluster.from_main(lambda: json.loads(path.read_text()) if path.exists() else None)


def provenance() -> dict[str, Any]:
    """Returns where results of this process come from."""
    devices = jax.devices()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.argv,
        "commit": _commit(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "platform": devices[0].platform,
        "processor": _processor(),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def _commit() -> str | None:
    """The commit of the source tree, marked `+` when it has been changed; `None` outside git."""
    root = Path(__file__).parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _processor() -> str:
    """The processor's name and the cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
