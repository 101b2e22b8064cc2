"""A study: one run, or the grid of runs that `config.sweep` describes."""

import ast
import itertools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import config as config_lib
from fairmix_jax import evaluate, report, train, workdir
from fairmix_jax.errors import UsageError
from fairmix_jax.experiment import build
from fairmix_jax.progress import console


def run(config: ConfigDict, directory: Path, *, with_training: bool) -> None:
    """Trains (if so told), evaluates and reports a config, or each member of its grid.

    A single run has `directory` to itself; a grid has one folder a member in it, and the
    comparison in `directory/report`. What is done is not done again.

    Raises:
      UsageError: the sweep or a member of it is not a valid config.
    """
    members = [(directory / name, _override(config, new)) for name, new in expand(config.sweep)]
    workdir.claim(directory, config)
    for number, (path, member) in enumerate(members, start=1):
        console.print(f"[{number}/{len(members)}] {path.name}", markup=False)
        workdir.claim(path, member)
        _run_member(member, path, with_training=with_training)
        report.write(path, [path], show=False)
    if members:
        workdir.record(directory)
    else:
        _run_member(config, directory, with_training=with_training)
    report.write(directory, [path for path, _ in members] or [directory])


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
    fastest; the first is named `mixing.name=none,seed=0`. An empty text has none.

    Raises:
      UsageError: the text is not of that form.
    """
    axes = []
    for part in sweep.split():
        field, _, values = part.partition("=")
        if not (field and all(values.split(","))):
            raise UsageError(f"sweep={part!r} is not understood; write field=value,value")
        axes.append([(field, value) for value in values.split(",")])
    members = itertools.product(*axes) if axes else ()
    return [
        (
            ",".join(f"{field}={text}" for field, text in member),
            {field: _literal(text) for field, text in member},
        )
        for member in members
    ]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _override(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
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
