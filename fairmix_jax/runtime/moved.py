"""Other names of modules: a short one for calibration, and those of version 0.1, still good."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

NEW_PATHS = {
    "averaging": "methods.averaging",
    "bases": "methods.bases",
    "calibration": "methods.class_bias",
    "checkpoint": "training.checkpoints",
    "class_statistics": "methods.class_statistics",
    "conv": "models.convolution",
    "cpu": "runtime.cpu",
    "errors": "runtime.errors",
    "evaluate": "lab.evaluate_run",
    "grid": "runtime.field_texts",
    "metrics": "classwise.metrics",
    "progress": "runtime.console",
    "robustbench": "export.robustbench",
    "rules": "methods.rules",
    "tables": "runtime.tables",
    "torch_export": "export.torch_export",
}
"""Below `fairmix_jax`: the old path and the new one, which holds for what is inside, too."""

_PACKAGE = "fairmix_jax."


class _SameModule(importlib.machinery.SourceFileLoader):
    """Loads a module under its old name: imported, it is the same object; run, the same code."""

    def __init__(self, old: str, new: importlib.machinery.ModuleSpec):
        super().__init__(old, str(new.origin))
        self._new = new

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return importlib.import_module(self._new.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._new  # which importing it under the old name has replaced


class Finder(importlib.abc.MetaPathFinder):
    """Finds modules by the paths in `NEW_PATHS`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the spec of a module that has moved, `None` for every other."""
        old, dot, inside = fullname.removeprefix(_PACKAGE).partition(".")
        if not fullname.startswith(_PACKAGE) or old not in NEW_PATHS:
            return None
        new = importlib.util.find_spec(f"{_PACKAGE}{NEW_PATHS[old]}{dot}{inside}")
        return new and importlib.util.spec_from_loader(fullname, _SameModule(fullname, new))


def install() -> None:
    """Makes the old paths work in this process."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
