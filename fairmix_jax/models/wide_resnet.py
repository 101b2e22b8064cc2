"""Wide residual networks."""

from flax import linen as nn

from fairmix_jax.models.preact_resnet import ResNet


def make(num_classes: int, *, depth: int = 28, width: int = 10, norm: str = "batch") -> nn.Module:
    """Returns WideResNet-`depth`-`width`: three stages of `16, 32, 64 width` channels.

    Args:
      num_classes: `K`.
      depth: `6 n + 4` for `n` blocks a stage, e.g. 28 or 34.
      width: the widening factor, e.g. 10.
      norm: `"batch"`, `"batch:N"`, `"group"` or `"none"`.

    Raises:
      ValueError: `depth` is not of that form.

    Reference: Zagoruyko and Komodakis 2016, arXiv 1605.07146.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"model.depth={depth} is not 6 n + 4; choose for example 16, 28 or 34")
    return ResNet(num_classes, 16, tuple(16 * width * 2**i for i in range(3)), (blocks,) * 3, norm)
