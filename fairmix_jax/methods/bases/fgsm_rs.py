"""Fast adversarial training: one step from a random start."""

import dataclasses

from fairmix_jax.methods.bases import checked, pgd_at
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.types import ApplyFn, Base, Positive, Source

SOURCE = Source("Wong et al. 2020, arXiv 2001.03994", "locuslab/fast_adversarial", "none seen")


@checked
def make(apply_fn: ApplyFn, attack: TrainingAttack, *, step: Positive = 1.25) -> Base:
    """Returns `pgd_at` with one step of `step * epsilon` from a uniform start.

    `attack.num_steps` and `attack.step_size` are not used in training. It can fail: from one epoch
    to the next the network may become robust to the single step only. The loop then says so.
    `step` is in units of the radius; 1.25 in the paper (10/255 at 8/255).
    """
    single = dataclasses.replace(attack, num_steps=1, step_size=step * attack.threat.epsilon)
    return pgd_at.make(apply_fn, single)._replace(single_step=True)
