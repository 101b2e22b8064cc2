"""Auto-PGD: projected gradient descent with momentum that halves its own step size."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairmix_jax.attacks.losses import Objective, TargetedObjective, objective
from fairmix_jax.attacks.one_batch import run_attack
from fairmix_jax.attacks.projections import project, steepest_direction, surface_start
from fairmix_jax.attacks.stepwise import Classifier, Example, Network, Stepwise, misclassified
from fairmix_jax.runtime.inputs import check_whole
from fairmix_jax.types import Array, Key, ThreatModel

_MOMENTUM = 0.75


class State(NamedTuple):
    """A run between two steps; images are `[H, W, C]`, all else `[]`."""

    image: Array  # the next point to evaluate, `x_i`
    previous: Array  # the point before it, for the momentum
    best: Array  # the point of the largest loss so far, with its gradient and loss
    best_gradient: Array
    best_loss: Array
    adversarial: Array  # the latest misclassified point, if `broken`
    broken: Array
    step_size: Array  # halved at checkpoints
    loss: Array  # of the point before
    increases: Array  # how often the loss rose since the last checkpoint
    reduced: Array  # whether the last checkpoint halved the step size
    checked_loss: Array  # the best loss at the last checkpoint


def apgd(
    logits_fn: Classifier, key: Key, images: Array, labels: Array, *, threat: ThreatModel, **options
) -> Array:
    """Returns misclassified images in the ball where APGD finds any, else the images.

    Arguments and guarantees are those of `one_batch.attack_batch`; `options` are its `index` and
    `early_exit`, and those of `make`, which has the reference.
    """
    return run_attack(make, logits_fn, key, images, labels, threat=threat, **options)


def apgd_targeted(*arguments: Any, **options: Any) -> Array:
    """Returns `apgd` with `targeted=True`: towards one class after another."""
    return apgd(*arguments, targeted=True, **options)


@functools.cache
def make(
    *,
    norm: str,
    bounds: tuple[float, float],
    targeted: bool = False,
    num_steps: int = 100,  # of a run, at least 1
    num_restarts: int = 1,  # runs from fresh starts until one succeeds
    num_targets: int = 9,  # at least 1
    loss: str | Objective | TargetedObjective | None = None,
    num_draws: int = 1,  # of a random network, that a gradient averages over
) -> Stepwise:
    """Returns APGD: away from the true class, or towards one other class after another.

    From a random point on the surface of the ball, `num_steps` steps with momentum, the step size
    `2 epsilon` at first. At each of `checkpoints` it is halved and the run goes back to its best
    point if at most 75 % of the steps since the last one raised the loss (the paper says fewer;
    the authors' code decides), or if neither step size nor best loss changed there. A run costs
    `num_steps + 1` gradient passes.

    Targets are the `num_targets` classes (all others, if there are fewer) with the largest logits
    on the clean image after the true one, each with `num_restarts` runs. Any misclassification
    is a success. The loss is a name or function of `losses.objective`, by default `"ce"`, or
    `"dlr"` if targeted.

    Reference: Croce and Hein 2020, arXiv 2003.01690, algorithm 1 and section 6; constants and
    order of operations as in the authors' code.
    """
    counts = dict(num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets)
    check_whole(1, num_draws=num_draws, **counts)
    periods = checkpoints(num_steps)
    ascended = objective(loss or ("dlr" if targeted else "ce"), targeted=targeted)

    def start(example: Example, run: Array) -> State:
        image = surface_start(example.key, example.image, example.epsilon, norm)
        image = project(image, example.image, norm=norm, epsilon=example.epsilon, bounds=bounds)
        zero = jnp.zeros((), image.dtype)
        return State(
            image=image, previous=image, best=image, best_gradient=jnp.zeros_like(image),
            best_loss=zero, adversarial=image, broken=jnp.asarray(False),
            step_size=2 * example.epsilon, loss=zero, increases=jnp.asarray(0, jnp.int32),
            reduced=jnp.asarray(True), checked_loss=zero,
        )  # fmt: skip

    def step(network: Network, example: Example, run: Array, count: Array, state: State) -> State:
        def loss_of(logits: Array) -> Array:
            target = (example.rivals[run // num_restarts],) if targeted else ()
            return ascended(logits, example.label, *target)

        loss, logits, gradient = _evaluate(network, example, state.image, loss_of, num_draws)
        state = _observe(state, example, count, loss, logits, gradient)
        state, gradient = _adapt_step_size(state, gradient, jnp.asarray(periods)[count])
        return _move(state, gradient, example, count, norm=norm, bounds=bounds)

    def num_runs(num_classes: int) -> int:
        return num_restarts * (min(num_targets, num_classes - 1) if targeted else 1)

    return Stepwise(num_runs, num_steps + 1, start, step, lambda num_classes: (0, num_draws))


def checkpoints(num_steps: int) -> np.ndarray:
    """Returns `[num_steps + 1]` int32: the steps since the last checkpoint at each one, else 0.

    Position `i` is for `i` steps done. The first period is 22 % of the steps; each is
    shorter than the last by 3 % of the steps, down to 6 %; all at least 1.
    """
    period, shortest, decrement = (max(int(f * num_steps), 1) for f in (0.22, 0.06, 0.03))
    periods = np.zeros(num_steps + 1, np.int32)
    done = period
    while done <= num_steps:
        periods[done] = period
        period = max(period - decrement, shortest)
        done += period
    return periods


def _evaluate(network: Network, example: Example, image: Array, loss_of: Callable, num_draws: int):
    """Returns the loss, the logits and the loss's gradient in the image.

    A gradient that is not finite counts as zero, so that it cannot spoil the image. Of several
    draws of a random network (expectation over transformation, Athalye et al. 2018, arXiv
    1707.07397) the gradient is the mean, loss and logits those of the last.
    """

    def once(key: Key):
        def evaluate(x: Array):
            logits = network(x, key)
            return loss_of(logits).astype(x.dtype), logits

        (loss, logits), gradient = jax.value_and_grad(evaluate, has_aux=True)(image)
        return loss, logits, jnp.where(jnp.isfinite(gradient), gradient, 0.0)

    if num_draws == 1:
        return once(example.network_key)

    def again(total: Array, draw: Array):
        loss, logits, gradient = once(jax.random.fold_in(example.network_key, draw))
        return total + gradient, (loss, logits)

    total, (losses, logits) = lax.scan(again, jnp.zeros_like(image), jnp.arange(num_draws))
    return losses[-1], logits[-1], total / num_draws


def _observe(state: State, example: Example, count: Array, loss, logits, gradient) -> State:
    """Notes the outcome at `state.image`: success, best point, whether the loss rose."""
    is_first, is_wrong = count == 0, misclassified(logits, example.label)
    is_best = is_first | (loss > state.best_loss)
    rose = (loss > state.loss).astype(jnp.int32)
    return state._replace(
        best=jnp.where(is_best, state.image, state.best),
        best_gradient=jnp.where(is_best, gradient, state.best_gradient),
        best_loss=jnp.where(is_best, loss, state.best_loss),
        adversarial=jnp.where(is_wrong, state.image, state.adversarial),
        broken=state.broken | is_wrong,
        # The authors' code compares the first loss after the start with 0, not with the start's.
        loss=jnp.where(is_first, 0.0, loss),
        increases=jnp.where(is_first, 0, state.increases + rose),
    )


def _adapt_step_size(state: State, gradient: Array, period: Array) -> tuple[State, Array]:
    """Halves the step size and goes back to the best point where progress has stalled."""
    is_checkpoint = period > 0
    few_increases = 4 * state.increases <= 3 * period
    no_better = ~state.reduced & (state.checked_loss >= state.best_loss)
    reduce = is_checkpoint & (few_increases | no_better)
    gradient = jnp.where(reduce, state.best_gradient, gradient)
    state = state._replace(
        image=jnp.where(reduce, state.best, state.image),
        step_size=jnp.where(reduce, state.step_size / 2, state.step_size),
        increases=jnp.where(is_checkpoint, 0, state.increases),
        reduced=jnp.where(is_checkpoint, reduce, state.reduced),
        checked_loss=jnp.where(is_checkpoint, state.best_loss, state.checked_loss),
    )
    return state, gradient


def _move(state: State, gradient: Array, example: Example, count, *, norm, bounds) -> State:
    """Takes a gradient step and a momentum step, both projected."""
    center, image = example.image, state.image

    def inside(x: Array) -> Array:
        return project(x, center, norm=norm, epsilon=example.epsilon, bounds=bounds)

    stepped = inside(image + state.step_size * steepest_direction(gradient, norm))
    ahead = jnp.where(count == 0, 1.0, _MOMENTUM)
    combined = image + ahead * (stepped - image) + (1 - ahead) * (image - state.previous)
    return state._replace(image=inside(combined), previous=image)


MEMBERS = {
    "apgd-ce": make,
    "apgd-dlr": functools.partial(make, loss="dlr"),
    "apgd-t": functools.partial(make, targeted=True),
}
