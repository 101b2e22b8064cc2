"""Layers the networks share."""

from collections.abc import Callable

import jax
from flax import linen as nn

from fairmix_jax.conv import conv, same_padding

HiddenFn = Callable[[jax.Array], jax.Array]


class Conv(nn.Module):
    """A square convolution without bias that keeps the image size at stride 1.

    Kernels are drawn from a normal distribution of variance `2 / fan_out`.

    Reference: He et al. 2015, arXiv 1502.01852.
    """

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            (self.size, self.size, images.shape[-1], self.features),
        )
        return conv(images, kernel, stride=self.stride, padding=same_padding(self.size))


def normaliser(kind: str, train: bool) -> Callable[[], Callable[[jax.Array], jax.Array]]:
    """Returns a constructor of normalisation layers.

    Args:
      kind: `"batch"` (running statistics with momentum 0.9 unless `train`), `"group"`
        (groups of at most 16 channels' worth, no statistics) or `"none"`.
      train: whether batch norm uses and updates the statistics of the batch.

    Raises:
      ValueError: unknown kind.
    """
    if kind == "batch":
        return lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9)
    if kind == "group":
        return lambda: nn.GroupNorm(num_groups=None, group_size=8)
    if kind == "none":
        return lambda: lambda x: x
    raise ValueError(f"model.norm={kind!r} is unknown; choose 'batch', 'group' or 'none'")
