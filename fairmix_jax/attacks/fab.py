"""FAB: the fast adaptive boundary attack, which looks for the smallest perturbation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairmix_jax.attacks.losses import pick, targeted_margin
from fairmix_jax.attacks.one_batch import run_attack
from fairmix_jax.attacks.projections import lp_norm, noise, norm_rounding, to_hyperplane
from fairmix_jax.attacks.stepwise import Classifier, Example, Network, Stepwise, misclassified
from fairmix_jax.runtime.inputs import check_whole
from fairmix_jax.types import Array, Key, ThreatModel

_OVERSHOOT = 1.05
_BACKWARD = 0.9
_MAX_BIAS = 0.1


class State(NamedTuple):
    """A run between two steps."""

    image: Array  # [H, W, C], the current point, near the decision boundary
    adversarial: Array  # [H, W, C], the misclassified point nearest to the clean image
    distance: Array  # [], how far it is; infinite before there is one
    broken: Array  # [], whether that is at most `epsilon`


def fab(
    logits_fn: Classifier, key: Key, images: Array, labels: Array, *, threat: ThreatModel, **options
) -> Array:
    """Returns the misclassified images that FAB finds within `epsilon`, else the images.

    Arguments, guarantees and `options` are as in `apgd.apgd`. With `early_exit=False` each
    is the nearest of its run, so a large `threat.epsilon` gives perturbations of minimal norm.
    """
    return run_attack(make, logits_fn, key, images, labels, threat=threat, **options)


def fab_targeted(*arguments: Any, **options: Any) -> Array:
    """Returns `fab` with `targeted=True`: towards one class after another."""
    return fab(*arguments, targeted=True, **options)


@functools.cache
def make(
    *, norm: str, bounds: tuple[float, float], targeted: bool = False, num_steps: int = 100,
    num_restarts: int = 1, num_targets: int = 9,
) -> Stepwise:  # fmt: skip
    """Returns FAB towards whichever linearised decision boundary is nearest, or a target's.

    Each step linearises the network at the current point, projects the point and the clean
    image onto the hyperplane where another class wins, steps a little beyond (factor 1.05) a
    mean of both that leans to the current point, and, where that is misclassified, goes back
    a tenth of the way to the clean image. The first run starts at the clean image, others at
    half the radius from it. A step costs a backward pass for every other class (for one, if
    targeted) and a second forward pass.

    Arguments as in `apgd.make`; success is a misclassified point within `epsilon`.

    Reference: Croce and Hein 2020, arXiv 1907.02044, algorithm 1, and arXiv 2003.01690,
    section 5; constants as in the authors' code, which like this one has no final search.
    """
    check_whole(1, num_steps=num_steps, num_restarts=num_restarts, num_targets=num_targets)

    def start(example: Example, run: Array) -> State:
        drawn = noise(example.key, example.image, norm)
        restart = run % num_restarts if targeted else run
        radius = jnp.where(restart == 0, 0.0, 0.5 * example.epsilon)
        image = jnp.clip(example.image + radius * drawn / lp_norm(drawn, norm), *bounds)
        return State(image, example.image, jnp.asarray(jnp.inf, image.dtype), jnp.asarray(False))

    def step(network: Network, example: Example, run: Array, count: Array, state: State) -> State:
        def logits_of(x: Array) -> Array:
            return network(x, example.network_key)

        if targeted:
            target = example.rivals[run // num_restarts]
            gap, gradient = jax.value_and_grad(
                lambda x: targeted_margin(logits_of(x), example.label, target)
            )(state.image)
        else:
            gap, gradient = _nearest_gap(logits_of, example, state.image, norm)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        image = _towards(gap, gradient, example.image, state.image, norm=norm, bounds=bounds)
        return _observe(state, example, image, logits_of(image), norm)

    def num_runs(num_classes: int) -> int:
        return num_restarts * (min(num_targets, num_classes - 1) if targeted else 1)

    def passes(num_classes: int) -> tuple[int, int]:
        return 1, 1 if targeted else num_classes - 1

    return Stepwise(num_runs, num_steps, start, step, passes)


def _nearest_gap(logits_of: Callable, example: Example, image: Array, norm: str):
    """Returns by how much a class's logit exceeds the true one, and the gradient of that.

    The class is the one whose linearised boundary is nearest: its gap over dual norm.
    """

    def gaps(x: Array) -> tuple[Array, Array]:
        logits = logits_of(x)
        gaps = logits[example.rivals] - pick(logits, example.label)
        return gaps, gaps

    gradients, values = jax.jacrev(gaps, has_aux=True)(image)
    rows = gradients.reshape(len(values), -1)
    dual = jnp.sum(jnp.abs(rows), 1) if norm == "linf" else jnp.sqrt(jnp.sum(rows**2, 1))
    nearest = jnp.argmin(jnp.abs(values) / (dual + 1e-12))
    return values[nearest], gradients[nearest]


def _towards(gap, gradient, clean: Array, image: Array, *, norm, bounds) -> Array:
    """The next point: across the hyperplane, drawn towards the clean image."""
    level = jnp.sum(gradient * image) - gap.astype(image.dtype)
    points = jnp.stack([image, clean])
    moves = jax.vmap(lambda x: to_hyperplane(x, gradient, level, norm=norm, bounds=bounds))(points)
    own, cleans = (jnp.maximum(lp_norm(move, norm), 1e-8) for move in moves)
    bias = jnp.minimum(own / (own + cleans), _MAX_BIAS)
    crossed, pulled = points + _OVERSHOOT * moves
    return jnp.clip((1 - bias) * crossed + bias * pulled, *bounds)


def _observe(state: State, example: Example, image: Array, logits: Array, norm: str) -> State:
    """Keeps a nearer misclassified point, and steps back from any."""
    is_wrong = misclassified(logits, example.label)
    # Rounded up, so that no image counts as broken whose exact distance exceeds the radius.
    distance = (1 + norm_rounding(image)) * lp_norm(image - example.image, norm)
    # A success that `slots` took back, since another model has the last word, is none.
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


MEMBERS = {"fab": make, "fab-t": functools.partial(make, targeted=True)}
