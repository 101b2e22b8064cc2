"""Members of an axis, found by name: adding one is adding a file.

A member is a module with a function `make`: ours in `methods/<axis>/`, `models/` or `data/`, a
user's in a folder `fairmix_jax/<axis>/` of their own. The keyword arguments of `make` are the
member's config fields, with their defaults and annotations: a type, or one with limits, such as
`types.Share`.
"""

import functools
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.runtime import declared
from fairmix_jax.runtime.errors import UsageError

AXES = {
    "data": "data", "model": "models", "base": "bases", "rule": "rules", "averaging": "averaging",
    "calibration": "calibrations",
}  # fmt: skip
"""The axis that each section of a config chooses from."""

_SECTION = {axis: section for section, axis in AXES.items()}


def names(axis: str) -> list[str]:
    """Returns the members of an axis, e.g. `"bases"` or `"models"`, sorted.

    Besides the package's own, these are the files in any folder `fairmix_jax/<axis>` on Python's
    path that does not lie in another copy of this package.
    """
    return list(_members(axis))


def _members(axis: str) -> dict[str, Any]:
    """The modules of an axis that have a `make`, by name; its package can import them all."""
    room = axis if axis in ("data", "models") else f"methods.{axis}"
    package: Any = importlib.import_module(f"fairmix_jax.{room}")
    for entry in sys.path:
        folder = Path(entry or ".").absolute() / "fairmix_jax"
        path = str(folder / axis)
        is_new = path not in package.__path__ and (folder / axis).is_dir()
        if is_new and not (folder / "__init__.py").exists():
            package.__path__.append(path)
    found = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    public = [name for name in found if not name.startswith("_")]
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in public}
    return {name: module for name, module in modules.items() if hasattr(module, "make")}


def member(axis: str, name: str) -> Any:
    """Returns the module of a member; raises a `UsageError` that lists those there are."""
    members = _members(axis)
    own = f"put your own fairmix_jax/{axis}/NAME.py into a folder on PYTHONPATH"
    field = f"{_SECTION[axis]}.name"
    declared.Field(field, str, str, "", choices=list(members), form=own).require(name)
    return members[name]


def load(axis: str, name: str) -> Callable[..., Any]:
    """Returns the `make` function of a member; errors as in `member`."""
    return member(axis, name).make


def fields(axis: str, name: str) -> dict[str, declared.Field]:
    """Returns the config fields of a member by the names of its arguments."""
    return _fields(axis, load(axis, name))


def _fields(axis: str, make: Callable[..., Any]) -> dict[str, declared.Field]:
    return {
        p.name: declared.field(f"{_SECTION[axis]}.{p.name}", p.annotation, p.default)
        for p in inspect.signature(make).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def checked(make: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a member's `make`: what its annotations exclude is a ValueError, as in a config."""
    known = _fields(make.__module__.split(".")[-2], make)

    @functools.wraps(make)
    def careful(*given: Any, **options: Any) -> Any:
        try:
            for name in known.keys() & options.keys():
                known[name].require(options[name])
        except UsageError as error:
            raise ValueError(str(error)) from error
        return make(*given, **options)

    return careful


def parameters(axis: str, name: str) -> dict[str, Any]:
    """Returns the config fields of a member with their default values."""
    return {name: field.default for name, field in fields(axis, name).items()}


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config or card in JSON says, with defaults of arguments younger than it.

    Its sections are as in a config; those of members that are not there stay as they are.
    """
    found = dict(content)
    for section in AXES.keys() & found.keys():
        chosen, axis = found[section], AXES[section]
        if isinstance(chosen, Mapping) and (name := chosen.get("name")) in names(axis):
            defaults = json.dumps({"name": name} | parameters(axis, name))
            found[section] = json.loads(defaults) | dict(chosen)
    return found


def arguments(axis: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the complete keyword arguments of the member that `chosen` names.

    That is a config section: `name` and any fields, of which `None` is the member's default. Raises
    a `UsageError` if a field is set that the chosen member does not have, or to a wrong value.
    """
    known, name = fields(axis, chosen["name"]), f"{_SECTION[axis]}.name"
    given = {k: v for k, v in chosen.items() if k != "name" and v is not None}
    for field, value in given.items():
        if field not in known:
            homes = [f"{name}={other}" for other in names(axis) if field in fields(axis, other)]
            raise UsageError(
                f"{_SECTION[axis]}.{field}={declared.shown(value)} does not belong to {name}="
                f"{chosen['name']}, which takes {', '.join(known) or 'no fields'}; remove it"
                f"{', or choose ' * bool(homes)}{' or '.join(homes)}"
            )
        known[field].require(value)
    return {name: field.default for name, field in known.items()} | given
