"""The speed of attacks and training steps, against the gradients they cannot avoid."""

import contextlib
import os
from collections.abc import Generator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fairmix_jax.lab.benchmark import peers
from fairmix_jax.lab.benchmark import subject as ours
from fairmix_jax.lab.benchmark.throughput_tables import exponents
from fairmix_jax.lab.benchmark.timing import Timing, interleaved, quartiles
from fairmix_jax.lab.compile import cost_model
from fairmix_jax.runtime.console import console

_UNITS = (ours.FORWARD, ours.INPUT_GRADIENT, ours.PARAMETER_GRADIENT)  # of `Passes`, in its order


def measured(config: ConfigDict, configs: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """Times the attacks and training steps of each member of a config's grid; see `benchmark.run`.

    Every contender runs between two runs of the member's input gradient; with
    `benchmark.exponents` all members take turns and run between that of the first. The
    efficiency of an attack is `(n_F t_F + n_G t_G) / T` with the number of forward passes
    and gradients it cannot avoid; that of a training step has `t_P` in the sum too.
    """
    rounds, subjects, timings = config.benchmark.rounds, {}, {}
    for name, member in configs.items():
        console.print(f"compiling {name}")
        with _no_cache():
            subjects[name] = ours.subject_of(member)
        if config.benchmark.peers:
            subjects[name].contenders.update(peers.contenders(subjects[name]))
        if not config.benchmark.exponents:
            timings |= _timed({name: subjects[name]}, rounds)
    if config.benchmark.exponents:
        timings = _timed(subjects, rounds)
    members = {
        member: _facts(subject, {name: timings[member, name] for name in subject.contenders})
        for member, subject in subjects.items()
    }
    result = {
        "what": "seconds of a batch; ratio to an input gradient run just before and after",
        "rounds": rounds, "threads": os.cpu_count(), "members": members,
    }  # fmt: skip
    return result | ({"exponents": exponents(members)} if config.benchmark.exponents else {})


@contextlib.contextmanager
def _no_cache() -> Generator[None]:
    """Compilation is timed, so it must happen."""
    before = jax.config.jax_enable_compilation_cache  # ty: ignore[missing-attribute]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _timed(subjects: Mapping[str, ours.Subject], rounds: int) -> dict[tuple[str, str], Timing]:
    """Times all contenders in turns, each between two input gradients of the first member."""
    everything = {
        (member, name): contender.run
        for member, subject in subjects.items()
        for name, contender in subject.contenders.items()
    }
    reference = next(iter(subjects.values())).contenders[ours.INPUT_GRADIENT].run
    return interleaved(everything, reference, rounds=rounds)


def _facts(subject: ours.Subject, timings: Mapping[str, Timing]) -> dict[str, Any]:
    size, card = len(subject.images), subject.task.model_card
    forward = partial(subject.task.model.apply, *subject.weights, train=False)
    operations = cost_model.operations_of(lambda x: forward(x)[0], subject.images[:1]).flops
    peak = 2 * ours.PEAK_SIZE**3 / float(np.median(timings[ours.MATRIX_PRODUCT].seconds))
    unit = [float(np.median(timings[name].ratio)) for name in _UNITS]
    facts = {}
    for name, contender in subject.contenders.items():
        timing, passes = timings[name], contender.passes
        seconds = float(np.median(timing.seconds))
        entry: dict[str, Any] = {"seconds": quartiles(timing.seconds)}
        entry |= {"ratio": quartiles(timing.ratio), "images_per_second": size / seconds}
        if any(passes):
            needed = sum(ratio * number for ratio, number in zip(unit, passes, strict=True))
            entry["passes"] = passes._asdict()
            entry["efficiency"] = quartiles(needed / timing.ratio)
            entry["image_steps_per_second"] = size * max(passes.gradient, passes.forward) / seconds
            done = passes.forward + 2 * passes.gradient + 3 * passes.parameter
            entry["flops_per_second"] = operations * size * done / seconds
            entry["share_of_peak"] = entry["flops_per_second"] / peak
        facts[name] = entry | contender.facts
    return {
        "model": card["model"], "image_shape": card["image_shape"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.weights.params)),
        "batch_size": size, "dtype": subject.config.evaluate.search_dtype,
        "peak_flops_per_second": peak, "timings": facts,
    }  # fmt: skip
