"""The training step: one pure function composed of base, rule, mixing and averaging."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fairmix_jax import evaluate
from fairmix_jax.mixing import Mixing
from fairmix_jax.types import (
    Array,
    Averaging,
    Base,
    Batch,
    ClassCounts,
    Key,
    Rule,
    StepInput,
    TrainState,
    Weights,
)

Augment = Callable[[Key, Array], Array]


class StepMetrics(NamedTuple):
    """Sums over a batch; sums of several batches add.

    Attributes:
      loss: `[]`, the weighted losses summed over examples.
      counts: at the inputs trained on, so robust training accuracy for adversarial bases.
    """

    loss: Array
    counts: ClassCounts


TrainStep = Callable[[TrainState, Batch, Key], tuple[TrainState, StepMetrics]]


def make_train_step(
    *,
    augment: Augment,
    mixing: Mixing,
    base: Base,
    rule: Rule,
    averaging: Averaging,
    tx: optax.GradientTransformation,
    mixing_steps: int = 2**31 - 1,
) -> TrainStep:
    """Returns the training step, a pure function for the caller to jit and donate.

    One step: augment, mix, attack and loss (inside `base`), weighted mean over the batch,
    optimizer update, weight average. Its randomness is `fold_in(key, state.step)`.

    Args:
      augment: `(key, images) -> images`.
      mixing: see `fairmix_jax.mixing.Mixing`.
      base: per-example losses, with the model and the attack inside.
      rule: gives the knobs; its state is updated by the loop, after a validation.
      averaging: which weights are evaluated.
      tx: the optimizer.
      mixing_steps: after this many steps nothing is mixed any more.

    Returns: `(state, batch, key) -> (state, metrics)`; the batch has no padding.
    """

    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, StepMetrics]:
        augment_key, mixing_key, base_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        knobs = rule.knobs(state.rule_state)
        strength = jnp.where(state.step < mixing_steps, knobs.mixing, 0.0)
        images = augment(augment_key, batch.images)
        mixed = mixing(mixing_key, images, batch.labels, strength)
        inputs = StepInput(
            labels=batch.labels,
            radius=knobs.radius[batch.labels],
            beta=knobs.beta[batch.labels],
            **mixed._asdict(),
        )

        def loss_fn(params):
            result = base(params, state.batch_stats, base_key, inputs)
            losses = knobs.loss_weight[batch.labels] * result.losses
            return jnp.mean(losses), (jnp.sum(losses), result)

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (loss, result)), gradient = gradient_fn(state.params)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        weights = Weights(params, result.batch_stats)
        counts = evaluate.count(result.logits, batch, num_classes=mixed.targets.shape[1])
        state = state.replace(
            step=step,
            params=params,
            batch_stats=result.batch_stats,
            opt_state=opt_state,
            average=averaging.update(state.average, weights, step),
        )
        return state, StepMetrics(loss, counts)

    return train_step
