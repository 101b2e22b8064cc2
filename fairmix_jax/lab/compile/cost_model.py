"""A formula for the cost of a training step: arithmetic, communication, and how it scales.

A forward pass on one image takes `M` multiply-adds, and its other operations give `E` numbers,
taken for one operation each. Its gradient by the images takes as much again, and so does that by
the weights, so a step of PGD-AT with `T` attack steps on `B` images a chip takes

    (2 M + E) (2 T + 3) B - 2 M_0 B   operations,

where `M_0` is the part of the layer that reads the image, whose gradient by the image the last
pass does not need. Mixing, augmentation and the optimizer are left out.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax

_HOP_SECONDS = 1e-6  # assumed: of the torus
_SLICES_SECONDS = 1e-3  # assumed: a round trip between slices


class Chip(NamedTuple):
    """A TPU, as Google's documentation describes it (cloud.google.com/tpu/docs, 2026-11-23)."""

    peak: float  # operations a second in bfloat16, which XLA also uses for float32 products
    memory: float  # bytes
    memory_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second that a chip sends to its neighbours, over all links
    torus: int  # dimensions of the torus of a slice
    slice_chips: int  # of the largest slice
    network_bandwidth: float  # bytes a second that a chip sends to other slices


CHIPS = {
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9, 2, 256, 25e9 / 8),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3, 6144, 50e9 / 8),
}
"""By the name that JAX gives the device; v5e is `TPU v5 lite`, v5p is `TPU v5`."""


class Operations(NamedTuple):
    """The operations of a function."""

    multiply_adds: int  # of its convolutions and products, without taps that fall on padding
    first: int  # of the first of them
    elements: int  # numbers that its other operations give

    @property
    def flops(self) -> float:
        """Operations: two for a multiply-add, one for every other number."""
        return 2.0 * self.multiply_adds + self.elements


def operations_of(function: Callable[..., Any], *arguments: Any) -> Operations:
    """Returns what a JAX function does, read from its program before any compiler.

    Arguments are arrays or their shapes. A loop's body counts once, of branches the last.
    """
    products, elements = [], 0
    for equation in _equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            given = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
            alone: Any = jax.jit(partial(equation.primitive.bind, **equation.params)).lower(*given)
            products.append(round(alone.cost_analysis().get("flops", 0)) // 2)  # XLA's count
        else:
            elements += sum(math.prod(variable.aval.shape) for variable in equation.outvars)
    return Operations(sum(products), products[0] if products else 0, elements)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """The innermost operations."""
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inner = [program for program in inner if hasattr(program, "eqns")]
        if equation.primitive.name == "cond":
            inner = [equation.params["branches"][-1].jaxpr]
        for program in inner:
            yield from _equations(program)
        if not inner:
            yield equation


def step_flops(forward: Operations, num_steps: int) -> float:
    """Returns the operations of a PGD-AT step, for the images that `forward` is of."""
    return forward.flops * (2 * num_steps + 3) - 2.0 * forward.first


def reduced_bytes(weights: Any) -> int:
    """Returns what a chip tells the others in a step: the size of parameters and statistics."""
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))


def reduction_seconds(num_bytes: float, num_chips: int, chip: Chip) -> float:
    """Returns the time to add up `num_bytes` over chips, on rings along the axes of the torus.

    Within a slice each chip sends `2 (n - 1) / n` times the bytes, over all links at once. Several
    slices add up their parts over the data centre's network, each chip its own.
    """
    inside = min(num_chips, chip.slice_chips)
    side = inside ** (1 / chip.torus)
    seconds = 2 * num_bytes * (inside - 1) / inside / chip.link_bandwidth
    seconds += 2 * chip.torus * (side - 1) * _HOP_SECONDS
    if (slices := math.ceil(num_chips / chip.slice_chips)) > 1:
        seconds += 2 * num_bytes / inside * (slices - 1) / slices / chip.network_bandwidth
        seconds += _SLICES_SECONDS
    return seconds


def efficiency(
    flops: float, memory_bytes: float, num_bytes: float, num_chips: int, chip: Chip
) -> float:
    """Returns the predicted share of a step's time that is not spent on the reduction.

    Chips work at the limit that arithmetic or memory sets, and then reduce the gradient with
    nothing else meanwhile. Real chips work slower, which makes the share larger; slower links make
    it smaller. `flops` and `memory_bytes` are those of a chip's step; `num_bytes` are reduced.
    """
    work = max(flops / chip.peak, memory_bytes / chip.memory_bandwidth)
    return work / (work + reduction_seconds(num_bytes, num_chips, chip))
