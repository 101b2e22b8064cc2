"""One 2-d convolution, lowered for the platform.

On GPU and TPU this is `lax.conv_general_dilated`, gradients included. On CPU it is restated,
equal up to rounding, for three reasons (docs/performance/cpu.md has what each is worth):

* In a loop body XLA:CPU sends only *canonical* convolutions (NHWC images, HWIO kernel, no
  dilation of the images) to its fast library. The gradients that autodiff writes are not, and make
  an attack three to seven times slower; both are restated as canonical convolutions.
* Images have one or three channels. Products that narrow are better written as sums.
* A kernel of one pixel is a matrix product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairmix_jax.types import Array

_FEW_CHANNELS = 4
Padding = tuple[tuple[int, int], tuple[int, int]]

lowering = jax.make_user_context("by_platform")
"""`with lowering("plain"):` traces what is restated here as it is in flax, to compare: every
`conv` as `lax.conv_general_dilated`, and the batch norm of the networks as flax's own."""


class _Window(NamedTuple):
    """The stride and padding of a kernel, both static, see `conv`."""

    stride: int
    padding: Padding


def conv(images: Array, kernel: Array, *, stride: int = 1, padding: Padding) -> Array:
    """Returns the cross-correlation of `images` with `kernel`.

    `out[b, i, j, o] = sum_{u, v, c} images[b, s i + u - p, s j + v - q, c] kernel[u, v, c, o]`
    with the stride `s`, the low paddings `p, q`, and zeros outside the image, is `[B, H', W', O]`
    with `H' = (H + top + bottom - kh) // stride + 1`.

    Guarantees: value and gradients equal those of `lax.conv_general_dilated` up to
    rounding; lowered for GPU or TPU they are exactly that function's. Differentiable any
    number of times in reverse mode; forward mode is not available.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[kh, kw, C, O]`, of the same dtype.
      stride: static, the same in both directions.
      padding: static `((top, bottom), (left, right))`, in pixels, each less than the kernel:
        beyond that XLA's own gradients on CPU can be wrong (jaxlib 0.10.2 reads out of bounds).
    """
    convolve = _plain if lowering.value == "plain" else _conv
    return convolve(_Window(stride, padding), images, kernel)


def same_padding(size: int, stride: int = 1) -> Padding:
    """Returns XLA's `"SAME"` for a kernel size, and a stride that divides the image's.

    The result then has the image's size over `stride`. At stride 1 and an odd kernel size it is
    PyTorch's `padding=size // 2`, which PyTorch's networks have at every stride: for a 3x3
    kernel of stride 2 one pixel on each side, where XLA has one below and on the right only.
    """
    total = max(size - stride, 0)
    sides = (total // 2, total - total // 2)
    return sides, sides


def _plain(window: _Window, images: Array, kernel: Array) -> Array:
    strides = (window.stride, window.stride)
    return _canonical(images, kernel, window.padding, window_strides=strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(window: _Window, images: Array, kernel: Array) -> Array:
    plain = functools.partial(_plain, window)
    if kernel.shape[2] > _FEW_CHANNELS:
        return plain(images, kernel)
    by_taps = functools.partial(_by_taps, window)
    return lax.platform_dependent(images, kernel, cpu=by_taps, default=plain)


def _backward(window: _Window, residuals: tuple[Array, Array], cotangent: Array):
    images, kernel = residuals
    is_pixel = kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0))
    on_cpu = (
        _image_gradient if kernel.shape[2] > _FEW_CHANNELS else _image_gradient_of_few_channels,
        _kernel_gradient_of_one_pixel if is_pixel else _kernel_gradient,
    )

    def gradient(position: int) -> Array:
        def plain(images: Array, kernel: Array, cotangent: Array) -> Array:
            _, pull_back = jax.vjp(functools.partial(_plain, window), images, kernel)
            return pull_back(cotangent)[position]

        cpu = functools.partial(on_cpu[position], window)
        return lax.platform_dependent(images, kernel, cotangent, cpu=cpu, default=plain)

    return gradient(0), gradient(1)


_conv.defvjp(lambda window, *arguments: (_conv(window, *arguments), arguments), _backward)


def _by_taps(window: _Window, images: Array, kernel: Array) -> Array:
    """The convolution as a sum over pixels and channels of the kernel."""
    padded = jnp.pad(images, ((0, 0), *window.padding, (0, 0)))
    rows, columns, channels, _ = kernel.shape
    height, width = (
        window.stride * ((extent - size) // window.stride + 1)
        for extent, size in zip(padded.shape[1:3], (rows, columns), strict=True)
    )
    total = jnp.zeros((), images.dtype)
    for u, v in np.ndindex(rows, columns):
        tap = padded[:, u : u + height : window.stride, v : v + width : window.stride]
        for c in range(channels):
            total += tap[..., c : c + 1] * kernel[u, v, c][None, None, None]
    return lax.optimization_barrier(total)  # else every reader of it sums again


def _image_gradient_of_few_channels(window: _Window, images, kernel, cotangent: Array) -> Array:
    """One matrix product, then a sum of shifts."""
    rows, columns, channels, _ = kernel.shape
    parts = jnp.einsum("uvco,bijo->uvcbij", kernel, cotangent)
    total = jnp.zeros((channels, *images.shape[:3]), cotangent.dtype)

    def around(axis: int, tap: int) -> tuple[int, int, int]:
        """Padding that puts the cotangent at the pixels that the tap saw."""
        first = tap - window.padding[axis][0]
        span = window.stride * (cotangent.shape[1 + axis] - 1) + 1
        return first, images.shape[1 + axis] - first - span, window.stride - 1

    for u, v in np.ndindex(rows, columns):
        padding = ((0, 0, 0), (0, 0, 0), around(0, u), around(1, v))
        total += lax.pad(parts[u, v], jnp.zeros((), cotangent.dtype), padding)
    return jnp.moveaxis(total, 0, -1)


def _kernel_gradient_of_one_pixel(window: _Window, images, kernel, cotangent: Array) -> Array:
    seen = images[:, :: window.stride, :: window.stride]
    return jnp.einsum("bijc,bijo->co", seen, cotangent)[None, None]


def _kernel_gradient(window: _Window, images: Array, kernel: Array, cotangent: Array) -> Array:
    """A convolution whose channels are the batch and whose kernel is the cotangent.

    Columns and channels of the images are one axis, so that the dilation of the kernel along
    it, `stride` columns, keeps channels apart; and only the batch moves in memory, which
    XLA:CPU can do while it computes the images.
    """
    stride, (batch, height, width, channels) = window.stride, images.shape

    def around(axis: int) -> tuple[int, int]:
        low, span = window.padding[axis][0], stride * (cotangent.shape[1 + axis] - 1) + 1
        return low, kernel.shape[axis] - 1 + span - low - images.shape[1 + axis]

    left, right = (channels * side for side in around(1))
    rows = jnp.transpose(images.reshape(batch, height, width * channels), (1, 2, 0))
    inner, padding = _cropped(rows[None], (around(0), (left, right)))
    taps = jnp.transpose(cotangent, (1, 2, 0, 3))
    gradient = _canonical(inner, taps, padding, rhs_dilation=(stride, stride * channels))
    return gradient.reshape(kernel.shape)


def _cropped(images: Array, padding: Padding) -> tuple[Array, Padding]:
    """Crops `[B, H, W, C]` by the negative paddings, with which a convolution reads wrong."""
    crop = [(min(low, 0), min(high, 0), 0) for low, high in padding]
    inner = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *crop, (0, 0, 0)))
    (top, bottom), (left, right) = padding
    return inner, ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))


def _image_gradient(window: _Window, images: Array, kernel: Array, cotangent: Array) -> Array:
    """Computes the gradient at pixels `stride j + r` as one convolution for each phase `r`."""
    stride, (batch, height, width, channels) = window.stride, images.shape
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    rows, columns = -(-height // stride), -(-width // stride)

    def aligned(axis: int, r: int, length: int) -> tuple[slice, tuple[int, int]]:
        """The taps of the flipped kernel that reach phase `r`, and the padding that aligns them.

        Pixel `stride j + r` meets output `o` through tap `u = stride (j - o) + r + low`, so the
        taps are `u = first, first + stride, ...` and tap number `n` meets `o = j + shift - n`.
        """
        size = kernel.shape[axis]
        shift, first = divmod(r + window.padding[axis][0], stride)
        count = len(range(first, size, stride))
        last, pad_low = first + (count - 1) * stride, count - 1 - shift
        pad_high = length - cotangent.shape[1 + axis] - pad_low + count - 1
        return slice(size - 1 - last, size - first, stride), (pad_low, pad_high)

    def phase(r: int, q: int) -> Array:
        (tap_row, pad_row), (tap_column, pad_column) = aligned(0, r, rows), aligned(1, q, columns)
        taps = flipped[tap_row, tap_column]
        if 0 in taps.shape:
            return jnp.zeros((batch, rows, columns, channels), images.dtype)
        inner, padding = _cropped(cotangent, (pad_row, pad_column))
        return _canonical(inner, taps, padding)

    if stride == 1:
        return phase(0, 0)
    parts = [jnp.stack([phase(r, q) for q in range(stride)], axis=3) for r in range(stride)]
    whole = jnp.stack(parts, axis=2).reshape(batch, rows * stride, columns * stride, channels)
    return whole[:, :height, :width]


def _canonical(images, kernel, padding: Padding, window_strides=(1, 1), **options) -> Array:
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        images, kernel, window_strides, padding, dimension_numbers=dimensions, **options
    )
