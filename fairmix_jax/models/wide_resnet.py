"""Wide residual networks."""

from flax import linen as nn

from fairmix_jax.models.layers import NormKind
from fairmix_jax.models.preact_resnet import PreActBlock
from fairmix_jax.models.resnet import ResNet
from fairmix_jax.types import Count


def make(
    num_classes: int, *, depth: Count = 28, width: Count = 10, norm: NormKind = "batch"
) -> nn.Module:
    """Returns WideResNet-`depth`-`width`: three stages of `16, 32, 64 width` channels.

    `depth` is `6 n + 4` for `n` blocks a stage, e.g. 28 or 34, another is a `ValueError`; `width`
    the widening factor; `norm` as in `layers.normaliser`.

    Reference: Zagoruyko and Komodakis 2016, arXiv 1605.07146.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"model.depth={depth} is not 6 n + 4; choose for example 16, 28 or 34")
    features = tuple(16 * width * 2**i for i in range(3))
    return ResNet(num_classes, 16, features, (blocks,) * 3, norm, PreActBlock, preactivated=True)
