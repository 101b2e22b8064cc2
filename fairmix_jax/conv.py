"""One 2-d convolution, whose input gradient is lowered for the platform.

On GPU and TPU this is `lax.conv_general_dilated`, gradients included. On CPU the input
gradient is restated, equal up to rounding, because XLA:CPU sends only a *canonical*
convolution (NHWC images, HWIO kernel, no dilation) inside a loop body to its fast
library; the one that autodiff writes is not canonical and makes an attack, which is a
loop of input gradients, three to six times slower (PGD-5, batch 128: 2.98 times for the
small CNN of width 16, 5.65 for PreActResNet-10 of width 16; two cores of an Intel Xeon
with AVX-512, jax 0.10.2, 2026-11-23). The restatement is one canonical convolution per
output phase (stride 1: a single one).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.types import Array

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], tuple[int, int]]


def conv(images: Array, kernel: Array, *, stride: int = 1, padding: Padding) -> Array:
    """Returns the cross-correlation of `images` with `kernel`.

    `out[b, i, j, o] = sum_{u, v, c} images[b, s i + u - p, s j + v - q, c] kernel[u, v, c, o]`
    with the stride `s`, the low paddings `p, q`, and zeros outside the image.

    Guarantees: value and gradients equal those of `lax.conv_general_dilated` up to
    rounding; lowered for GPU or TPU they are exactly that function's. Differentiable any
    number of times in reverse mode; forward mode is not available.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[kh, kw, C, O]`, of the same dtype.
      stride: static, the same in both directions.
      padding: static `((top, bottom), (left, right))`, in pixels, each less than the kernel:
        beyond that XLA's own gradients on CPU can be wrong (jaxlib 0.10.2 reads out of bounds).

    Returns: `[B, H', W', O]` with `H' = (H + top + bottom - kh) // stride + 1`.
    """
    return _conv(stride, padding, images, kernel)


def _plain(stride: int, padding: Padding, images: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


_conv = jax.custom_vjp(_plain, nondiff_argnums=(0, 1))


def _forward(stride: int, padding: Padding, images: Array, kernel: Array):
    return _conv(stride, padding, images, kernel), (images, kernel)


def _backward(stride: int, padding: Padding, residuals, cotangent: Array):
    images, kernel = residuals
    plain = functools.partial(_plain, stride, padding)
    image_gradient = lax.platform_dependent(
        images,
        kernel,
        cotangent,
        cpu=functools.partial(_image_gradient, stride, padding),
        default=lambda x, k, g: jax.vjp(lambda x: plain(x, k), x)[1](g)[0],
    )
    kernel_gradient = jax.vjp(lambda k: plain(images, k), kernel)[1](cotangent)[0]
    return image_gradient, kernel_gradient


_conv.defvjp(_forward, _backward)


def _image_gradient(
    stride: int, padding: Padding, images: Array, kernel: Array, cotangent: Array
) -> Array:
    """For each phase `r`, the gradient at pixels `stride j + r` is one convolution."""
    _, height, width, channels = images.shape
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    rows, columns = -(-height // stride), -(-width // stride)

    def phase(r: int, q: int) -> Array:
        tap_row, pad_row = _phase(
            r, kernel.shape[0], stride, padding[0][0], rows, cotangent.shape[1]
        )
        tap_col, pad_col = _phase(
            q, kernel.shape[1], stride, padding[1][0], columns, cotangent.shape[2]
        )
        taps = flipped[tap_row, tap_col]
        if 0 in taps.shape:
            return jnp.zeros((len(images), rows, columns, channels), images.dtype)
        (top, bottom), (left, right) = pad_row, pad_col
        inner = lax.pad(  # a negative padding of the convolution itself reads out of bounds
            cotangent,
            jnp.zeros((), cotangent.dtype),
            (
                (0, 0, 0),
                (min(top, 0), min(bottom, 0), 0),
                (min(left, 0), min(right, 0), 0),
                (0, 0, 0),
            ),
        )
        around = ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))
        return lax.conv_general_dilated(inner, taps, (1, 1), around, dimension_numbers=_DIMENSIONS)

    if stride == 1:
        return phase(0, 0)
    phases = jnp.stack(
        [jnp.stack([phase(r, q) for q in range(stride)], axis=3) for r in range(stride)], axis=2
    )
    whole = phases.reshape(len(images), rows * stride, columns * stride, channels)
    return whole[:, :height, :width]


def _phase(
    r: int, size: int, stride: int, low: int, length: int, cotangent_length: int
) -> tuple[slice, tuple[int, int]]:
    """Returns the taps of the flipped kernel that reach phase `r` and the padding that aligns them.

    Pixel `stride j + r` meets output `o` through tap `u = stride (j - o) + r + low`, so the
    taps are `u = first, first + stride, ...` and tap number `n` meets `o = j + shift - n`.
    """
    first, shift = (r + low) % stride, (r + low) // stride
    count = len(range(first, size, stride))
    last = first + (count - 1) * stride
    pad_low = count - 1 - shift
    pad_high = length - cotangent_length - pad_low + count - 1
    return slice(size - 1 - last, size - first, stride), (pad_low, pad_high)


def same_padding(size: int) -> Padding:
    """Returns the padding that keeps the image size at stride 1, for an odd kernel size.

    This is the PyTorch convention (`padding=size // 2`); XLA's `"SAME"` pads strided
    convolutions differently.
    """
    return ((size // 2, size // 2), (size // 2, size // 2))
