"""Wide residual networks."""

from flax import linen as nn

from fairmix_jax.models.layers import Activation, NormKind, PaddingKind
from fairmix_jax.models.preact_resnet import Shortcut, preactivated
from fairmix_jax.runtime.registry import checked
from fairmix_jax.types import Count


@checked
def make(
    num_classes: int, *, depth: Count = 28, width: Count = 10, norm: NormKind = "batch",
    activation: Activation = "relu", padding: PaddingKind = "torch",
    shortcut: Shortcut = "activated", last_norm: bool = True,
) -> nn.Module:  # fmt: skip
    """Returns WideResNet-`depth`-`width`: three stages of `16, 32, 64 width` channels.

    `depth` is `6 n + 4` for `n` blocks a stage, e.g. 28 or 34, another is a `ValueError`; `width`
    the widening factor. DeepMind's robust networks have `activation="silu", padding="same"`
    (Gowal et al. 2020, arXiv 2010.03593). The rest is as in `preact_resnet.make`.

    Reference: Zagoruyko and Komodakis 2016, arXiv 1605.07146.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"model.depth={depth} is not 6 n + 4; choose for example 16, 28 or 34")
    features = [16 * width * 2**i for i in range(3)]
    return preactivated(
        num_classes, 16, features, [blocks] * 3, norm,
        activation=activation, last_norm=last_norm, padding=padding, shortcut=shortcut,
    )  # fmt: skip
