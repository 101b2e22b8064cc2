"""`--mode=benchmark`: training steps of a grid against each other, or attacks against the limit."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax.benchmark import steps, throughput


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Runs `throughput.run` if the config names attacks or bases to time, else `steps.run`.

    Returns: the content of `directory/benchmark.json`.

    Raises:
      UsageError: a member of the grid is not a valid config.
    """
    has_subjects = config.benchmark.attacks or config.benchmark.bases
    return (throughput if has_subjects else steps).run(config, directory)
