"""WAT: worst-class adversarial training as a game against the Hedge algorithm."""

import jax
import jax.numpy as jnp

from fairmix_jax.methods.class_statistics import class_mean
from fairmix_jax.methods.rules import checked, knobs
from fairmix_jax.types import Amount, EpochStatistics, Rule, Source

SOURCE = Source("Li and Liu 2023, arXiv 2302.04025", "boqili/WAT", "MIT")


@checked
def make(num_classes: int, *, eta: Amount = 0.1, normalize: bool = False) -> Rule:
    """Returns loss weights `w_c + w_all`, where `w = K softmax(eta S)` over `K + 1` experts.

    The experts are the classes and their average; `S` sums each one's validation losses over
    the epochs (the base's loss at its own adversarial examples, running statistics). Before
    the first validation all `w` are 1.

    Guarantees: the weights are those of Hedge with gains `S`, for any number of epochs: only
    differences of `S` are kept. `eta = 0` with `normalize` is `none`.

    Edge cases: the weights of equal classes are `2 K / (K + 1)`, 1.82 for ten classes, and 2
    in the first epoch, as in the original: a larger step of the optimizer. A class without
    validation examples is charged the average.

    `normalize` divides by that factor, so that equal classes weigh 1. The official code's means
    over the validation set divide by padded batches; ours do not.
    """
    equal = 2 * num_classes / (num_classes + 1)

    def init():
        return {"gains": jnp.zeros(num_classes + 1), "is_first": jnp.asarray(True)}

    def to_knobs(state):
        experts = num_classes * jax.nn.softmax(eta * state["gains"])
        weight = experts[:-1] + experts[-1]
        weight = weight / equal if normalize else jnp.where(state["is_first"], 2.0, weight)
        return knobs(num_classes, loss_weight=weight)

    def update(state, statistics: EpochStatistics):
        loss, total = statistics.base.loss, statistics.base.counts.total
        average = jnp.sum(loss) / jnp.maximum(jnp.sum(total), 1).astype(jnp.float32)
        losses = class_mean(loss, total, absent=average)
        gains = state["gains"] + jnp.append(losses, average)
        return {"gains": gains - jnp.max(gains), "is_first": jnp.asarray(False)}

    return Rule(init, to_knobs, sets=("loss_weight",), reads=("base",), update=update)
