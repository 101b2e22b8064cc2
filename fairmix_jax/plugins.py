"""Members of an axis, found by name: adding one is adding a file.

A member is a module in a folder `fairmix_jax/<axis>/` with a function `make`, whose keyword
arguments are the member's config fields and whose defaults are theirs.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax.errors import UsageError
from fairmix_jax.types import Source

_SECTION = {
    "data": "data",
    "models": "model",
    "bases": "base",
    "rules": "rule",
    "averaging": "averaging",
}


def names(axis: str) -> list[str]:
    """Returns the members of an axis, e.g. `"bases"` or `"models"`, sorted.

    Besides the package's own, these are the files in any folder `fairmix_jax/<axis>` on
    Python's path, as long as `fairmix_jax` there is a bare folder and not another copy of
    this package.
    """
    return sorted(
        module.name
        for module in pkgutil.iter_modules(_folders(axis))
        if not module.name.startswith("_") and hasattr(_module(axis, module.name), "make")
    )


def _folders(axis: str) -> list[str]:
    """The axis's folders, all of which its package is made to import from."""
    package = importlib.import_module(f"fairmix_jax.{axis}")
    for entry in sys.path:
        folder = Path(entry or ".").absolute() / "fairmix_jax"
        path = str(folder / axis)
        is_new = path not in package.__path__ and (folder / axis).is_dir()
        if is_new and not (folder / "__init__.py").exists():
            package.__path__.append(path)
    return list(package.__path__)


def _module(axis: str, name: str):
    return importlib.import_module(f"fairmix_jax.{axis}.{name}")


def load(axis: str, name: str) -> Callable[..., Any]:
    """Returns the `make` function of a member.

    Raises:
      UsageError: there is no such member; the message lists those there are.
    """
    if name not in names(axis):
        raise UsageError(
            f"{_SECTION[axis]}.name={name!r} is unknown; choose one of {', '.join(names(axis))}"
        )
    return _module(axis, name).make


def source(axis: str, name: str) -> Source:
    """Returns where a member comes from, its `SOURCE`; empty if its file does not say."""
    load(axis, name)
    return getattr(_module(axis, name), "SOURCE", Source("not stated"))


def parameters(axis: str, name: str) -> dict[str, Any]:
    """Returns the config fields of a member with their default values."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(load(axis, name)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }


def all_parameters(axis: str) -> dict[str, type]:
    """Returns the union of the members' config fields with their types."""
    return {
        field: type(default)
        for name in names(axis)
        for field, default in parameters(axis, name).items()
    }


def arguments(axis: str, chosen: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Returns the complete keyword arguments of the member that `chosen` names.

    Args:
      axis: as in `names`.
      chosen: the config section: `name` and any fields; `None` means the member's default.

    Raises:
      UsageError: a field is set that the chosen member does not have.
    """
    defaults = parameters(axis, chosen["name"])
    given = {k: v for k, v in chosen.items() if k != "name" and v is not None}
    for field in given.keys() - defaults.keys():
        raise UsageError(
            f"{_SECTION[axis]}.{field}={given[field]} does not belong to "
            f"{chosen['name']!r}, which takes {', '.join(defaults) or 'no fields'}; remove it"
        )
    return defaults | given
