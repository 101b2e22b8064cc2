"""A function as it is now, where JAX would take the program that it compiled of it at first."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial


class _Same:
    """An array as a key: JAX's own, which never change, by identity, others by what they hold."""

    def __init__(self, array: Any):
        self.array = array  # held, so that no other one gets its number
        self.key = id(array) if isinstance(array, jax.Array) else np.asarray(array).tobytes()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.key == other.key


def as_partial(function: Callable[..., Any], *arguments: Any) -> Partial:
    """Returns what computes the same as this function does now, equal to itself until that changes.

    JAX knows a compiled function by its identity. So it does not see that weights a function closes
    over were bound anew, or a module in it was trained: it computes with those of the first call.
    Here the function is traced at every call, with arrays of the shapes of `arguments`, and known
    by the program that results and the arrays in it.

    Edge cases: a `Partial`, whose arrays are arguments, comes back as it is; what its own function
    closes over is not looked at, nor what a `jax.jit` inside compiled, nor rules of gradients.
    """
    if isinstance(function, Partial):
        return function
    if any(isinstance(array, Tracer) for array in arguments):
        return Partial(function)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    program = jax.make_jaxpr(lambda *given: function(*given))(*shapes)
    if any(isinstance(array, Tracer) for array in program.consts):
        return Partial(function)
    try:
        return _known(function, str(program.jaxpr), tuple(map(_Same, program.consts)))
    except TypeError:  # it has no hash
        return Partial(lambda *given: function(*given))


@lru_cache(maxsize=64)
def _known(function: Callable[..., Any], program: str, arrays: tuple[_Same, ...]) -> Any:
    return Partial(lambda *given: function(*given))
