"""A formula for the cost of a training step: arithmetic, communication, and how it scales.

A network's forward pass on one image takes `M` multiply-adds in its convolutions and
products, taps that fall on padding left out, and its other operations give `E` numbers, taken
for one operation each. Its gradient by the images takes as much again, and so does that by
the weights. A step of adversarial training with `T` attack steps on `B` images a chip
therefore takes, in floating point operations,

    (2 M + E) (2 T + 3) B - 2 M_0 B,

where `M_0` is the part of the layer that reads the image, whose gradient by the image the last
pass does not need. Mixing, augmentation and the optimizer are left out. Chips tell each other
the gradient and the batch statistics: 4 bytes for each number.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

_HOP_SECONDS = 1e-6
_SLICES_SECONDS = 1e-3


class Chip(NamedTuple):
    """A TPU, as Google's documentation describes it (cloud.google.com/tpu/docs, 2026-11-23).

    Attributes:
      peak: operations a second in bfloat16, which XLA also uses for float32 products.
      memory, memory_bandwidth: bytes, and bytes a second.
      link_bandwidth: bytes a second that a chip sends to its neighbours, over all links.
      torus, slice_chips: dimensions of the torus of a slice, and the chips of the largest.
      network_bandwidth: bytes a second that a chip sends to other slices.
    """

    peak: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    torus: int
    slice_chips: int
    network_bandwidth: float


CHIPS = {
    "TPU v5 lite": Chip(197e12, 16e9, 819e9, 200e9, 2, 256, 25e9 / 8),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 3, 6144, 50e9 / 8),
}
"""By the name that JAX gives the device; v5e is `TPU v5 lite`, v5p is `TPU v5`."""


class Operations(NamedTuple):
    """The operations of a function.

    Attributes:
      multiply_adds: of its convolutions and products.
      first: of the first of them.
      elements: numbers that its other operations give.
    """

    multiply_adds: int
    first: int
    elements: int

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
        if equation.primitive.name == "conv_general_dilated":
            products.append(_of_convolution(equation))
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            products.append(terms * math.prod(equation.outvars[0].aval.shape))
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


def _of_convolution(equation: Any) -> int:
    images, kernel = (variable.aval.shape for variable in equation.invars)
    given, axes = equation.params, equation.params["dimension_numbers"]
    each = zip(
        (images[axis] for axis in axes.lhs_spec[2:]), (kernel[axis] for axis in axes.rhs_spec[2:]),
        given["window_strides"], given["padding"], given["lhs_dilation"], given["rhs_dilation"],
        strict=True,
    )  # fmt: skip
    taps = math.prod(_taps(*axis) for axis in each)
    return images[axes.lhs_spec[0]] * taps * kernel[axes.rhs_spec[0]] * kernel[axes.rhs_spec[1]]


def _taps(
    size: int, kernel: int, stride: int, padding: tuple[int, int], gap: int, dilation: int
) -> int:
    """Pairs of an output and a tap along one axis that meet a number of the input."""
    length = (size - 1) * gap + 1
    outputs = (length + sum(padding) - (kernel - 1) * dilation - 1) // stride + 1
    place = np.add.outer(stride * np.arange(outputs), dilation * np.arange(kernel)) - padding[0]
    return int(np.sum((place >= 0) & (place < length) & (place % gap == 0)))


def step_flops(forward: Operations, num_steps: int) -> float:
    """Returns the operations of a PGD-AT step, for the images that `forward` is of."""
    return forward.flops * (2 * num_steps + 3) - 2.0 * forward.first


def reduced_bytes(weights: Any) -> int:
    """Returns what a chip tells the others in a step: the size of parameters and statistics."""
    return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))


def reduction_seconds(num_bytes: float, num_chips: int, chip: Chip) -> float:
    """Returns the time to add up `num_bytes` over chips, on rings along the axes of the torus.

    Within a slice each chip sends `2 (n - 1) / n` times the bytes, over all links at once,
    with a microsecond a hop. Several slices add up their parts over the data centre's
    network, each chip its own, with a millisecond for the round trip. Both delays are
    assumptions.
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
    nothing else meanwhile. Real chips work slower, which makes the share larger; links that
    give less than their nominal bandwidth make it smaller. `flops` and `memory_bytes` are those
    of a chip's step, the same for any number of chips; `num_bytes` are reduced.
    """
    work = max(flops / chip.peak, memory_bytes / chip.memory_bandwidth)
    return work / (work + reduction_seconds(num_bytes, num_chips, chip))
