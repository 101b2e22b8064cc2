"""Adversarial training on PGD examples."""

import optax
from jax import lax

from fairmix_jax.types import ApplyFn, Attack, Base, BaseLoss, StepInput


def make(apply_fn: ApplyFn, attack: Attack) -> Base:
    """Returns the loss `CE(f(x'), target)` at `x'` that the attack finds around `x`.

    The attack sees the current parameters with running batch statistics and writes none;
    the loss is taken with batch statistics and updates the running ones from `x'` only.

    Guarantees: with a radius of zero it equals `standard`.

    Reference: Madry et al. 2018, arXiv 1706.06083.
    """

    def base(params, batch_stats, key, inputs: StepInput) -> BaseLoss:
        fixed = lax.stop_gradient(params)
        adversarial = attack(
            lambda x: apply_fn(fixed, batch_stats, x, train=False)[0],
            key,
            inputs.images,
            inputs.labels,
            targets=inputs.targets,
            scale=inputs.radius,
        )
        logits, new_stats = apply_fn(
            params, batch_stats, inputs.after_attack(adversarial), train=True, hidden=inputs.hidden
        )
        return BaseLoss(optax.softmax_cross_entropy(logits, inputs.targets), logits, new_stats)

    return base
