"""Products of float32 in full, on every platform: what verdicts are made with.

TPUs round the factors of such products to bfloat16, recent GPUs to TF32, unless they are told not
to; CPUs round nothing. An image that a rounded network misclassifies may be none elsewhere.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from jax import lax

Precision = Literal["default", "highest"]
"""The platform's own, or full."""
Result = TypeVar("Result")


def at_full_precision(
    function: Callable[..., Result], *, on_cpu: Callable[..., Result] | None = None
) -> Callable[..., Result]:
    """Returns a function of pytrees of arrays that rounds no factor of a float32 product.

    It is `function` itself wherever it is lowered for CPU, or what else CPU shall do in its place.
    A precision that `function` gives an operation itself stays.
    """

    def precise(*arguments: Any) -> Result:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    @functools.wraps(function)
    def either(*arguments: Any) -> Result:
        return lax.platform_dependent(*arguments, cpu=on_cpu or function, default=precise)

    return either
