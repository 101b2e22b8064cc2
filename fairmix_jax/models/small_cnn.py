"""A small convolutional network for small grey images."""

import jax
from flax import linen as nn

from fairmix_jax.models.layers import Conv, HiddenFn, NormKind, normaliser
from fairmix_jax.types import Count


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of `width`, `2 width`, `4 width` channels, then a linear layer.

    The second and third convolution halve the image; hidden features are the second's.
    """

    num_classes: int
    width: int
    norm: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, hidden: HiddenFn) -> jax.Array:
        norm = normaliser(self.norm, train)
        x = images
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            x = nn.relu(norm()(Conv(factor * self.width, stride=stride)(x)))
            x = hidden(x) if factor == 2 else x
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))


def make(num_classes: int, *, width: Count = 16, norm: NormKind = "batch") -> nn.Module:
    """Returns the network; `norm` as in `layers.normaliser`."""
    return SmallCNN(num_classes, width, norm)
