"""FAB: the fast adaptive boundary attack, which looks for the smallest perturbation."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fairmix_jax.attacks.losses import pick
from fairmix_jax.attacks.pool import run as run_attack
from fairmix_jax.attacks.projections import lp_norm, to_hyperplane
from fairmix_jax.attacks.stepwise import (
    Example,
    Network,
    Randomized,
    Stepwise,
    misclassified,
)
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel

_OVERSHOOT = 1.05
_BACKWARD = 0.9
_MAX_BIAS = 0.1


class State(NamedTuple):
    """A run between two steps.

    Attributes:
      image: `[H, W, C]`, the current point, near the decision boundary.
      adversarial: `[H, W, C]`, the misclassified point nearest to the clean image.
      distance: `[]`, how far it is; infinite before there is one.
      broken: `[]`, whether that is at most `epsilon`.
    """

    image: Array
    adversarial: Array
    distance: Array
    broken: Array


def fab(
    logits_fn: LogitsFn | Randomized,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    num_steps: int = 100,
    num_restarts: int = 1,
    index: Array | None = None,
    early_exit: bool = True,
) -> Array:
    """Returns the misclassified images that FAB finds within `epsilon`, else the images.

    Contract as in `apgd.apgd`. With `early_exit=False` each is the nearest of its run, so
    a large `threat.epsilon` gives perturbations of minimal norm.

    Args:
      num_steps, num_restarts: see `make`.
      logits_fn, key, images, labels, threat, index, early_exit: as in `apgd.apgd`.
    """
    attack = make(
        norm=threat.norm, bounds=threat.bounds, num_steps=num_steps, num_restarts=num_restarts
    )
    return run_attack(
        attack, logits_fn, key, images, labels, epsilon=threat.epsilon, index=index,
        early_exit=early_exit,
    )  # fmt: skip


def fab_targeted(
    logits_fn: LogitsFn | Randomized,
    key: Key,
    images: Array,
    labels: Array,
    *,
    threat: ThreatModel,
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
    index: Array | None = None,
    early_exit: bool = True,
) -> Array:
    """As `fab`, towards one class after another; `num_targets` as in `make_targeted`."""
    attack = make_targeted(
        norm=threat.norm, bounds=threat.bounds, num_steps=num_steps,
        num_restarts=num_restarts, num_targets=num_targets,
    )  # fmt: skip
    return run_attack(
        attack, logits_fn, key, images, labels, epsilon=threat.epsilon, index=index,
        early_exit=early_exit,
    )  # fmt: skip


@functools.cache
def make(
    *, norm: str, bounds: tuple[float, float], num_steps: int = 100, num_restarts: int = 1
) -> Stepwise:
    """Returns FAB towards whichever linearised decision boundary is nearest.

    Each step linearises the network at the current point, projects the point and the clean
    image onto the nearest hyperplane where another class wins, steps a little beyond
    (factor 1.05) a mean of both that leans to the current point, and, where that is
    misclassified, goes back a tenth of the way to the clean image. The first run starts at
    the clean image, others at half the radius from it. A step costs a backward pass for
    every other class and a second forward pass.

    Args:
      norm, bounds: as in `ThreatModel`.
      num_steps: of a run.
      num_restarts: runs until one finds a point within `epsilon`.

    Reference: Croce and Hein 2020, arXiv 1907.02044, algorithm 1; constants as in the
    authors' code, which like this one has no final search.
    """

    def linearize(network: Callable[[Array], Array], example: Example, run: Array, image: Array):
        """Distance, gap and its gradient for the nearest of all other classes."""

        def gaps(x: Array) -> tuple[Array, Array]:
            logits = network(x)
            gaps = logits[example.rivals] - pick(logits, example.label)
            return gaps, gaps

        gradients, values = jax.jacrev(gaps, has_aux=True)(image)
        dual = _dual_norm(gradients.reshape(len(values), -1), norm)
        nearest = jnp.argmin(jnp.abs(values) / (dual + 1e-12))
        return values[nearest], gradients[nearest]

    return _make(
        linearize,
        lambda num_classes: num_restarts,
        lambda num_classes: (1, num_classes - 1),
        norm=norm, bounds=bounds, num_steps=num_steps,
    )  # fmt: skip


@functools.cache
def make_targeted(
    *,
    norm: str,
    bounds: tuple[float, float],
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
) -> Stepwise:
    """Returns FAB towards the boundary with one class after another.

    As `make`, with one backward pass a step. The targets are those of
    `apgd.make_targeted`; any misclassification is a success.

    Reference: Croce and Hein 2020, arXiv 2003.01690, section 5.
    """

    def linearize(network: Callable[[Array], Array], example: Example, run: Array, image: Array):
        target = example.rivals[run // num_restarts]

        def gap(x: Array) -> Array:
            logits = network(x)
            return pick(logits, target) - pick(logits, example.label)

        return jax.value_and_grad(gap)(image)

    return _make(
        linearize,
        lambda num_classes: min(num_targets, num_classes - 1) * num_restarts,
        lambda num_classes: (1, 1),
        norm=norm, bounds=bounds, num_steps=num_steps, num_restarts=num_restarts,
    )  # fmt: skip


def _dual_norm(rows: Array, norm: str) -> Array:
    if norm == "linf":
        return jnp.sum(jnp.abs(rows), axis=-1)
    return jnp.sqrt(jnp.sum(rows**2, axis=-1))


def _make(linearize, num_runs, passes, *, norm, bounds, num_steps, num_restarts=None) -> Stepwise:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}; give at least 1")

    def start(example: Example, run: Array) -> State:
        draw = functools.partial(jax.random.uniform, minval=-1.0)
        draw = draw if norm == "linf" else jax.random.normal
        noise = draw(example.key, example.image.shape, example.image.dtype)
        restart = run if num_restarts is None else run % num_restarts
        radius = jnp.where(restart == 0, 0.0, 0.5 * example.epsilon)
        image = jnp.clip(example.image + radius * noise / lp_norm(noise, norm), *bounds)
        infinite = jnp.asarray(jnp.inf, image.dtype)
        return State(image, example.image, infinite, jnp.asarray(False))

    def step(network: Network, example: Example, run: Array, count: Array, state: State) -> State:
        def logits_of(x: Array) -> Array:
            return network(x, example.network_key)

        gap, gradient = linearize(logits_of, example, run, state.image)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        image = _towards(gap, gradient, example.image, state.image, norm=norm, bounds=bounds)
        return _observe(state, example, image, logits_of(image), norm)

    return Stepwise(num_runs, num_steps, start, step, passes)


def _towards(gap, gradient, clean: Array, image: Array, *, norm, bounds) -> Array:
    """The next point: across the hyperplane, drawn towards the clean image."""
    level = jnp.sum(gradient * image) - gap
    points = jnp.stack([image, clean])
    moves = jax.vmap(lambda x: to_hyperplane(x, gradient, level, norm=norm, bounds=bounds))(points)
    own, cleans = (jnp.maximum(lp_norm(move, norm), 1e-8) for move in moves)
    bias = jnp.minimum(own / (own + cleans), _MAX_BIAS)
    crossed, pulled = points + _OVERSHOOT * moves
    return jnp.clip((1 - bias) * crossed + bias * pulled, *bounds)


def _observe(state: State, example: Example, image: Array, logits: Array, norm: str) -> State:
    """Keeps a nearer misclassified point, and steps back from any."""
    is_wrong = misclassified(logits, example.label)
    distance = lp_norm(image - example.image, norm)
    # A success that `pool` took back, since another model has the last word, is none.
    is_taken_back = (state.distance <= example.epsilon) & ~state.broken
    known = jnp.where(is_taken_back, jnp.inf, state.distance)
    is_nearer = is_wrong & (distance < known)
    back = example.image + _BACKWARD * (image - example.image)
    nearest = jnp.where(is_nearer, distance, known)
    return State(
        image=jnp.where(is_wrong, back, image),
        adversarial=jnp.where(is_nearer, image, state.adversarial),
        distance=nearest,
        broken=nearest <= example.epsilon,
    )


MEMBERS = {"fab": make, "fab-t": make_targeted}
