"""The cost of a training step: the members of a grid take turns in one process."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from fairmix_jax.data import batches
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab.benchmark.timing import interleaved, quartiles
from fairmix_jax.runtime import sharding
from fairmix_jax.runtime.tables import Table
from fairmix_jax.training import assembly, loop
from fairmix_jax.training.task import Task, build


def measured(config: ConfigDict, configs: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """Times the training steps of a config's grid; see `benchmark.run`.

    A step is what the training loop repeats: the batch is drawn and taken from the split,
    the compiled step runs, and its result is waited for. Ratios are to the grid's first
    member, which also runs between all others; its own ratio shows the noise.
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


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns the one table of what `measured` found."""
    caption = (
        f"Training steps, batch {result['batch_size']}: median of {result['rounds']} rounds of "
        f"{result['steps']} steps, and the ratio to the first with its quartiles"
    )
    rows = []
    for name, part in result["members"].items():
        ratio = [f"{part['ratio'][key]:.3f}" for key in ("median", "low", "high")]
        rows.append([name, f"{1000 * part['seconds']['median']:.1f}", *ratio])
    return [Table(caption, ("method", "ms", "ratio", "from", "to"), rows)]


def training_steps(config: ConfigDict, task: Task, number: int) -> Callable[[], Any]:
    """Returns a function that runs the next `number` training steps of a config."""
    size = config.batch_size
    init_key, order_key, step_key = jax.random.split(jax.random.key(config.seed), 3)
    parts = assembly.assemble(config_lib.settings(config), task, total_steps=10**6, key=init_key)
    state = parts.initial_state
    feed = batches.feed(task.train, sharding.data_mesh(jax.devices()[:1]))
    step = loop.compile_step(parts.train_step, state, feed, size, step_key)
    rows = loop.image_order(order_key, task, parts.rule, batch_size=size)
    done = 0  # counted here, as in the loop: reading the state would wait for the device

    def steps() -> Any:
        nonlocal state, done
        for _ in range(number):
            state, measured = step(state, feed.take(rows(done, state), size), step_key)
            done += 1
        return measured

    return steps
