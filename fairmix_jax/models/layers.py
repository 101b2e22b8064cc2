"""Layers the networks share."""

import re
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairmix_jax.models.convolution import conv, lowering, same_padding

HiddenFn = Callable[[jax.Array], jax.Array]

_FORM = "'batch', 'batch:N', 'group' or 'none'"
NormKind = Annotated[str, ("pattern", "batch(:[1-9][0-9]{0,8})?|group|none"), ("form", _FORM)]
"""What `normaliser` takes."""
Activation = Literal["relu", "silu"]
"""The name of a function of `flax.linen`."""
PaddingKind = Literal["torch", "same"]
"""What `Conv` takes."""


class Conv(nn.Module):
    """A square convolution without bias that keeps the image size at stride 1.

    With `padding="torch"` it pads as many pixels at other strides, as PyTorch's networks do; with
    `"same"` as XLA does, see `same_padding`, and images whose size the stride does not divide are
    a `ValueError`. Kernels are drawn from a normal distribution of variance `2 / fan_out`.

    Reference: He et al. 2015, arXiv 1502.01852.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: str = "torch"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        draw = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (self.size, self.size, images.shape[-1], self.features)
        kernel, sizes = self.param("kernel", draw, shape), images.shape[1:3]
        if self.padding == "same" and any(size % self.stride for size in sizes):
            raise ValueError(
                f"model.padding='same' needs images that halve evenly and a layer has {sizes} "
                "pixels; give model.padding=torch, or images of another size"
            )
        padding = same_padding(self.size, self.stride if self.padding == "same" else 1)
        return conv(images, kernel, stride=self.stride, padding=padding)


class BatchNorm(nn.Module):
    """Batch norm in which equal consecutive parts of the batch ignore each other.

    In training each part is normalised with its own mean and variance, and the running
    statistics follow the means of both over parts; so a batch that is split among as many
    devices, or fewer, needs no communication, and the result does not depend on their
    number. Variables are those of flax's own batch norm; the result is `x factor + shift`, two
    numbers a channel, so that a gradient needs no normalised copy of `x`.

    Reference: Hoffer, Hubara and Soudry 2017 (ghost batch norm), arXiv 1705.08741.
    """

    num_parts: int  # divides the batch
    train: bool  # whether the statistics of the batch are used and followed
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        parts, axes = x[None], tuple(range(1, x.ndim))
        own_mean, own_var = mean.value[None], var.value[None]
        if self.train:
            if len(x) % self.num_parts:
                raise ValueError(
                    f"model.norm='batch:{self.num_parts}' does not divide a batch of {len(x)}"
                )
            parts = x.reshape(self.num_parts, -1, *x.shape[1:])
            own_mean, square = jnp.mean(parts, axes), jnp.mean(jnp.square(parts), axes)
            own_var = jnp.maximum(square - jnp.square(own_mean), 0.0)
            if not self.is_initializing():
                for known, new in ((mean, own_mean), (var, own_var)):
                    followed = self.momentum * known.value
                    known.value = followed + (1 - self.momentum) * jnp.mean(new, axis=0)
        factor = scale[None] * jax.lax.rsqrt(own_var + self.epsilon)
        shift = bias[None] - own_mean * factor
        factor, shift = (jnp.expand_dims(numbers, axes) for numbers in (factor, shift))
        return (parts * factor + shift).reshape(x.shape)


class GroupNorm(nn.GroupNorm):
    """Flax's own, which says in terms of the config what does not fit."""

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        if x.shape[-1] % 8:
            raise ValueError(
                f"model.norm='group' has groups of 8 channels and a layer has {x.shape[-1]}; give "
                "a model.width that 8 divides"
            )
        return super().__call__(x, mask=mask)


def normaliser(kind: str, train: bool) -> Callable[[], Callable[[jax.Array], jax.Array]]:
    """Returns a constructor of normalisation layers; another kind is a `ValueError`.

    `"batch"` is batch norm, with running statistics of momentum 0.9 unless `train`; `"batch:N"`
    the same in `N` equal parts of the batch, see `BatchNorm`; `"group"` has groups of 8 channels,
    which must divide theirs, and no statistics; `"none"` does nothing.
    """
    if kind == "batch" and lowering.value == "plain":
        return lambda: nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5)
    if match := re.fullmatch(r"batch(?::([1-9][0-9]*))?", kind):
        return lambda: BatchNorm(int(match[1] or 1), train)
    if kind == "group":
        return lambda: GroupNorm(num_groups=None, group_size=8)
    if kind == "none":
        return lambda: lambda x: x
    raise ValueError(f"model.norm={kind!r} is unknown; choose {_FORM}")
