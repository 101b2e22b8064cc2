"""`--mode=benchmark`: training steps of a grid against each other, or attacks against the limit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab.benchmark import throughput
from fairmix_jax.lab.benchmark.subject import training_steps
from fairmix_jax.lab.benchmark.timing import interleaved, quartiles
from fairmix_jax.runtime import field_texts
from fairmix_jax.runtime.json_files import write_json
from fairmix_jax.runtime.provenance import provenance
from fairmix_jax.runtime.tables import Table, publish
from fairmix_jax.training.task import build


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Times the attacks and bases that a config names, if it names any, else its training steps.

    Returns the content of `directory/benchmark.json`; beside it lie tables, and figures. Raises a
    `UsageError` if a member of the grid is not a valid config, or an attack is unknown.
    """
    members = field_texts.expand(config.sweep) or [("config", {})]
    configs = {name: config_lib.override(config, changes) for name, changes in members}
    has_subjects = config.benchmark.attacks or config.benchmark.bases
    result = (throughput.measured if has_subjects else _steps)(config, configs)
    write_json(directory / "benchmark.json", result | {"provenance": provenance()})
    tables = throughput.tables(result) if has_subjects else [_table_of_steps(result)]
    publish(directory / "benchmark.md", tables)
    if has_subjects:
        throughput.draw(directory / "benchmark.png", result)
    return result


def _steps(config: ConfigDict, configs: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """Times the training steps of a config's grid.

    A step is what the training loop repeats, the drawing of its batch included. Ratios are to the
    grid's first member, which also runs between all others; its own ratio shows the noise.
    """
    rounds, number = config.benchmark.rounds, config.benchmark.steps

    def steps_of(member: ConfigDict) -> Callable[[], Any]:
        return training_steps(member, build(config_lib.settings(member)), number)

    contenders = {name: steps_of(member) for name, member in configs.items()}
    timings = interleaved(contenders, steps_of(next(iter(configs.values()))), rounds=rounds)
    return {
        "what": "seconds a training step; ratio to the first member run just before and after",
        "rounds": rounds, "steps": number, "batch_size": config.batch_size,
        "members": {
            name: {"seconds": quartiles(timing.seconds / number), "ratio": quartiles(timing.ratio)}
            for name, timing in timings.items()
        },
    }  # fmt: skip


def _table_of_steps(result: Mapping[str, Any]) -> Table:
    caption = (
        f"Training steps, batch {result['batch_size']}: median of {result['rounds']} rounds of "
        f"{result['steps']} steps, and the ratio to the first with its quartiles"
    )
    rows = []
    for name, part in result["members"].items():
        ratio = [f"{part['ratio'][key]:.3f}" for key in ("median", "low", "high")]
        rows.append([name, f"{1000 * part['seconds']['median']:.1f}", *ratio])
    return Table(caption, ("method", "ms", "ratio", "from", "to"), rows)
