"""Pre-activation residual networks for small images."""

import jax
from flax import linen as nn

from fairmix_jax.models.layers import Conv, NormKind, normaliser
from fairmix_jax.models.resnet import Depth, four_stages
from fairmix_jax.types import Count


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


def make(
    num_classes: int, *, depth: Depth = 18, width: Count = 64, norm: NormKind = "batch"
) -> nn.Module:
    """Returns a PreActResNet; arguments and stages as in `resnet.make`.

    `depth=18, width=64` is the PreActResNet-18 of the robust-training literature
    (11.2 million parameters for ten classes).

    Reference: He et al. 2016, arXiv 1603.05027.
    """
    return four_stages(num_classes, depth, width, norm, block=PreActBlock, preactivated=True)
