"""Standard training: cross-entropy on the inputs as they are."""

from fairmix_jax.methods.bases import pgd_at
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.types import ApplyFn, Base, Source

SOURCE = Source("-")


def make(apply_fn: ApplyFn, attack: TrainingAttack) -> Base:
    """Returns the loss `CE(f(x), target)`, that of `pgd_at` without its attack."""
    base = pgd_at.make(apply_fn, attack)
    return base._replace(attack=lambda params, batch_stats, key, inputs: inputs.images)
