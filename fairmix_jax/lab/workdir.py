"""The folder of a run: what it was asked to do and where it came from.

Of several processes all call these functions, and the main one reads and writes. This is also a
config file: `workdir.py:WORKDIR`, which the command line takes when only `--workdir` is given.
"""

import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax.lab.config import default_config, resolved
from fairmix_jax.runtime import json_files, processes, registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import flatten, read_json, write_json
from fairmix_jax.runtime.provenance import provenance

UNREAD_BY_TRAINING = (
    "evaluate.", "calibration.", "checkpoint.", "sweep", "report", "benchmark.", "compile.",
    "launch.", "audit.",
)  # fmt: skip
_MAY_CHANGE = (*UNREAD_BY_TRAINING, "data.dir", "num_devices")  # the same data, moved

_BEGUN = ("checkpoints/*/[0-9]*", "evaluation.json")
"""What a run, or one of a sweep's, has made that belongs to its config."""


def get_config(workdir: str = "") -> ConfigDict:
    """Returns the config in `WORKDIR/config.json`; fields younger than it have defaults."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"there is no {path}; give --config=NAME to start a run there")
    found = _as_now(json_files.load(path))  # each process by itself: they have not joined yet
    config = default_config()
    with config.ignore_type():
        config.update(ConfigDict(_with_tuples(found)))
    return config.lock()


def _as_now(found: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json`; a rule of 0.1 is a calibration now.

    Its calibration has what is not the default only, for `calibration.name` may be changed.
    """
    found = registry.completed(found)
    if (rule := found.get("rule", {})).get("name") == "head_norm":
        found["calibration"] = dict(rule)
        found["rule"] = {"name": "none"}
    if "name" in (chosen := found.get("calibration", {})):
        default = registry.parameters("calibrations", chosen["name"])
        own = {k: v for k, v in chosen.items() if k == "name" or default.get(k) != v}
        found["calibration"] = own
    return found


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes `workdir` the folder of this config: writes `config.json`; errors as in `require`."""
    require(workdir, config)
    processes.from_main(lambda: write_json(workdir / "config.json", resolved(config)))


def require(workdir: Path, config: ConfigDict) -> None:
    """Raises a `UsageError` unless `workdir` may become the folder of this config.

    It has to be one that can be written. If it holds something of a run, that may go on with other
    settings of evaluation and checkpoints, and with its data in another place; the message names
    the first other field that has changed. A run that has not begun binds nobody.
    """
    fixed = binding(config)
    processes.require_equal("the config", json.dumps(fixed, sort_keys=True))
    processes.from_main(lambda: require_writable(workdir))
    old = processes.from_main(partial(stored_binding, workdir))
    made = [found for name in _BEGUN for found in (name, f"*/{name}")]
    begun = processes.from_main(lambda: any(any(workdir.glob(name)) for name in made))
    for field, value in fixed.items() if begun else ():
        if old.get(field, value) != value:
            raise UsageError(
                f"workdir={str(workdir)!r} holds a run with {field}={old[field]!r}, now "
                f"{value!r}; give another --workdir or the same value"
            )


def binding(config: ConfigDict, free: tuple[str, ...] = _MAY_CHANGE) -> dict[str, Any]:
    """Returns the fields that a run keeps, once begun, by their dotted names: all but the free."""
    return _binding(json.loads(json.dumps(resolved(config))), free)


def stored_binding(workdir: Path, free: tuple[str, ...] = _MAY_CHANGE) -> dict[str, Any]:
    """Returns the same of what `config.json` says, empty if there is none."""
    path = workdir / "config.json"
    return _binding(_as_now(json_files.load(path)), free) if path.exists() else {}


def _binding(plain: dict[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in flatten(plain) if not k.startswith(free)}


def require_writable(workdir: Path) -> None:
    """Raises a `UsageError` unless the folder and its report can be written, or made."""
    for folder in (workdir, workdir / "report"):
        if not is_writable(folder):
            raise UsageError(f"{str(folder)!r} cannot be written; give another --workdir")


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    every = (folder.absolute(), *folder.absolute().parents)
    nearest = next(path for path in every if path.exists() or path.is_symlink())
    return nearest.is_dir() and os.access(nearest, os.W_OK)


@contextmanager
def held(workdir: Path, *, patience: float = 20.0) -> Generator[None]:
    """Keeps other runs out of `workdir` while it lasts; a killed run holds nothing.

    Raises a `UsageError` if another run has not left it after `patience` seconds.
    """
    with ExitStack() as opened:
        processes.from_main(lambda: _lock(workdir, patience, opened))
        yield


def _lock(workdir: Path, patience: float, opened: ExitStack) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    file = opened.enter_context((workdir / ".lock").open("w"))
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"workdir={str(workdir)!r} is in use by another run; wait for it, or give "
                    "another --workdir"
                ) from error
            time.sleep(0.2)
        except OSError:
            return  # a file system without locks


def holds_run(workdir: Path) -> bool:
    """Whether something was trained here; an unpacked run has no checkpoints."""
    has_checkpoints = processes.from_main((workdir / "checkpoints").exists)
    return has_checkpoints or "state_sha256" in recorded(workdir)


def record(workdir: Path, **facts: Any) -> None:
    """Adds facts to `run.json`, beside versions, device, command and commit of this process."""
    content = recorded(workdir) | provenance() | facts
    processes.from_main(lambda: write_json(workdir / "run.json", content))


def recorded(workdir: Path) -> dict[str, Any]:
    """Returns the content of `run.json`, empty if there is none."""
    return read_json(workdir / "run.json", is_remade=True) or {}
