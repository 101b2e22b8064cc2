"""Residual networks for small images."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairmix_jax.models.layers import Conv, HiddenFn, NormKind, normaliser
from fairmix_jax.runtime.registry import checked
from fairmix_jax.types import Count

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of two convolutions in each stage, by the depth of a network."""
BOTTLENECKS = {
    14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip
"""The same of blocks of three convolutions."""


class _Block(nn.Module):
    features: int
    stride: int
    norm: str


class BasicBlock(_Block):
    """Two 3x3 convolutions, each before normalisation; the second's is added to the input.

    A ReLU follows the first normalisation and the sum. Where the shape changes, the shortcut
    is a 1x1 convolution and its normalisation (the paper's option B).
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = normaliser(self.norm, train)
        y = nn.relu(norm()(Conv(self.features, stride=self.stride)(x)))
        y = norm()(Conv(self.features)(y))
        return _activated_sum(x, y, self.stride, norm)


class Bottleneck(_Block):
    """Convolutions of 1x1, 3x3 and 1x1 pixels; the rest is as in `BasicBlock`.

    The first two have `features` channels, and the last, whose normalisation is added to the
    input, four times as many. The stride is that of the 3x3 one.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = normaliser(self.norm, train)
        y = nn.relu(norm()(Conv(self.features, size=1)(x)))
        y = nn.relu(norm()(Conv(self.features, stride=self.stride)(y)))
        y = norm()(Conv(4 * self.features, size=1)(y))
        return _activated_sum(x, y, self.stride, norm)


def _activated_sum(x: jax.Array, y: jax.Array, stride: int, norm: Callable) -> jax.Array:
    if stride > 1 or x.shape[-1] != y.shape[-1]:
        x = norm()(Conv(y.shape[-1], size=1, stride=stride)(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, global average, linear layer.

    Each stage after the first halves the image. Hidden features are those after the second stage.
    """

    num_classes: int
    stem: int  # channels of the first convolution
    features: tuple[int, ...]  # those of each stage
    blocks: tuple[int, ...]  # blocks in each stage
    norm: str
    block: Callable[[int, int, str], nn.Module]  # of features, stride and norm
    activation: str = "relu"
    first_norm: bool = True  # whether normalisation and activation follow the first convolution
    last_norm: bool = False  # whether they follow the last block

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, hidden: HiddenFn) -> jax.Array:
        def activated(x: jax.Array) -> jax.Array:
            return getattr(nn, self.activation)(normaliser(self.norm, train)()(x))

        x = Conv(self.stem)(images)
        x = activated(x) if self.first_norm else x
        for stage, (features, blocks) in enumerate(zip(self.features, self.blocks, strict=True)):
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                x = self.block(features, stride, self.norm)(x, train=train)
            x = hidden(x) if stage == 1 else x
        x = activated(x) if self.last_norm else x
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


@checked
def make(
    num_classes: int, *, depth: Literal[10, 14, 18, 26, 34, 50, 101, 152] = 18, width: Count = 64,
    norm: NormKind = "batch",
) -> nn.Module:  # fmt: skip
    """Returns a ResNet of four stages with `width, 2, 4, 8 width` channels.

    `depth=18, width=64` is the paper's ResNet-18 for ImageNet with one 3x3 convolution of
    stride 1 in place of its first convolution and max-pooling, as the robust-training
    literature has it for 32x32 images (11.2 million parameters for ten classes). Depths 14, 26,
    50, 101 and 152 have bottlenecks, whose stages end in four times as many channels. `norm` is
    as in `layers.normaliser`.

    Reference: He et al. 2015, arXiv 1512.03385.
    """
    features = tuple(width * 2**i for i in range(4))
    block = Bottleneck if depth in BOTTLENECKS else BasicBlock
    return ResNet(num_classes, width, features, (BLOCKS | BOTTLENECKS)[depth], norm, block)
