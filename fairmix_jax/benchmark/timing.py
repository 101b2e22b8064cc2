"""Timing contenders in turns, so that a disturbance of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Contender = Callable[[], Any]
"""Does its work once and returns what to wait for."""

_BLOCK_SECONDS = 0.3
Name = TypeVar("Name")


class Timing(NamedTuple):
    """What `interleaved` measured of a contender, `[rounds]` each.

    Attributes:
      seconds: its own.
      ratio: to the mean of the reference just before and just after it.
    """

    seconds: np.ndarray
    ratio: np.ndarray


def interleaved(
    contenders: Mapping[Name, Contender], reference: Contender, *, rounds: int
) -> dict[Name, Timing]:
    """Times contenders in turns, each between two runs of the reference.

    A disturbance that lasts longer than three runs hits both alike and leaves the ratio. A
    first round, which warms up, is not counted. Whoever is quick is run as often as fits
    into a third of a second, and its mean taken. The reference is run once more before it is
    timed, for a contender leaves things behind (threads that still spin, memory given back)
    that made it a third slower, and the contender look that much faster.
    """
    for contender in (reference, *contenders.values()):
        jax.block_until_ready(contender())
    times_of_reference = _times(reference)
    times = {name: _times(contender) for name, contender in contenders.items()}
    seconds = np.zeros((rounds, len(contenders)))
    around = np.zeros((rounds, len(contenders) + 1))
    for number in range(rounds):
        around[number, 0] = _settled(reference, times_of_reference)
        for position, (name, contender) in enumerate(contenders.items()):
            seconds[number, position] = _timed(contender, times[name])
            around[number, position + 1] = _settled(reference, times_of_reference)
    ratio = 2 * seconds / (around[:, :-1] + around[:, 1:])
    return {
        name: Timing(seconds[:, position], ratio[:, position])
        for position, name in enumerate(contenders)
    }


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Returns the median and the quartiles of `[rounds]`."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def _times(contender: Contender) -> int:
    return max(1, int(_BLOCK_SECONDS / _timed(contender, 1)))


def _settled(contender: Contender, times: int) -> float:
    jax.block_until_ready(contender())
    return _timed(contender, times)


def _timed(contender: Contender, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(contender())
    return (time.perf_counter() - start) / times
