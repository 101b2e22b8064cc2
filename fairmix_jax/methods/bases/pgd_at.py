"""Adversarial training on PGD examples."""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fairmix_jax.methods.bases import checked
from fairmix_jax.methods.training_attack import Start, TrainingAttack
from fairmix_jax.types import Amount, ApplyFn, Base, BaseLoss, Source, StepInput

SOURCE = Source(
    "Madry et al. 2018, arXiv 1706.06083; recipe Rice et al. 2020, arXiv 2002.11569",
    "locuslab/robust_overfitting", "none",
)  # fmt: skip

_LOSSES = {
    "ce": optax.softmax_cross_entropy,
    "squared": lambda logits, targets: jnp.sum((logits - targets) ** 2, axis=-1),
    "zero_one": lambda logits, targets: 1 - jnp.sum(jax.nn.softmax(logits) * targets, axis=-1),
}


@checked
def make(
    apply_fn: ApplyFn, attack: TrainingAttack, *,
    loss: Literal["ce", "squared", "zero_one"] = "ce", start: Start = "uniform",
    noise: Amount = 0.001,
) -> Base:  # fmt: skip
    """Returns the loss `L(f(x'), target)` at `x'` that the attack finds around `x`.

    The attack ascends the cross-entropy whatever `L` is, and writes no batch statistics. `L` is
    taken with batch statistics and updates the running ones from `x'` only: the cross-entropy, as
    in the source, the `"squared"` error of the logits to the target, or `"zero_one"`, the
    probability of a wrong class.

    Guarantees: with a radius of zero and `loss="ce"` it equals `standard`.
    """
    attack = dataclasses.replace(attack, start=start, noise=noise)

    def perturb(params, batch_stats, key, inputs: StepInput):
        return attack(partial(apply_fn, params, batch_stats), key, inputs)

    def loss_fn(params, batch_stats, inputs: StepInput, adversarial) -> BaseLoss:
        logits, new_stats = apply_fn(
            params, batch_stats, inputs.after_attack(adversarial), train=True, hidden=inputs.hidden
        )
        losses = inputs.ce_weight * _LOSSES[loss](logits, inputs.targets)
        return BaseLoss(losses, logits, new_stats)

    return Base(perturb, loss_fn)
