"""The two-Gaussian mixture of the theory: unequal variances, one linear boundary."""

import math

import numpy as np

from fairmix_jax.data import Dataset, Split


def make(
    *,
    dimension: int = 10,
    separation: float = 2.5,
    ratio: float = 2.0,
    examples_per_class: int = 5_000,
    test_per_class: int = 20_000,
    draw: int = 0,
) -> Dataset:
    """Returns samples of `x | + ~ N(theta, ratio^2 I)` and `x | - ~ N(-theta, I)`.

    `theta = separation / sqrt(d) (1, ..., 1)`, so that `||theta|| = separation` in units of
    the narrow class's standard deviation. An image is `[1, 1, d]`; pixels are unbounded.

    Args:
      dimension: `d`.
      separation: `m = sqrt(d) eta / sigma`.
      ratio: `K`, standard deviation of the wide class over that of the narrow one.
      examples_per_class, test_per_class: sizes.
      draw: number of the random draw of training and test set.

    Returns: labels 0 for the narrow class "-", 1 for the wide class "+".

    Reference: Xu et al. 2021, arXiv 2010.06121.
    """
    rng = np.random.default_rng(draw)

    def split(per_class: int) -> Split:
        labels = np.repeat(np.arange(2, dtype=np.int32), per_class)
        sign, scale = 2.0 * labels - 1, np.where(labels == 1, ratio, 1.0)
        center = sign * separation / math.sqrt(dimension)
        images = center[:, None] + scale[:, None] * rng.standard_normal((len(labels), dimension))
        return Split(images.astype(np.float32)[:, None, None], labels)

    return Dataset(
        split(examples_per_class),
        split(test_per_class),
        ("-", "+"),
        bounds=(-math.inf, math.inf),
    )
