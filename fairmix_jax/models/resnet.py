"""Residual networks for small images."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairmix_jax.models.layers import Conv, HiddenFn, NormKind, normaliser
from fairmix_jax.types import Count

Depth = Literal[10, 18, 34]
_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each before normalisation; the second's is added to the input.

    A ReLU follows the first normalisation and the sum. Where the shape changes, the shortcut
    is a 1x1 convolution and its normalisation (the paper's option B).
    """

    features: int
    stride: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = normaliser(self.norm, train)
        y = nn.relu(norm()(Conv(self.features, stride=self.stride)(x)))
        y = norm()(Conv(self.features)(y))
        if self.stride > 1 or x.shape[-1] != self.features:
            x = norm()(Conv(self.features, size=1, stride=self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, global average, linear layer.

    Each stage after the first halves the image. Normalisation and ReLU follow the first
    convolution, or, of pre-activation blocks, which begin with their own, the last block. Hidden
    features are those after the second stage.
    """

    num_classes: int
    stem: int  # channels of the first convolution
    features: tuple[int, ...]  # channels of each stage
    blocks: tuple[int, ...]  # blocks in each stage
    norm: str
    block: type[nn.Module] = BasicBlock  # or another module of its attributes
    preactivated: bool = False  # whether blocks normalise and activate their input

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, hidden: HiddenFn) -> jax.Array:
        def activated(x: jax.Array) -> jax.Array:
            return nn.relu(normaliser(self.norm, train)()(x))

        x = Conv(self.stem)(images)
        x = x if self.preactivated else activated(x)
        for stage, (features, blocks) in enumerate(zip(self.features, self.blocks, strict=True)):
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                x = self.block(features, stride, self.norm)(x, train=train)
            x = hidden(x) if stage == 1 else x
        x = activated(x) if self.preactivated else x
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def four_stages(num_classes: int, depth: int, width: int, norm: str, **block) -> nn.Module:
    """Returns a `ResNet` as in `make`, of any `block`."""
    if depth not in _BLOCKS:
        raise ValueError(f"model.depth={depth} is unknown; choose one of {list(_BLOCKS)}")
    features = tuple(width * 2**i for i in range(4))
    return ResNet(num_classes, width, features, _BLOCKS[depth], norm, **block)


def make(
    num_classes: int, *, depth: Depth = 18, width: Count = 64, norm: NormKind = "batch"
) -> nn.Module:
    """Returns a ResNet of four stages with `width, 2, 4, 8 width` channels.

    `depth=18, width=64` is the paper's ResNet-18 for ImageNet with one 3x3 convolution of
    stride 1 in place of its first convolution and max-pooling, as the robust-training
    literature has it for 32x32 images (11.2 million parameters for ten classes). Another depth is
    a `ValueError`; `norm` as in `layers.normaliser`.

    Reference: He et al. 2015, arXiv 1512.03385.
    """
    return four_stages(num_classes, depth, width, norm)
