"""TRADES: cross-entropy on clean inputs plus agreement with adversarial ones."""

import dataclasses
from functools import partial

import jax
import optax
from jax import lax

from fairmix_jax.methods.bases import checked
from fairmix_jax.methods.training_attack import Start, TrainingAttack
from fairmix_jax.types import Amount, ApplyFn, Base, BaseLoss, Source, StepInput

SOURCE = Source("Zhang et al. 2019, arXiv 1901.08573", "yaodongyu/TRADES", "present")


@checked
def make(
    apply_fn: ApplyFn, attack: TrainingAttack, *, beta: Amount = 6.0, start: Start = "normal",
    noise: Amount = 0.001, clean_gradient: bool = True, normalize: bool = False,
) -> Base:  # fmt: skip
    """Returns the loss `w_y CE(f(x), target) + beta b_y KL(p(x) || p(x'))`.

    `x'` ascends that divergence from the attack's starting noise; `w_y`, `b_y` are the knobs
    of the class. The loss is taken with batch statistics, of `x` and of `x'` apart, and the
    running ones see `x`, then `x'`. The original passes `x` a third time, for the same loss;
    its running statistics see `x` twice.

    Guarantees: with `beta = 0`, or a radius of zero, losses and gradients are those of
    `standard`; the running statistics have seen one pass more.

    With `clean_gradient` the divergence's gradient also flows through `p(x)`, as in the original;
    `normalize` divides by `1 + beta b_y`, as the repository of CFA (Wei et al. 2023) does: the same
    loss with a smaller step.
    """
    attack = dataclasses.replace(attack, start=start, noise=noise)

    def perturb(params, batch_stats, key, inputs: StepInput):
        network = partial(apply_fn, params, batch_stats)
        mode = attack.batch_norm == "train"
        clean = jax.nn.softmax(network(inputs.images, train=mode)[0])
        return attack(network, key, inputs, loss="kl", compare=clean)

    def loss_fn(params, batch_stats, inputs: StepInput, adversarial) -> BaseLoss:
        clean, robust, stats = both_logits(apply_fn, params, batch_stats, inputs, adversarial)
        anchor = clean if clean_gradient else lax.stop_gradient(clean)
        weight = beta * inputs.beta
        losses = inputs.ce_weight * optax.softmax_cross_entropy(clean, inputs.targets)
        losses += weight * divergence(anchor, robust)
        return BaseLoss(losses / (1 + weight) if normalize else losses, robust, stats)

    return Base(perturb, loss_fn)


def both_logits(apply_fn: ApplyFn, params, batch_stats, inputs: StepInput, adversarial):
    """Returns training-mode logits at `x` and at `x'`, and the statistics after both."""
    logits = []
    for images in (inputs.images, adversarial):
        output, batch_stats = apply_fn(
            params, batch_stats, inputs.after_attack(images), train=True, hidden=inputs.hidden
        )
        logits.append(output)
    return *logits, batch_stats


def divergence(clean: jax.Array, robust: jax.Array) -> jax.Array:
    """Returns `KL(softmax(clean) || softmax(robust))`, `[B]`, from logits `[B, K]`."""
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(robust), jax.nn.log_softmax(clean)
    )
