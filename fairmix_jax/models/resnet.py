"""Residual networks for small images."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairmix_jax.models._layers import Conv, HiddenFn, normaliser

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
    """A 3x3 convolution, normalisation, ReLU, stages of blocks, global average, linear layer.

    Hidden features are those after the second stage.

    Attributes:
      features: channels of each stage, of the first convolution too; each stage after the
        first halves the image.
      blocks: blocks in each stage.
    """

    num_classes: int
    features: tuple[int, ...]
    blocks: tuple[int, ...]
    norm: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, hidden: HiddenFn) -> jax.Array:
        x = nn.relu(normaliser(self.norm, train)()(Conv(self.features[0])(images)))
        for stage, (features, blocks) in enumerate(zip(self.features, self.blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(features, stride, self.norm)(x, train=train)
            x = hidden(x) if stage == 1 else x
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def make(num_classes: int, *, depth: int = 18, width: int = 64, norm: str = "batch") -> nn.Module:
    """Returns a ResNet of four stages with `width, 2, 4, 8 width` channels.

    `depth=18, width=64` is the paper's ResNet-18 for ImageNet with one 3x3 convolution of
    stride 1 in place of its first convolution and max-pooling, as the robust-training
    literature has it for 32x32 images (11.2 million parameters for ten classes).

    Args:
      num_classes: `K`.
      depth: 10, 18 or 34.
      width: channels of the first stage.
      norm: `"batch"`, `"batch:N"`, `"group"` (`width` a multiple of 8) or `"none"`.

    Raises:
      ValueError: another depth.

    Reference: He et al. 2015, arXiv 1512.03385.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"model.depth={depth} is unknown; choose one of {list(_BLOCKS)}")
    return ResNet(num_classes, tuple(width * 2**i for i in range(4)), _BLOCKS[depth], norm)
