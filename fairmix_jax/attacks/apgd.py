"""Auto-PGD: projected gradient descent with momentum that halves its own step size."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairmix_jax.attacks.losses import Objective, TargetedObjective, objective, targeted_objective
from fairmix_jax.attacks.pool import run as run_attack
from fairmix_jax.attacks.projections import normalize, project
from fairmix_jax.attacks.stepwise import (
    Example,
    Network,
    Randomized,
    Stepwise,
    misclassified,
    value_and_gradient,
)
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel

_MOMENTUM = 0.75


class State(NamedTuple):
    """A run between two steps; images are `[H, W, C]`, all else `[]`.

    Attributes:
      image: the next point to evaluate, `x_i`.
      previous: the point before it, for the momentum.
      best, best_gradient, best_loss: the point of the largest loss so far.
      adversarial, broken: the latest misclassified point.
      step_size: halved at checkpoints.
      loss: of the point before.
      increases: how often the loss rose since the last checkpoint.
      reduced: whether the last checkpoint halved the step size.
      checked_loss: the best loss at the last checkpoint.
    """

    image: Array
    previous: Array
    best: Array
    best_gradient: Array
    best_loss: Array
    adversarial: Array
    broken: Array
    step_size: Array
    loss: Array
    increases: Array
    reduced: Array
    checked_loss: Array


def apgd(
    logits_fn: LogitsFn | Randomized,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str | Objective = "ce",
    num_draws: int = 1,
    start: Array | None = None,
    index: Array | None = None,
    early_exit: bool = True,
) -> Array:
    """Returns misclassified images in the ball where APGD finds any, else the images.

    Pure, and can be jitted. Guarantees: the result lies in the ball (up to float32
    rounding) and in the bounds; an example's result depends on its own image, label, key
    and `index` only; an image that is misclassified as it is comes back unchanged.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`; must not couple examples.
      key: of the random starts; consumed.
      images: `[B, H, W, C]` float, inside `threat.bounds`.
      labels: `[B]` int, the true classes.
      threat: norm, radius, bounds.
      num_steps, num_restarts, loss, num_draws: see `make`.
      start: `[B, H, W, C]`, where the first run starts instead of at random.
      index: `[B]` int, numbers that tell the examples' keys apart; `0 .. B - 1` if `None`.
      early_exit: whether to stop at an example's first success; without, the last one of
        its run is returned. The verdict is the same.

    Raises:
      ValueError: a shape or number is wrong; names it.

    Reference: Croce and Hein 2020, arXiv 2003.01690.
    """
    attack = make(
        norm=threat.norm, bounds=threat.bounds, num_steps=num_steps,
        num_restarts=num_restarts, loss=loss, num_draws=num_draws,
    )  # fmt: skip

    first = None
    if start is not None:
        first = functools.partial(
            State._replace, image=start, previous=start, best=start, adversarial=start
        )
    return run_attack(
        attack, logits_fn, key, images, labels, epsilon=threat.epsilon, index=index,
        early_exit=early_exit, first=first,
    )  # fmt: skip


def apgd_targeted(
    logits_fn: LogitsFn | Randomized,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
    loss: str | TargetedObjective = "dlr",
    index: Array | None = None,
    early_exit: bool = True,
) -> Array:
    """Returns misclassified images in the ball where targeted APGD finds any, else the images.

    Contract and arguments as in `apgd`; `num_targets` and `loss` as in `make_targeted`.
    """
    attack = make_targeted(
        norm=threat.norm, bounds=threat.bounds, num_steps=num_steps,
        num_restarts=num_restarts, num_targets=num_targets, loss=loss,
    )  # fmt: skip
    return run_attack(
        attack, logits_fn, key, images, labels, epsilon=threat.epsilon, index=index,
        early_exit=early_exit,
    )  # fmt: skip


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


@functools.cache
def make(
    *,
    norm: str,
    bounds: tuple[float, float],
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str | Objective = "ce",
    num_draws: int = 1,
) -> Stepwise:
    """Returns APGD on an untargeted loss.

    From a random point on the surface of the ball, `num_steps` steps with momentum 0.75
    and step size `2 epsilon` at first. At each of `checkpoints` the step size is halved
    and the run goes back to its best point if fewer than 75 % of the steps since the last
    one raised the loss, or if neither step size nor best loss changed there. A run costs
    `num_steps + 1` gradient passes.

    Args:
      norm, bounds: as in `ThreatModel`.
      num_steps: of a run, at least 1.
      num_restarts: runs from fresh starts until one succeeds.
      loss: `"ce"`, `"dlr"`, `"margin"` or a function `(logits [K], label) -> []`.
      num_draws: draws of a random network that a gradient averages over.

    Reference: Croce and Hein 2020, arXiv 2003.01690, algorithm 1; constants and order of
    operations as in the authors' code.
    """
    untargeted = objective(loss)
    return _make(
        lambda logits, example, run: untargeted(logits, example.label),
        lambda num_classes: num_restarts,
        norm=norm, bounds=bounds, num_steps=num_steps, num_draws=num_draws,
    )  # fmt: skip


@functools.cache
def make_targeted(
    *,
    norm: str,
    bounds: tuple[float, float],
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
    loss: str | TargetedObjective = "dlr",
) -> Stepwise:
    """Returns APGD towards one class after another; any misclassification is a success.

    The targets are the `num_targets` classes (all others, if there are fewer) with the
    largest logits on the clean image after the true one, each with `num_restarts` runs.

    Args:
      num_targets: at least 1.
      loss: `"dlr"`, `"margin"` or a function `(logits [K], label, target) -> []`.
      norm, bounds, num_steps, num_restarts: as in `make`.

    Reference: Croce and Hein 2020, arXiv 2003.01690, section 6.
    """
    targeted = targeted_objective(loss)

    def towards(logits: Array, example: Example, run: Array) -> Array:
        return targeted(logits, example.label, example.rivals[run // num_restarts])

    return _make(
        towards,
        lambda num_classes: min(num_targets, num_classes - 1) * num_restarts,
        norm=norm, bounds=bounds, num_steps=num_steps, num_draws=1,
    )  # fmt: skip


def random_start(key: Key, image: Array, epsilon: Array, *, norm: str) -> Array:
    """Returns the image plus noise whose norm is exactly `epsilon`, before the bounds.

    L-inf: uniform noise, scaled so that its largest coordinate has that size. L2: uniform
    on the sphere. The key is consumed.
    """
    draw = functools.partial(jax.random.uniform, minval=-1.0)
    draw = draw if norm == "linf" else jax.random.normal
    noise = draw(key, image.shape, image.dtype)
    return image + epsilon * normalize(noise, norm)


def _make(loss, num_runs, *, norm, bounds, num_steps, num_draws) -> Stepwise:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}; give at least 1")
    periods = checkpoints(num_steps)

    def start(example: Example, run: Array) -> State:
        image = random_start(example.key, example.image, example.epsilon, norm=norm)
        image = jnp.clip(image, *bounds)
        zero = jnp.zeros((), image.dtype)
        return State(
            image=image,
            previous=image,
            best=image,
            best_gradient=jnp.zeros_like(image),
            best_loss=zero,
            adversarial=image,
            broken=jnp.asarray(False),
            step_size=2 * example.epsilon,
            loss=zero,
            increases=jnp.asarray(0, jnp.int32),
            reduced=jnp.asarray(True),
            checked_loss=zero,
        )

    def step(network: Network, example: Example, run: Array, count: Array, state: State) -> State:
        value, logits, gradient = value_and_gradient(
            network, example.network_key, state.image, lambda z: loss(z, example, run), num_draws
        )
        state = _observe(state, example, count, value, logits, gradient)
        state, gradient = _check(state, gradient, jnp.asarray(periods)[count])
        return _move(state, gradient, example, count, norm=norm, bounds=bounds)

    return Stepwise(num_runs, num_steps + 1, start, step, lambda num_classes: (0, num_draws))


def _observe(state: State, example: Example, count: Array, loss, logits, gradient) -> State:
    """Notes the outcome at `state.image`: success, best point, whether the loss rose."""
    is_first = count == 0
    is_wrong = misclassified(logits, example.label)
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


def _check(state: State, gradient: Array, period: Array) -> tuple[State, Array]:
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

    direction = jnp.sign(gradient) if norm == "linf" else normalize(gradient, norm)
    stepped = inside(image + state.step_size * direction)
    ahead = jnp.where(count == 0, 1.0, _MOMENTUM)
    combined = image + ahead * (stepped - image) + (1 - ahead) * (image - state.previous)
    return state._replace(image=inside(combined), previous=image)


MEMBERS = {
    "apgd-ce": make,
    "apgd-dlr": functools.partial(make, loss="dlr"),
    "apgd-t": make_targeted,
}
