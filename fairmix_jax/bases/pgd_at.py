"""Adversarial training on PGD examples."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fairmix_jax.types import ApplyFn, Attack, Base, BaseLoss, StepInput

_LOSSES = {
    "ce": optax.softmax_cross_entropy,
    "squared": lambda logits, targets: jnp.sum((logits - targets) ** 2, axis=-1),
    "zero_one": lambda logits, targets: 1 - jnp.sum(jax.nn.softmax(logits) * targets, axis=-1),
}


def make(apply_fn: ApplyFn, attack: Attack, *, loss: str = "ce") -> Base:
    """Returns the loss `L(f(x'), target)` at `x'` that the attack finds around `x`.

    The attack ascends the cross-entropy whatever `L` is; it sees the current parameters
    with running batch statistics and writes none. The loss is taken with batch statistics
    and updates the running ones from `x'` only.

    Guarantees: with a radius of zero and `loss="ce"` it equals `standard`.

    Args:
      apply_fn: the model.
      attack: how to perturb.
      loss: `"ce"`, the cross-entropy; `"squared"`, the squared error of the logits to the
        target; `"zero_one"`, the probability of a wrong class, a smooth 0-1 loss.

    Raises:
      ValueError: unknown loss.

    Reference: Madry et al. 2018, arXiv 1706.06083 (with the cross-entropy).
    """
    if loss not in _LOSSES:
        raise ValueError(f"base.loss={loss!r} is unknown; choose one of {', '.join(_LOSSES)}")

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
        return BaseLoss(_LOSSES[loss](logits, inputs.targets), logits, new_stats)

    return base
