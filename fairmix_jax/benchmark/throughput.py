"""How fast attacks and training steps are, against the gradients they cannot avoid."""

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fairmix_jax import cost_model, grid
from fairmix_jax.benchmark import output, peers
from fairmix_jax.benchmark.subject import (
    FORWARD,
    INPUT_GRADIENT,
    MATRIX_PRODUCT,
    PARAMETER_GRADIENT,
    PEAK_SIZE,
    Passes,
    Subject,
    subject_of,
)
from fairmix_jax.benchmark.throughput_tables import exponents, figure_rows, tables
from fairmix_jax.benchmark.timing import Timing, interleaved, quartiles
from fairmix_jax.progress import console

_UNITS = {"forward": FORWARD, "gradient": INPUT_GRADIENT, "parameter": PARAMETER_GRADIENT}


def run(config: ConfigDict, directory: Path) -> dict[str, Any]:
    """Times the attacks and training steps of each member of a config's grid.

    Every contender runs between two runs of the member's input gradient; with
    `benchmark.exponents` all members take turns and run between that of the first. The
    efficiency of an attack is `(n_F t_F + n_G t_G) / T` with the number of forward passes
    and gradients it cannot avoid; that of a training step has `t_P` in the sum too.

    Returns: the content of `benchmark.json`.

    Raises:
      UsageError: a member is not a valid config, or names an unknown attack.
    """
    members = grid.expand(config.sweep) or [("config", {})]
    subjects: dict[str, Subject] = {}
    timings: dict[str, dict[str, Timing]] = {}
    for name, changes in members:
        console.print(f"compiling {name}", markup=False)
        with _no_cache():
            subjects[name] = subject_of(grid.override(config, changes))
        if config.benchmark.peers:
            subjects[name].contenders.update(peers.contenders(subjects[name]))
        if not config.benchmark.exponents:
            timings[name] = _time(subjects[name], config.benchmark.rounds)
    if config.benchmark.exponents:
        timings = _time_all(subjects, config.benchmark.rounds)
    result = {
        "what": "seconds of a batch; ratio to an input gradient run just before and after",
        "rounds": config.benchmark.rounds,
        "threads": os.cpu_count(),
        "members": {name: _facts(subjects[name], timings[name]) for name in subjects},
    }
    if config.benchmark.exponents:
        result["exponents"] = exponents(result["members"])
    output.write(directory, result, tables(result))
    output.draw(directory / "benchmark.png", figure_rows(result))
    return result


@contextlib.contextmanager
def _no_cache() -> Generator[None]:
    """Compilation is timed, so it must happen."""
    before = jax.config.jax_enable_compilation_cache  # ty: ignore[missing-attribute]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _time(subject: Subject, rounds: int) -> dict[str, Timing]:
    return interleaved(subject.contenders, subject.contenders[INPUT_GRADIENT], rounds=rounds)


def _time_all(subjects: Mapping[str, Subject], rounds: int) -> dict[str, dict[str, Timing]]:
    """All members in turns, between input gradients of the first."""
    everything = {
        (member, name): contender
        for member, subject in subjects.items()
        for name, contender in subject.contenders.items()
    }
    first = next(iter(subjects.values()))
    timings = interleaved(everything, first.contenders[INPUT_GRADIENT], rounds=rounds)
    return {
        member: {name: timings[member, name] for name in subject.contenders}
        for member, subject in subjects.items()
    }


def _facts(subject: Subject, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """What is known of a member, as plain data."""
    size = len(subject.images)
    work = _work(subject)
    peak = 2 * PEAK_SIZE**3 / float(np.median(timings[MATRIX_PRODUCT].seconds))
    unit = {kind: float(np.median(timings[name].ratio)) for kind, name in _UNITS.items()}
    facts = {}
    for name, timing in timings.items():
        seconds = float(np.median(timing.seconds))
        entry: dict[str, Any] = {
            "seconds": quartiles(timing.seconds),
            "ratio": quartiles(timing.ratio),
        }
        entry["images_per_second"] = size / seconds
        passes = subject.passes.get(name, Passes())
        if any(passes):
            needed = sum(unit[kind] * number for kind, number in passes._asdict().items())
            entry["passes"] = passes._asdict()
            entry["efficiency"] = quartiles(needed / timing.ratio)
            entry["image_steps_per_second"] = size * max(passes.gradient, passes.forward) / seconds
            done = passes.forward + 2 * passes.gradient + 3 * passes.parameter
            entry["flops_per_second"] = work * size * done / seconds
            entry["share_of_peak"] = entry["flops_per_second"] / peak
        if name in subject.compile_seconds:
            entry["compile_seconds"] = subject.compile_seconds[name]
        if name in subject.robust:
            entry["robust_images"] = subject.robust[name]
        if name in subject.temporary_bytes:
            entry["temporary_bytes"] = subject.temporary_bytes[name]
        facts[name] = entry
    return {
        "model": subject.experiment.model_card["model"],
        "image_shape": subject.experiment.model_card["image_shape"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.weights.params)),
        "batch_size": size,
        "dtype": subject.config.evaluate.search_dtype,
        "peak_flops_per_second": peak,
        "timings": facts,
    }


def _work(subject: Subject) -> float:
    """Operations of a forward pass on one image."""
    apply, weights = subject.experiment.model.apply, subject.weights
    work = cost_model.work_of(
        lambda x: apply(weights.params, weights.batch_stats, x, train=False)[0], subject.images[:1]
    )
    return work.flops
