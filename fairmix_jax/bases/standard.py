"""Standard training: cross-entropy on the inputs as they are."""

import optax

from fairmix_jax.types import ApplyFn, Attack, Base, BaseLoss, StepInput


def make(apply_fn: ApplyFn, attack: Attack) -> Base:
    """Returns the loss `CE(f(x), target)`; the attack is not used."""
    del attack

    def base(params, batch_stats, key, inputs: StepInput) -> BaseLoss:
        del key
        images = inputs.after_attack(inputs.images)
        logits, batch_stats = apply_fn(
            params, batch_stats, images, train=True, hidden=inputs.hidden
        )
        return BaseLoss(optax.softmax_cross_entropy(logits, inputs.targets), logits, batch_stats)

    return base
