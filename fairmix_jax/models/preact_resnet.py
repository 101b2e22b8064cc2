"""Pre-activation residual networks for small images."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairmix_jax.models._layers import Conv, HiddenFn, normaliser

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and ReLU, added to the input.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    features: int
    stride: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = normaliser(self.norm, train)
        active = nn.relu(norm()(x))
        same_shape = self.stride == 1 and x.shape[-1] == self.features
        shortcut = x if same_shape else Conv(self.features, size=1, stride=self.stride)(active)
        y = Conv(self.features, stride=self.stride)(active)
        return shortcut + Conv(self.features)(nn.relu(norm()(y)))


class ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, normalisation, global average, linear layer.

    Hidden features are those after the second stage.

    Attributes:
      stem: channels of the first convolution.
      features: channels of each stage; each stage after the first halves the image.
      blocks: blocks in each stage.
    """

    num_classes: int
    stem: int
    features: tuple[int, ...]
    blocks: tuple[int, ...]
    norm: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, hidden: HiddenFn) -> jax.Array:
        x = Conv(self.stem)(images)
        for stage, (features, blocks) in enumerate(zip(self.features, self.blocks, strict=True)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = PreActBlock(features, stride, self.norm)(x, train=train)
            x = hidden(x) if stage == 1 else x
        x = nn.relu(normaliser(self.norm, train)()(x))
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def make(num_classes: int, *, depth: int = 18, width: int = 64, norm: str = "batch") -> nn.Module:
    """Returns a PreActResNet of four stages with `width, 2, 4, 8 width` channels.

    `depth=18, width=64` is the PreActResNet-18 of the robust-training literature
    (11.2 million parameters for ten classes).

    Args:
      num_classes: `K`.
      depth: 10, 18 or 34.
      width: channels of the first stage.
      norm: `"batch"`, `"batch:N"`, `"group"` (`width` a multiple of 8) or `"none"`.

    Raises:
      ValueError: another depth.

    Reference: He et al. 2016, arXiv 1603.05027.
    """
    if depth not in _BLOCKS:
        raise ValueError(f"model.depth={depth} is unknown; choose one of {list(_BLOCKS)}")
    return ResNet(num_classes, width, tuple(width * 2**i for i in range(4)), _BLOCKS[depth], norm)
