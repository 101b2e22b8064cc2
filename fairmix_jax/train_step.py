"""The training step: one pure function composed of base, rule, mixing and averaging."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fairmix_jax import awp, class_statistics
from fairmix_jax.mixing import Mixing
from fairmix_jax.types import (
    Array,
    Averaging,
    Base,
    Batch,
    ClassStatistics,
    Key,
    Knobs,
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
      statistics: at the inputs trained on, so robust training accuracy for adversarial bases.
    """

    loss: Array
    statistics: ClassStatistics


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
    awp_gamma: float = 0.0,
    awp_from_step: int = 0,
    num_parts: int = 1,
) -> TrainStep:
    """Returns the training step, a pure function for the caller to jit and donate.

    One step: augment, mix, attack, the rule's view of the batch, weighted mean loss,
    optimizer update, weight average. Its randomness is `fold_in(key, state.step)`.

    Args:
      augment: `(key, images) -> images`.
      mixing: see `fairmix_jax.mixing.Mixing`.
      base: per-example losses, with the model and the attack inside.
      rule: observes the batch and gives the knobs; its `update` is called by the loop.
      averaging: which weights are evaluated.
      tx: the optimizer.
      mixing_steps: after this many steps nothing is mixed any more.
      awp_gamma: size of an adversarial weight perturbation, see `fairmix_jax.awp`; it
        ascends the base's mean loss without `Knobs.loss_weight`. 0 for none, at no cost.
      awp_from_step: steps before it are not perturbed.
      num_parts: attack and gradient go through equal parts of the augmented and mixed batch
        one after another, and the gradients are averaged, in a part's memory. Batch norm,
        the rule and the weight perturbation take each part for a batch.

    Returns: `(state, batch, key) -> (state, metrics)`; the batch has no padding.
    """

    def of_part(
        state: TrainState, rule_state: Any, inputs: StepInput, batch: Batch, key: Key
    ) -> tuple[Any, tuple[StepMetrics, Any, Any]]:
        """The gradient of a part of the batch, and what else it gives."""
        adversarial = base.attack(state.params, state.batch_stats, key, inputs)

        def plain_loss(params):
            return jnp.mean(base.loss(params, state.batch_stats, inputs, adversarial).losses)

        def loss_fn(params):
            result = base.loss(params, state.batch_stats, inputs, adversarial)
            seen = lax.stop_gradient((result.logits, result.losses))
            num_classes = inputs.targets.shape[1]
            statistics = class_statistics.measure(*seen, batch, num_classes=num_classes)
            observed = rule.observe(rule_state, statistics)
            weight = lax.stop_gradient(rule.knobs(observed).loss_weight)
            losses = weight[batch.labels] * result.losses
            metrics = StepMetrics(jnp.sum(losses), statistics)
            return jnp.mean(losses), (metrics, result.batch_stats, observed)

        where = state.params
        if awp_gamma:
            gamma = jnp.where(state.step < awp_from_step, 0.0, awp_gamma)
            where = awp.perturb(where, jax.grad(plain_loss)(where), gamma=gamma)
        gradient, rest = jax.grad(loss_fn, has_aux=True)(where)
        return (gradient, where if awp_gamma else ()), rest

    def train_step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, StepMetrics]:
        augment_key, mixing_key, base_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        knobs = rule.knobs(state.rule_state)
        strength = jnp.where(state.step < mixing_steps, knobs.mixing, 0.0)
        images = augment(augment_key, batch.images)
        mixed = mixing(mixing_key, images, batch.labels, strength)
        inputs = _inputs(knobs, batch.labels, **mixed._asdict())
        (gradient, where), (metrics, batch_stats, rule_state) = _accumulated(
            partial(of_part, state), num_parts, state.rule_state, inputs, batch, base_key
        )
        where = where if awp_gamma else state.params
        updates, opt_state = tx.update(gradient, state.opt_state, where)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        state = state.replace(
            step=step,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            rule_state=rule_state,
            average=averaging.update(state.average, Weights(params, batch_stats), step),
        )
        return state, metrics

    return train_step


def _accumulated(
    of_part: Callable[..., Any], num_parts: int, rule_state: Any, inputs: StepInput, batch: Batch,
    key: Key,
) -> Any:  # fmt: skip
    """What `of_part` gives of the parts of a batch: means, but sums of metrics.

    The rule's state goes from part to part.

    Example `i` belongs to part `i % num_parts`, so that on several devices every part lies on
    all of them and nothing moves. Its random start is that in the whole batch.
    """
    if num_parts == 1:
        return of_part(rule_state, inputs, batch, key)
    functions: dict[str, Any] = {"after_attack": inputs.after_attack, "hidden": inputs.hidden}
    arrays: dict[str, Any] = {"index": jnp.arange(len(batch.labels))} | dict.fromkeys(functions)
    inputs = inputs._replace(**arrays)

    def split(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)

    def one(rule_state: Any, part: tuple[StepInput, Batch]) -> Any:
        part_inputs, part_batch = part
        part_inputs = part_inputs._replace(**functions)
        means, rest = of_part(rule_state, part_inputs, part_batch, jax.random.clone(key))
        metrics, batch_stats, rule_state = rest
        return (means, batch_stats, metrics), rule_state

    def body(carry: Any, part: Any) -> tuple[Any, None]:
        found, rule_state = one(carry[1], part)
        return (jax.tree.map(jnp.add, carry[0], found), rule_state), None

    parts = jax.tree.map(split, (inputs, batch))
    found, _ = jax.eval_shape(one, rule_state, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
    ((means, batch_stats, metrics), rule_state), _ = lax.scan(body, (zeros, rule_state), parts)
    means, batch_stats = jax.tree.map(lambda x: x / num_parts, (means, batch_stats))
    return means, (metrics, batch_stats, rule_state)


def _inputs(knobs: Knobs, labels: Array, **mixed) -> StepInput:
    return StepInput(
        labels=labels,
        radius=knobs.radius[labels],
        step_size=knobs.step_size[labels],
        ce_weight=knobs.ce_weight[labels],
        beta=knobs.beta[labels],
        **mixed,
    )
