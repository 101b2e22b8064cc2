"""The two-Gaussian mixture of the theory: unequal variances, one linear boundary."""

import math

import numpy as np

from fairmix_jax.data import Dataset, Split
from fairmix_jax.types import Amount, Count, Natural, Positive


def make(
    *, dimension: Count = 10, separation: Amount = 2.5, ratio: Positive = 2.0,
    examples_per_class: Count = 5_000, test_per_class: Count = 20_000, draw: Natural = 0,
) -> Dataset:  # fmt: skip
    """Returns samples of `x | + ~ N(theta, ratio^2 I)` and `x | - ~ N(-theta, I)`.

    `theta = separation / sqrt(d) (1, ..., 1)`, so that `||theta|| = separation` in units of
    the narrow class's standard deviation. An image is `[1, 1, d]`; pixels are unbounded.

    Args:
      dimension, separation, ratio: `d`, `m = sqrt(d) eta / sigma` and `K`, the standard
        deviation of the wide class over that of the narrow one.
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

    train, test = split(examples_per_class), split(test_per_class)
    return Dataset(train, test, ("-", "+"), bounds=(-math.inf, math.inf))
