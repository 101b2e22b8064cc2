"""What a training step costs: the members of a grid, timed in turns in one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import grid, sharding, train, trainer
from fairmix_jax.benchmark import output
from fairmix_jax.benchmark.timing import Contender, interleaved, quartiles
from fairmix_jax.data import batches
from fairmix_jax.experiment import Experiment, build
from fairmix_jax.tables import Table


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Times the training steps of a config's grid and writes `benchmark.json` and a table.

    A step is what the training loop repeats: the batch is drawn and taken from the split,
    the compiled step runs, and its result is waited for. Ratios are to the grid's first
    member, which also runs between all others; its own ratio shows the noise.

    Returns: the content of `benchmark.json`.

    Raises:
      UsageError: a member is not a valid config.
    """
    members = grid.expand(config.sweep) or [("config", {})]
    configs = {name: grid.override(config, changes) for name, changes in members}
    contenders = {
        name: training_steps(member, build(member), config.benchmark.steps)
        for name, member in configs.items()
    }
    first = next(iter(configs.values()))
    reference = training_steps(first, build(first), config.benchmark.steps)
    timings = interleaved(contenders, reference, rounds=config.benchmark.rounds)
    result = {
        "what": "seconds a training step; ratio to the first member run just before and after",
        "rounds": config.benchmark.rounds,
        "steps": config.benchmark.steps,
        "batch_size": config.batch_size,
        "members": {
            name: {
                "seconds": quartiles(timing.seconds / config.benchmark.steps),
                "ratio": quartiles(timing.ratio),
            }
            for name, timing in timings.items()
        },
    }
    output.write(directory, result, [_table(result)])
    return result


def training_steps(config: ConfigDict, experiment: Experiment, number: int) -> Contender:
    """Returns a function that runs the next `number` training steps of a config."""
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
        return measured

    return steps


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
