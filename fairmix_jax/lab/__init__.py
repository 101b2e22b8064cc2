"""The command line: configs, sweeps, engines, benchmarks, and compilation for absent pods."""

import importlib
from pathlib import Path

_CLONE = Path(__file__).parents[2]

# A wheel has the configs in this folder. In a clone they lie at its top, where people look.
if not Path(__file__).with_name("configs").is_dir() and (_CLONE / "configs").is_dir():
    __path__.append(str(_CLONE))


def configs_folder() -> Path:
    """Returns the folder of our own configs, `fairmix_jax.lab.configs`."""
    return Path(next(iter(importlib.import_module("fairmix_jax.lab.configs").__path__)))
