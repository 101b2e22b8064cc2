"""The grids of `config.sweep`: which runs they describe, and the config of each."""

import ast
import itertools
import re
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import config as config_lib
from fairmix_jax.errors import UsageError

_MAX_NAME = 200
_COMMA = re.compile(r",(?![^(]*\))")


def expand(sweep: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the members of a grid: their names and the fields they override.

    `"mixing.name=none,same_class seed=0,1"` has four members, the last field varying
    fastest; the first is named `mixing.name=none,seed=0` (`/` in values becomes `_`).
    `"seed+data.draw=0,1"` gives two fields the same value; `"rule.weights=(1,2),(2,1)"` has
    two values; `"|"` separates grids that are run one after the other. An empty text has no
    members.

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
    fields, _, text = part.partition("=")
    values = _COMMA.split(text)
    if not (fields and all(values)):
        raise UsageError(f"sweep={part!r} is not understood; write field=value,value")
    return [(fields, value) for value in values]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def single(text: str) -> dict[str, Any]:
    """Returns the fields of a grid that has one member.

    Raises:
      UsageError: it has none, or several.
    """
    members = expand(text)
    if len(members) != 1:
        raise UsageError(f"{text!r} has {len(members)} members; give each field one value")
    return members[0][1]


def override(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A checked copy of the config with some fields changed, of no sweep and no study."""
    member = config.copy_and_resolve_references()
    for field, value in changes.items():
        config_lib.get(member, field)
        section, _, name = field.rpartition(".")
        try:
            (config_lib.get(member, section) if section else member)[name] = value
        except TypeError as error:
            raise UsageError(f"sweep: {field}={value!r} has the wrong type: {error}") from error
    member.sweep = ""
    member.study = {name: type(value)() for name, value in member.study.items()}
    config_lib.check(member)
    return member
