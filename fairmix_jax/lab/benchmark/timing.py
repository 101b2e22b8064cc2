"""Timing contenders in turns, so that a disturbance of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

_BLOCK_SECONDS = 0.3
Name = TypeVar("Name")


class Timing(NamedTuple):
    """The measurements of a contender by `interleaved`, `[rounds]` each."""

    seconds: np.ndarray
    ratio: np.ndarray  # to the mean of the reference just before and just after it


def interleaved(
    contenders: Mapping[Name, Callable[[], Any]], reference: Callable[[], Any], *, rounds: int
) -> dict[Name, Timing]:
    """Times functions, which return what to wait for, in turns between runs of the reference.

    A first run, which warms up, is not counted. Whoever is quick is run as often as fits into a
    third of a second, and its mean taken.
    """
    functions = [reference, *contenders.values()]
    for function in functions:
        jax.block_until_ready(function())
    times = [max(1, int(_BLOCK_SECONDS / _timed(function, 1))) for function in functions]

    def settled() -> float:
        # A contender leaves things behind (threads that still spin, memory given back) that made
        # the reference a third slower, and the contender look that much faster.
        jax.block_until_ready(reference())
        return _timed(reference, times[0])

    seconds = np.zeros((rounds, len(contenders)))
    around = np.zeros((rounds, len(contenders) + 1))
    for number in range(rounds):
        around[number, 0] = settled()
        for position, contender in enumerate(contenders.values()):
            seconds[number, position] = _timed(contender, times[position + 1])
            around[number, position + 1] = settled()
    ratio = 2 * seconds / (around[:, :-1] + around[:, 1:])
    return dict(zip(contenders, map(Timing, seconds.T, ratio.T), strict=True))


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles of `[rounds]`."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _timed(contender: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(contender())
    return (time.perf_counter() - start) / times
