"""One 2-d convolution, lowered for the platform.

On GPU and TPU this is `lax.conv_general_dilated`, gradients included. On CPU it is restated,
equal up to rounding, for three reasons (two cores of an Intel Xeon with AVX-512, jax 0.10.2,
2026-11-23; what each is worth is in docs/performance.md):

* In a loop body XLA:CPU sends only *canonical* convolutions (NHWC images, HWIO kernel, no
  dilation of the images) to its fast library. Those that autodiff writes are not canonical,
  and make an attack, which is a loop of input gradients, three to seven times slower, and a
  weight gradient in a loop twenty to a hundred times. Both are restated as canonical ones.
* Images have one or three channels. Products that narrow are better written as sums.
* A kernel of one pixel is a matrix product.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.types import Array

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 4
Padding = tuple[tuple[int, int], tuple[int, int]]

lowering = jax.make_user_context("by_platform")
"""`with lowering("plain"):` traces what is restated here as it is in flax, to compare: every
`conv` as `lax.conv_general_dilated`, and the batch norm of the networks as flax's own."""


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
    if lowering.value == "plain":
        return _plain(stride, padding, images, kernel)
    return _conv(stride, padding, images, kernel)


def _plain(stride: int, padding: Padding, images: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv(stride: int, padding: Padding, images: Array, kernel: Array) -> Array:
    plain = functools.partial(_plain, stride, padding)
    if kernel.shape[2] > _FEW_CHANNELS:
        return plain(images, kernel)
    by_taps = functools.partial(_by_taps, stride, padding)
    return lax.platform_dependent(images, kernel, cpu=by_taps, default=plain)


def _forward(stride: int, padding: Padding, images: Array, kernel: Array):
    return _conv(stride, padding, images, kernel), (images, kernel)


def _backward(stride: int, padding: Padding, residuals, cotangent: Array):
    plain = functools.partial(_plain, stride, padding)
    images, kernel = residuals
    has_few = kernel.shape[2] <= _FEW_CHANNELS
    image_gradient = _scattered if has_few else _image_gradient
    is_pixel = kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0))
    kernel_gradient = _pixel_gradient if is_pixel else _kernel_gradient
    return tuple(
        lax.platform_dependent(
            images,
            kernel,
            cotangent,
            cpu=functools.partial(restated, stride, padding),
            default=lambda x, k, g, position=position: jax.vjp(plain, x, k)[1](g)[position],
        )
        for position, restated in enumerate((image_gradient, kernel_gradient))
    )


_conv.defvjp(_forward, _backward)


def _by_taps(stride: int, padding: Padding, images: Array, kernel: Array) -> Array:
    """The convolution as a sum over pixels and channels of the kernel."""
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows, columns, channels, _ = kernel.shape
    height, width = (
        (extent - size) // stride + 1
        for extent, size in zip(padded.shape[1:3], kernel.shape[:2], strict=True)
    )
    total = jnp.zeros((), images.dtype)
    for u in range(rows):
        for v in range(columns):
            tap = padded[:, u : u + stride * height : stride, v : v + stride * width : stride]
            for c in range(channels):
                total += tap[..., c : c + 1] * kernel[u, v, c][None, None, None]
    return lax.optimization_barrier(total)  # else every reader of it sums again


def _scattered(
    stride: int, padding: Padding, images: Array, kernel: Array, cotangent: Array
) -> Array:
    """The gradient in images of few channels: one matrix product, then a sum of shifts."""
    rows, columns, channels, _ = kernel.shape
    parts = jnp.einsum("uvco,bijo->uvcbij", kernel, cotangent)
    total = jnp.zeros((channels, *images.shape[:3]), cotangent.dtype)
    for u in range(rows):
        for v in range(columns):
            around = [
                _shift(tap - low, stride, length, extent)
                for tap, low, length, extent in zip(
                    (u, v),
                    (padding[0][0], padding[1][0]),
                    cotangent.shape[1:3],
                    images.shape[1:3],
                    strict=True,
                )
            ]
            zero = jnp.zeros((), cotangent.dtype)
            total += lax.pad(parts[u, v], zero, ((0, 0, 0), (0, 0, 0), *around))
    return jnp.moveaxis(total, 0, -1)


def _shift(first: int, stride: int, length: int, extent: int) -> tuple[int, int, int]:
    """Padding that puts element `i` of `length` at `first + stride i` of `extent`."""
    return first, extent - first - (stride * (length - 1) + 1), stride - 1


def _pixel_gradient(
    stride: int, padding: Padding, images: Array, kernel: Array, cotangent: Array
) -> Array:
    seen = images[:, ::stride, ::stride]
    return jnp.einsum("bijc,bijo->co", seen, cotangent)[None, None]


def _kernel_gradient(
    stride: int, padding: Padding, images: Array, kernel: Array, cotangent: Array
) -> Array:
    """A convolution whose channels are the batch and whose kernel is the cotangent.

    Columns and channels of the images are one axis, so that the dilation of the kernel along
    it, `stride` columns, keeps channels apart; and only the batch moves in memory, which
    XLA:CPU can do while it computes the images.
    """
    batch, height, width, channels = images.shape
    (top, bottom), (left, right) = (
        (low, size - 1 + stride * (length - 1) + 1 - low - extent)
        for (low, _), size, length, extent in zip(
            padding, kernel.shape[:2], cotangent.shape[1:3], (height, width), strict=True
        )
    )
    rows = jnp.transpose(images.reshape(batch, height, width * channels), (1, 2, 0))
    inner, around = _cropped(rows[None], ((top, bottom), (left * channels, right * channels)))
    gradient = lax.conv_general_dilated(
        inner,
        jnp.transpose(cotangent, (1, 2, 0, 3)),
        (1, 1),
        around,
        rhs_dilation=(stride, stride * channels),
        dimension_numbers=_DIMENSIONS,
    )
    return gradient.reshape(kernel.shape)


def _cropped(images: Array, padding: Padding) -> tuple[Array, Padding]:
    """Crops `[B, H, W, C]` by the negative paddings, with which a convolution reads wrong."""
    (top, bottom), (left, right) = padding
    inner = lax.pad(
        images,
        jnp.zeros((), images.dtype),
        ((0, 0, 0), (min(top, 0), min(bottom, 0), 0), (min(left, 0), min(right, 0), 0), (0, 0, 0)),
    )
    return inner, ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))


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
        inner, around = _cropped(cotangent, (pad_row, pad_col))
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
