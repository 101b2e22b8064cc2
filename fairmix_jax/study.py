"""A study: one run, or the grid of runs that `config.sweep` describes."""

import ast
import itertools
import json
import time
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import config as config_lib
from fairmix_jax import evaluate, gaussian_report, report, train, workdir
from fairmix_jax.errors import MembersFailed, UsageError
from fairmix_jax.experiment import build
from fairmix_jax.export import write_json
from fairmix_jax.progress import console

_MAX_NAME = 200
_REPORTS = {"classes": report.write, "gaussian": gaussian_report.write}


def run(config: ConfigDict, directory: Path, *, with_training: bool) -> None:
    """Trains (if so told), evaluates and reports a config, or each member of its grid.

    A single run has `directory` to itself; a grid has one folder a member in it, and the
    comparison of those that are done in `directory/report`. What is trained is not trained
    again, nor evaluated unless told so. A member that fails does not stop the others:
    `directory/sweep.json` lists it, its traceback is in `error.txt` in its folder, and
    running the grid again tries it again.

    Raises:
      UsageError: the sweep or the single run is not a valid config.
      MembersFailed: some members of the grid failed; raised once the rest is done.
    """
    if not config.sweep.strip():
        workdir.claim(directory, config)
        _run_member(config, directory, with_training=with_training)
        _REPORTS[config.report](directory, [directory])
        return
    members = expand(config.sweep)
    for field in {field for _, changes in members for field in changes}:
        config_lib.get(config, field)
    workdir.claim(directory, config)
    path = directory / "sweep.json"
    before = json.loads(path.read_text())["members"] if path.exists() else {}
    states = {name: before.get(name, {"status": "waiting"}) for name, _ in members}
    for number, (name, changes) in enumerate(members, start=1):
        console.print(f"[{number}/{len(members)}] {name}", markup=False)
        states[name] = {"status": "running"}
        write_json(path, {"members": states})
        states[name] = _try_member(config, changes, directory / name, with_training=with_training)
        write_json(path, {"members": states})
    workdir.record(directory)
    done = [directory / name for name in states if states[name]["status"] == "done"]
    if done:
        _REPORTS[config.report](directory, done)
    failed = [name for name in states if states[name]["status"] == "failed"]
    if failed:
        raise MembersFailed(
            f"{len(failed)} of {len(members)} members failed: {failed[0]}: "
            f"{states[failed[0]]['error']} (all in {path})"
        )


def _try_member(
    config: ConfigDict, changes: dict[str, Any], path: Path, *, with_training: bool
) -> dict[str, Any]:
    """Runs a member and returns its entry in `sweep.json`."""
    start = time.monotonic()
    try:
        member = override(config, changes)
        workdir.claim(path, member)
        _run_member(member, path, with_training=with_training)
        if config.report == "classes":
            report.write(path, [path], show=False)
    except Exception as error:  # whatever it is, the other members are not to blame
        message = " ".join(f"{type(error).__name__}: {error}".split())
        console.print(f"failed: {message}", markup=False)
        path.mkdir(parents=True, exist_ok=True)
        (path / "error.txt").write_text("".join(traceback.format_exception(error)))
        return {"status": "failed", "error": message}
    (path / "error.txt").unlink(missing_ok=True)
    return {"status": "done", "seconds": round(time.monotonic() - start, 1)}


def _run_member(config: ConfigDict, directory: Path, *, with_training: bool) -> None:
    is_trained = "state_sha256" in workdir.recorded(directory)
    if with_training and is_trained and _is_evaluated(config, directory):
        return
    experiment = build(config)
    if with_training and not is_trained:
        workdir.record(directory)
        sha256 = train.fit(config, experiment, directory)
        workdir.record(directory, state_sha256=sha256)
        console.print(f"final state sha256 {sha256}")
    evaluate.run(config, experiment, directory)


def _is_evaluated(config: ConfigDict, directory: Path) -> bool:
    path = directory / "evaluation.json"
    settings = json.loads(json.dumps(config_lib.resolved(config)["evaluate"]))
    return path.exists() and json.loads(path.read_text())["settings"] == settings


def expand(sweep: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the members of a grid: their names and the fields they override.

    `"mixing.name=none,same_class seed=0,1"` has four members, the last field varying
    fastest; the first is named `mixing.name=none,seed=0` (`/` in values becomes `_`).
    `"seed+data.draw=0,1"` gives two fields the same value; `"|"` separates grids that are
    run one after the other. An empty text has no members.

    Raises:
      UsageError: the text is not of that form, or a name is too long for a folder.
    """
    members = {}
    for grid in sweep.split("|") if sweep.strip() else ():
        axes = [_axis(part) for part in grid.split()]
        for chosen in itertools.product(*axes):
            name = ",".join(f"{fields}={text}" for fields, text in chosen).replace("/", "_")
            if len(name.encode()) > _MAX_NAME:
                raise UsageError(
                    f"sweep: the member {name!r} has a name of more than {_MAX_NAME} bytes; vary "
                    "fewer fields, or give shorter values"
                )
            members[name] = {
                field: _literal(text) for fields, text in chosen for field in fields.split("+")
            }
    return list(members.items())


def _axis(part: str) -> list[tuple[str, str]]:
    fields, _, values = part.partition("=")
    if not (fields and all(values.split(","))):
        raise UsageError(f"sweep={part!r} is not understood; write field=value,value")
    return [(fields, value) for value in values.split(",")]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def override(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A checked copy of the config with some fields changed and no sweep."""
    member = config.copy_and_resolve_references()
    for field, value in changes.items():
        config_lib.get(member, field)
        section, _, name = field.rpartition(".")
        try:
            (config_lib.get(member, section) if section else member)[name] = value
        except TypeError as error:
            raise UsageError(f"sweep: {field}={value!r} has the wrong type: {error}") from error
    member.sweep = ""
    config_lib.check(member)
    return member
