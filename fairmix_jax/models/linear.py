"""A linear classifier on the flattened image."""

import jax
from flax import linen as nn

from fairmix_jax.models.layers import HiddenFn


class Linear(nn.Module):
    """`logits = W x + b`."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, hidden: HiddenFn) -> jax.Array:
        del train
        dense = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)
        return dense(hidden(images.reshape(len(images), -1)))


def make(num_classes: int) -> nn.Module:
    """Returns the linear classifier, started at zero."""
    return Linear(num_classes)
