"""Images of noise, of any shape, for benchmarks: nothing can be learned from them."""

import numpy as np

from fairmix_jax.data import Dataset, Split
from fairmix_jax.types import Count


def make(
    *, height: Count = 32, width: Count = 32, channels: Count = 3, num_classes: Count = 10,
    examples: Count = 1_024,
) -> Dataset:  # fmt: skip
    """Returns uniform uint8 images `[examples, height, width, channels]`, the test set alike.

    Labels go round; the same numbers in every run.
    """
    rng = np.random.default_rng(0)

    def split() -> Split:
        images = rng.integers(0, 256, (examples, height, width, channels), dtype=np.uint8)
        return Split(images, (np.arange(examples) % num_classes).astype(np.int32))

    return Dataset(split(), split(), tuple(str(number) for number in range(num_classes)))
