"""`--mode=benchmark`: training steps of a grid against each other, or attacks against the limit."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab.benchmark import steps, throughput, throughput_tables
from fairmix_jax.runtime import field_texts
from fairmix_jax.runtime.json_files import write_json
from fairmix_jax.runtime.provenance import provenance
from fairmix_jax.runtime.tables import publish


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Times the attacks and bases that a config names, if it names any, else its training steps.

    Returns the content of `directory/benchmark.json`; beside it lie tables, and figures. Raises a
    `UsageError` if a member of the grid is not a valid config, or an attack is unknown.
    """
    members = field_texts.expand(config.sweep) or [("config", {})]
    configs = {name: config_lib.override(config, changes) for name, changes in members}
    has_subjects = config.benchmark.attacks or config.benchmark.bases
    result = (throughput if has_subjects else steps).measured(config, configs)
    write_json(directory / "benchmark.json", result | {"provenance": provenance()})
    publish(
        directory / "benchmark.md", (throughput_tables if has_subjects else steps).tables(result)
    )
    if has_subjects:
        throughput_tables.draw(directory / "benchmark.png", result)
    return result
