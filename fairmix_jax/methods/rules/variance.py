"""Fairly adversarial training: a penalty on the variance of the class losses."""

import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import class_mean
from fairmix_jax.methods.rules import checked, weighed_by_batch
from fairmix_jax.types import Amount, Array, ClassStatistics, Rule, Source

SOURCE = Source("Ma et al. 2022, NeurIPS", "wzekai99/FAT", "MIT")


@checked
def make(num_classes: int, *, alpha: Amount = 0.1) -> Rule:
    """Returns the loss weights whose gradient is that of `mean + alpha Var_c(L_c)`.

    `L_c` is the mean loss of class `c` in the batch, `Var` the unbiased variance over the
    `C` classes present. Differentiated, an example of class `c` weighs
    `1 + 2 alpha / (C - 1) (L_c - mean_c L) B / n_c`.

    Guarantees: the gradient is exactly that of the penalised loss; `alpha = 0` is `none`;
    a batch of one class is not reweighted.

    Edge cases: for large `alpha` or rare classes a weight can be negative: the penalty then
    gains more from raising an easy class's loss than the mean loses.

    Where we differ from the official code: its loss vector has length 100 on CIFAR-10 as well, so
    that its penalty is `(v + m^2) / 11`, mostly the squared mean `m` of the losses and not their
    variance `v`. With TRADES it penalises the cross-entropy, we the loss.

    Reference: "On the tradeoff between robustness and fairness".
    """

    def weigh(statistics: ClassStatistics) -> Array:
        counts = statistics.counts.total.astype(jnp.float32)
        present = counts > 0
        number = jnp.sum(present).astype(jnp.float32)
        losses = class_mean(statistics.loss, counts)
        excess = losses - jnp.sum(losses) / jnp.maximum(number, 1.0)
        factor = 2 * alpha / jnp.maximum(number - 1, 1.0) * jnp.sum(counts)
        return jnp.where(present, 1 + factor * excess / jnp.maximum(counts, 1.0), 1.0)

    return weighed_by_batch(num_classes, weigh)
