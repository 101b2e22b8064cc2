"""Fast adversarial training with more noise and no clipping."""

import dataclasses

from fairmix_jax.methods.bases import checked, pgd_at
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.types import Amount, ApplyFn, Base, Positive, Source

SOURCE = Source("de Jorge et al. 2022, arXiv 2202.01181", "pdejorge/N-FGSM", "MIT")


@checked
def make(
    apply_fn: ApplyFn, attack: TrainingAttack, *, noise: Amount = 2.0, step: Positive = 1.0
) -> Base:
    """Returns `pgd_at` with one step of `step * epsilon` from noise that may leave the ball.

    The start is uniform in `noise * epsilon` around the image, and neither it nor the result
    is brought back to the radius, only to the bounds (and to `noise + step` times a radius
    that a rule has made smaller than the step). That keeps the network from learning
    to defeat the single step, at the price of inputs up to `(noise + step) epsilon` away. Defaults
    are those of the official code; `attack.num_steps` and `attack.step_size` are not used.

    Guarantees: with a radius of zero it equals `standard`.
    """
    reach, epsilon = noise + step, attack.threat.epsilon
    single = dataclasses.replace(
        attack, threat=dataclasses.replace(attack.threat, epsilon=reach * epsilon),
        num_steps=1, step_size=step * epsilon, start_fraction=noise / reach,
    )  # fmt: skip
    return pgd_at.make(apply_fn, single)._replace(single_step=True)
