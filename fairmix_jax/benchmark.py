"""What a training step costs: the members of a grid, timed in turns in one process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import sharding, study, train, trainer, workdir
from fairmix_jax.data import batches
from fairmix_jax.experiment import build
from fairmix_jax.export import write_json
from fairmix_jax.progress import console
from fairmix_jax.tables import Table, markdown, rich_table

Contender = Callable[[], Any]


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Times the training steps of a config's grid and writes `benchmark.json` and a table.

    A step is what the training loop repeats: the batch is drawn and taken from the split,
    the compiled step runs, and its result is waited for. Ratios are to the grid's first
    member, which also runs between all others; its own ratio shows the noise.

    Returns: the content of `benchmark.json`.

    Raises:
      UsageError: a member is not a valid config.
    """
    members = study.expand(config.sweep) or [("config", {})]
    contenders = {
        name: training_steps(study.override(config, changes), config.benchmark.steps)
        for name, changes in members
    }
    reference = training_steps(study.override(config, members[0][1]), config.benchmark.steps)
    timings = interleaved(contenders, reference, rounds=config.benchmark.rounds)
    result = {
        "what": "seconds a training step; ratio to the first member run just before and after",
        "rounds": config.benchmark.rounds,
        "steps": config.benchmark.steps,
        "batch_size": config.batch_size,
        "members": {
            name: {
                "seconds": _quartiles(timing.seconds / config.benchmark.steps),
                "ratio": _quartiles(timing.ratio),
            }
            for name, timing in timings.items()
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "benchmark.json", result | {"provenance": workdir.provenance()})
    table = _table(result)
    (directory / "benchmark.md").write_text(markdown(table) + "\n")
    console.print(rich_table(table))
    return result


def training_steps(config: ConfigDict, number: int) -> Contender:
    """Returns a function that runs the next `number` training steps of a config."""
    experiment = build(config)
    size = config.batch_size
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    parts = trainer.assemble(config, experiment, total_steps=10**6, key=init_key)
    state = parts.initial_state
    feed = batches.feed(experiment.train, sharding.data_mesh(jax.devices()[:1]))
    step = train.compile_step(parts.train_step, state, feed, size, step_key)
    classes = batches.by_class(feed.split.labels, len(experiment.dataset.class_names))
    draws = train.Draws(parts.rule, order_key, classes)

    def rows() -> Iterator[np.ndarray]:
        epoch = 0
        while True:
            order = np.asarray(batches.epoch_order(order_key, epoch, size=len(feed.split.labels)))
            yield from order[: len(order) // size * size].reshape(-1, size)
            epoch += 1

    upcoming = rows()

    def steps() -> Any:
        nonlocal state
        for _ in range(number):
            chosen = next(upcoming)
            if draws.are_needed:
                chosen = draws(state, int(state.step), size)
            state, measured = step(state, feed.take(chosen, size), step_key)
        return jax.block_until_ready(measured)

    return steps


class Timing(NamedTuple):
    """What `interleaved` measured of a contender, `[rounds]` each.

    Attributes:
      seconds: its own.
      ratio: to the mean of the reference just before and just after it.
    """

    seconds: np.ndarray
    ratio: np.ndarray


def interleaved(
    contenders: dict[str, Contender], reference: Contender, *, rounds: int
) -> dict[str, Timing]:
    """Times contenders in turns, each between two runs of the reference.

    A disturbance that lasts longer than three runs hits both alike and leaves the ratio. A
    first round, which warms up, is not counted.
    """

    def timed(contender: Contender) -> float:
        start = time.perf_counter()
        contender()
        return time.perf_counter() - start

    seconds = np.zeros((rounds + 1, len(contenders)))
    around = np.zeros((rounds + 1, len(contenders) + 1))
    for number in range(rounds + 1):
        around[number, 0] = timed(reference)
        for position, contender in enumerate(contenders.values()):
            seconds[number, position] = timed(contender)
            around[number, position + 1] = timed(reference)
    ratio = 2 * seconds / (around[:, :-1] + around[:, 1:])
    return {
        name: Timing(seconds[1:, position], ratio[1:, position])
        for position, name in enumerate(contenders)
    }


def _quartiles(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _table(result: dict[str, Any]) -> Table:
    rows = []
    for name, part in result["members"].items():
        ratio = [f"{part['ratio'][key]:.3f}" for key in ("median", "low", "high")]
        rows.append([name, f"{1000 * part['seconds']['median']:.1f}", *ratio])
    caption = (
        f"Training steps, batch {result['batch_size']}: median of {result['rounds']} rounds of "
        f"{result['steps']} steps, and the ratio to the first with its quartiles"
    )
    return Table(caption, ("method", "ms", "ratio", "from", "to"), rows)
