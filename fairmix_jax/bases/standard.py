"""Standard training: cross-entropy on the inputs as they are."""

import optax

from fairmix_jax.training_attack import TrainingAttack
from fairmix_jax.types import ApplyFn, Base, BaseLoss, Source, StepInput

SOURCE = Source("-")


def make(apply_fn: ApplyFn, attack: TrainingAttack) -> Base:
    """Returns the loss `CE(f(x), target)`; the attack is not used."""
    del attack

    def loss_fn(params, batch_stats, inputs: StepInput, images) -> BaseLoss:
        logits, batch_stats = apply_fn(
            params, batch_stats, inputs.after_attack(images), train=True, hidden=inputs.hidden
        )
        losses = inputs.ce_weight * optax.softmax_cross_entropy(logits, inputs.targets)
        return BaseLoss(losses, logits, batch_stats)

    return Base(lambda params, batch_stats, key, inputs: inputs.images, loss_fn)
