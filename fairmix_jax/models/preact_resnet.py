"""Pre-activation residual networks for small images."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
from flax import linen as nn

from fairmix_jax.models.layers import Activation, Conv, NormKind, PaddingKind, normaliser
from fairmix_jax.models.resnet import BLOCKS, ResNet
from fairmix_jax.runtime.registry import checked
from fairmix_jax.types import Count

Shortcut = Literal["activated", "raw", "raw3x3"]
"""What the convolution of a shortcut reads, and its size, see `PreActBlock`."""


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after normalisation and activation, added to the input.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, with
    `shortcut="raw"` of the input itself, and with `"raw3x3"` a 3x3 one of that. `padding` is as in
    `Conv`.
    """

    features: int
    stride: int
    norm: str
    activation: str = "relu"
    padding: str = "torch"
    shortcut: str = "activated"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm, activate = normaliser(self.norm, train), getattr(nn, self.activation)
        convolution = partial(Conv, self.features, padding=self.padding)
        active, shortcut = activate(norm()(x)), x
        if self.stride > 1 or x.shape[-1] != self.features:
            size = 3 if self.shortcut == "raw3x3" else 1
            seen = active if self.shortcut == "activated" else x
            shortcut = convolution(size, self.stride)(seen)
        y = convolution(stride=self.stride)(active)
        return shortcut + convolution()(activate(norm()(y)))


def preactivated(
    num_classes: int, stem: int, features: Sequence[int], blocks: Sequence[int], norm: str, *,
    activation: str, last_norm: bool, **options: str,
) -> nn.Module:  # fmt: skip
    """Returns a `ResNet` of `PreActBlock`s; `options` are those of the blocks alone."""
    block = partial(PreActBlock, activation=activation, **options)
    return ResNet(
        num_classes, stem, tuple(features), tuple(blocks), norm, block, activation,
        first_norm=False, last_norm=last_norm,
    )  # fmt: skip


@checked
def make(
    num_classes: int, *, depth: Literal[10, 18, 34] = 18, width: Count = 64,
    norm: NormKind = "batch", activation: Activation = "relu", padding: PaddingKind = "torch",
    shortcut: Shortcut = "activated", last_norm: bool = True,
) -> nn.Module:  # fmt: skip
    """Returns a PreActResNet of four stages with `width, 2, 4, 8 width` channels.

    `depth=18, width=64` is the PreActResNet-18 of the robust-training literature
    (11.2 million parameters for ten classes). That of Wong et al. 2020 (arXiv 2001.03994) has
    `shortcut="raw", last_norm=False`: nothing between the last block and the pooling. DeepMind's
    has `activation="silu", padding="same", shortcut="raw3x3"` (Gowal et al. 2020, arXiv
    2010.03593). See `PreActBlock`; `norm` is as in `layers.normaliser`.

    Reference: He et al. 2016, arXiv 1603.05027.
    """
    features = [width * 2**i for i in range(4)]
    return preactivated(
        num_classes, width, features, BLOCKS[depth], norm,
        activation=activation, last_norm=last_norm, padding=padding, shortcut=shortcut,
    )  # fmt: skip
