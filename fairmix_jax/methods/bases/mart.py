"""MART: misclassification-aware adversarial training."""

import jax
import jax.numpy as jnp
import optax

from fairmix_jax.methods.bases import checked, pgd_at
from fairmix_jax.methods.bases.trades import both_logits, divergence
from fairmix_jax.methods.training_attack import Start, TrainingAttack
from fairmix_jax.types import Amount, ApplyFn, Base, BaseLoss, Source, StepInput

SOURCE = Source("Wang et al. 2020, ICLR", "YisenWang/MART", "none")


@checked
def make(
    apply_fn: ApplyFn, attack: TrainingAttack, *, beta: Amount = 5.0, start: Start = "normal",
    noise: Amount = 0.001,
) -> Base:  # fmt: skip
    """Returns the loss `w_y BCE(x') + beta b_y KL(p(x) || p(x')) (1.0000001 - p_y(x))`.

    `BCE(x') = CE(x') - log(1.0001 - max_{k != y} p_k(x'))` is boosted by the strongest wrong
    class. `x'` ascends the cross-entropy; `w_y`, `b_y` are the knobs of the class. Batch
    statistics as in `trades`. Gradients flow through all factors, the last one too. For mixed
    targets `p_y` is the targets' mean of `p`, and the wrong classes are those without weight.

    Guarantees: at a radius of zero the divergence vanishes; `beta = 0` is `BCE` alone. It is 5 in
    the original's training script, 6 the default of its loss.

    Reference: "Improving adversarial robustness requires revisiting misclassified examples".
    """

    def loss_fn(params, batch_stats, inputs: StepInput, adversarial) -> BaseLoss:
        clean, robust, stats = both_logits(apply_fn, params, batch_stats, inputs, adversarial)
        wrong = jnp.where(inputs.targets > 0, 0.0, jax.nn.softmax(robust))
        boosted = optax.softmax_cross_entropy(robust, inputs.targets) - jnp.log(
            1.0001 - jnp.max(wrong, axis=-1) + 1e-12
        )
        own = jnp.sum(inputs.targets * jax.nn.softmax(clean), axis=-1)
        penalty = divergence(clean, robust) * (1.0000001 - own)
        losses = inputs.ce_weight * boosted + beta * inputs.beta * penalty
        return BaseLoss(losses, robust, stats)

    return pgd_at.make(apply_fn, attack, start=start, noise=noise)._replace(loss=loss_fn)
