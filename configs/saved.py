"""The config that a workdir was made with: `--config=configs/saved.py:WORKDIR`.

`launch.py` takes this one by itself when only `--workdir` is given.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = ""):
    """Returns the config in `WORKDIR/config.json`; fields younger than it have defaults."""
    path = Path(arg) / "config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; give --config=configs/NAME.py to start a run there")
    config = base.get_config()
    with config.ignore_type():
        config.update(ConfigDict(_tuples(json.loads(path.read_text()))))
    return config.lock()


def _tuples(value):
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
