"""The training step: one pure function composed of base, rule, mixing and averaging."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fairmix_jax import types as t
from fairmix_jax.methods import awp, class_statistics
from fairmix_jax.methods.averaging import none as no_averaging
from fairmix_jax.methods.mixing import Mixing
from fairmix_jax.methods.mixing import make as make_mixing
from fairmix_jax.methods.rules import none as no_rule
from fairmix_jax.runtime.inputs import threefry

Augment = Callable[[t.Key, t.Array], t.Array]


class StepMetrics(NamedTuple):
    """Sums over a batch; sums of several batches add."""

    loss: t.Array  # [], of the weighted losses
    statistics: t.ClassStatistics  # at the inputs trained on


TrainStep = Callable[[t.TrainState, t.Batch, t.Key], tuple[t.TrainState, StepMetrics]]


def initial_state(
    weights: t.Weights, *, tx: optax.GradientTransformation, rule: t.Rule | None = None,
    averaging: t.Averaging | None = None,
) -> t.TrainState:  # fmt: skip
    """Returns the state before the first step; arguments as in `make_train_step`.

    Guarantee: no two of its arrays are one, nor one of the weights given, so that it may be
    donated and the weights are still there.
    """
    weights = jax.tree.map(jnp.array, weights)
    rule_state = rule.init() if rule else ()
    average = averaging.init(weights) if averaging else ()
    step, opt_state = jnp.asarray(0, jnp.int32), tx.init(weights.params)
    return apart(t.TrainState(step, *weights, opt_state, rule_state, average))


def apart(state: t.TrainState) -> t.TrainState:
    """Returns the state with a copy of each array that was in it before.

    A rule or an average may use an array twice; donated twice it would crash the process.
    """
    seen = set()

    def own(leaf: t.Array) -> t.Array:
        leaf = jnp.array(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, state)


def make_train_step(
    *, base: t.Base, tx: optax.GradientTransformation, augment: Augment | None = None,
    mixing: Mixing | None = None, rule: t.Rule | None = None,
    averaging: t.Averaging | None = None, num_classes: int = 0, mixing_steps: int = 2**31 - 1,
    awp_gamma: float = 0.0, awp_from_step: int = 0, num_parts: int = 1,
) -> TrainStep:  # fmt: skip
    """Returns the training step, a pure function for the caller to jit and donate.

    One step: augment, mix, attack, the rule's view of the batch, weighted mean loss,
    optimizer update, weight average. Its randomness is `fold_in(key, state.step)`.

    What is `None` is left out; `num_classes` is needed where that is mixing or rule, else it is a
    ValueError. The loop calls the rule's `update` and the averaging's `end_epoch`.

    Args:
      augment: `(key, images) -> images`.
      mixing_steps: after this many steps nothing is mixed any more.
      awp_gamma: size of an adversarial weight perturbation, see `methods.awp`; it
        ascends the base's mean loss without `Knobs.loss_weight`. 0 for none, at no cost.
      awp_from_step: steps before it are not perturbed.
      num_parts: attack and gradient go through equal parts of the augmented and mixed batch
        one after another, and the gradients are averaged, in a part's memory. Batch norm,
        the rule and the weight perturbation take each part for a batch. A ValueError if what is
        mixed is mixed after the attack.

    Returns: `(state, batch, key) -> (state, metrics)`; the batch has no padding.
    """
    if num_classes < 1 and (mixing is None or rule is None):
        raise ValueError("give num_classes, or both mixing and rule")
    mixing = mixing or make_mixing("none", num_classes)
    rule = rule or no_rule.make(num_classes)
    averaging = averaging or no_averaging.make()
    of_part = partial(_gradient_of_part, base, rule, awp_gamma, awp_from_step)

    def train_step(state: t.TrainState, batch: t.Batch, key: t.Key) -> tuple:
        own_key = jax.random.fold_in(threefry(key), state.step)
        augment_key, mixing_key, base_key = jax.random.split(own_key, 3)
        knobs, labels = rule.knobs(state.rule_state), batch.labels
        strength = jnp.where(state.step < mixing_steps, knobs.mixing, 0.0)
        images = augment(augment_key, batch.images) if augment else batch.images
        own = ("radius", "step_size", "ce_weight", "beta")
        factors = {name: getattr(knobs, name)[labels] for name in own}
        inputs = mixing(mixing_key, images, labels, strength)._replace(**factors)
        (gradient, where, batch_stats), metrics, rule_state = _accumulated(
            partial(of_part, state), num_parts, state.rule_state, inputs, batch, base_key
        )
        # The decay of weights is taken where the gradient was.
        where = where if awp_gamma else state.params
        updates, opt_state = tx.update(gradient, state.opt_state, where)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        average = averaging.update(state.average, t.Weights(params, batch_stats), step)
        return t.TrainState(step, params, batch_stats, opt_state, rule_state, average), metrics

    return train_step


def _gradient_of_part(
    base: t.Base, rule: t.Rule, awp_gamma: float, awp_from_step: int, state: t.TrainState,
    rule_state: Any, inputs: t.StepInput, batch: t.Batch, key: t.Key,
) -> Any:  # fmt: skip
    """Returns a part's gradient, its weights, new statistics, metrics and rule state."""
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
        return jnp.mean(losses), (result.batch_stats, metrics, observed)

    where = state.params
    if awp_gamma:
        gamma = jnp.where(state.step < awp_from_step, 0.0, awp_gamma)
        where = awp.perturb(where, jax.grad(plain_loss)(where), gamma=gamma)
    gradient, (batch_stats, metrics, observed) = jax.grad(loss_fn, has_aux=True)(where)
    return (gradient, where if awp_gamma else (), batch_stats), metrics, observed


def _accumulated(
    of_part: Callable[..., Any], num_parts: int, rule_state: Any, inputs: t.StepInput,
    batch: t.Batch, key: t.Key,
) -> Any:  # fmt: skip
    """Applies `of_part` to the parts of a batch; returns means, sums of metrics, the last state.

    The rule's state goes from part to part. Example `i` belongs to part `i % num_parts`, so that
    on several devices every part lies on all of them and nothing moves. Its random start is that
    in the whole batch.
    """
    if num_parts == 1:
        return of_part(rule_state, inputs, batch, key)
    functions = {name: t.StepInput._field_defaults[name] for name in ("after_attack", "hidden")}
    if late := [name for name, none in functions.items() if getattr(inputs, name) is not none]:
        raise ValueError(
            f"num_parts={num_parts} needs a mixing before the attack, not {late[0]!r}, whose "
            "partners may lie in another part; give num_parts=1"
        )
    arrays: dict[str, Any] = {"index": jnp.arange(len(batch.labels))} | dict.fromkeys(functions)

    def one(rule_state: Any, part: tuple[t.StepInput, t.Batch]) -> Any:
        own = part[0]._replace(**functions)
        return of_part(rule_state, own, part[1], jax.random.clone(key))

    def body(carry: Any, part: Any) -> tuple[Any, None]:
        *found, rule_state = one(carry[1], part)
        return (jax.tree.map(jnp.add, carry[0], found), rule_state), None

    parts = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1),
        (inputs._replace(**arrays), batch),
    )
    *found, _ = jax.eval_shape(one, rule_state, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
    ((means, metrics), rule_state), _ = lax.scan(body, (zeros, rule_state), parts)
    return jax.tree.map(lambda x: x / num_parts, means), metrics, rule_state
