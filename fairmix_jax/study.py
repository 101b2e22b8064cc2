"""A study: one run, or the grid of runs that `config.sweep` describes."""

import ast
import itertools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import config as config_lib
from fairmix_jax import evaluate, gaussian_report, report, train, workdir
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import build
from fairmix_jax.progress import console

_REPORTS = {"classes": report.write, "gaussian": gaussian_report.write}


def run(config: ConfigDict, directory: Path, *, with_training: bool) -> None:
    """Trains (if so told), evaluates and reports a config, or each member of its grid.

    A single run has `directory` to itself; a grid has one folder a member in it, and the
    comparison in `directory/report`. What is done is not done again.

    Raises:
      UsageError: the sweep or a member of it is not a valid config.
    """
    members = [(directory / name, override(config, new)) for name, new in expand(config.sweep)]
    workdir.claim(directory, config)
    for number, (path, member) in enumerate(members, start=1):
        console.print(f"[{number}/{len(members)}] {path.name}", markup=False)
        workdir.claim(path, member)
        _run_member(member, path, with_training=with_training)
        if config.report == "classes":
            report.write(path, [path], show=False)
    if members:
        workdir.record(directory)
    else:
        _run_member(config, directory, with_training=with_training)
    paths = [path for path, _ in members] or [directory]
    _REPORTS[config.report](directory, paths)


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
    settings = config_lib.resolved(config)["evaluate"]
    return path.exists() and json.loads(path.read_text())["settings"] == settings


def expand(sweep: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the members of a grid: their names and the fields they override.

    `"mixing.name=none,same_class seed=0,1"` has four members, the last field varying
    fastest; the first is named `mixing.name=none,seed=0`. `"seed+data.draw=0,1"` gives two
    fields the same value; `"|"` separates grids that are run one after the other. An empty
    text has no members.

    Raises:
      UsageError: the text is not of that form.
    """
    members = {}
    for grid in sweep.split("|") if sweep.strip() else ():
        axes = [_axis(part) for part in grid.split()]
        for chosen in itertools.product(*axes):
            name = ",".join(f"{fields}={text}" for fields, text in chosen)
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
