"""Square: random search with squares, which needs no gradient."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairmix_jax.attacks.losses import margin
from fairmix_jax.attacks.one_batch import run_attack
from fairmix_jax.attacks.projections import normalize, project
from fairmix_jax.attacks.stepwise import Classifier, Example, Network, Stepwise, misclassified
from fairmix_jax.runtime.inputs import check_finite, check_whole
from fairmix_jax.types import Array, Key, ThreatModel

_STAGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class State(NamedTuple):
    """A run between two queries."""

    best: Array  # [H, W, C], the best point so far
    loss: Array  # [], its margin `z_y - max_{k != y} z_k`
    adversarial: Array  # [H, W, C], a misclassified point, if `broken`
    broken: Array  # []


class Draw(NamedTuple):
    """The random numbers of one query."""

    corner: Array  # [2] in [0, 1), where the window lies
    second_corner: Array  # the same for the second window that L2 has
    signs: Array  # [1, 1, C], -1 or 1
    turned: Array  # [] bool, whether the L2 window is transposed


def draw(key: Key, _: Array, num_channels: int) -> Draw:
    """Returns the random numbers of one query; the key, which is its own, is consumed."""
    uniform = jax.random.uniform(key, (5 + num_channels,))
    signs = jnp.where(uniform[None, None, 5:] < 0.5, -1.0, 1.0)
    return Draw(uniform[:2], uniform[2:4], signs, uniform[4] < 0.5)


def square(
    logits_fn: Classifier, key: Key, images: Array, labels: Array, *, threat: ThreatModel, **options
) -> Array:
    """Returns misclassified images in the ball where Square finds any, else the images.

    Arguments, guarantees and `options` are as in `apgd.apgd`. Needs no gradient of the network.
    """
    return run_attack(make, logits_fn, key, images, labels, threat=threat, **options)


@functools.cache
def make(
    *,
    norm: str,
    bounds: tuple[float, float],
    num_queries: int = 5000,  # of a run, after the start
    num_restarts: int = 1,  # runs from fresh starts until one succeeds
    initial_share: float = 0.8,  # in (0, 1]
    draws: Callable[[Key, Array, int], Draw] = draw,  # `(key, count, num_channels) -> Draw`
) -> Stepwise:
    """Returns the Square attack on the margin.

    From `random_start` each query changes a square window and is kept if it lowers the margin. The
    window's share of the image, `initial_share` at first, is halved at each of `_STAGES`, whatever
    `num_queries` is (the schedule of AutoAttack). Images need not be square; windows are, and at
    most as large as the shorter side. Each example draws its own; AutoAttack shares them in a
    batch.

    Reference: Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 to 3.
    """
    check_whole(1, num_queries=num_queries, num_restarts=num_restarts)
    check_finite(1e-9, 1, initial_share=initial_share)
    propose = _propose_linf if norm == "linf" else _propose_l2

    def inside(image: Array, example: Example) -> Array:
        return project(image, example.image, norm=norm, epsilon=example.epsilon, bounds=bounds)

    def start(example: Example, run: Array) -> State:
        image = random_start(example.key, example.image, example.epsilon, norm=norm)
        best = inside(image, example)
        return State(best, jnp.asarray(jnp.inf, best.dtype), best, jnp.asarray(False))

    def step(network: Network, example: Example, run: Array, count: Array, state: State) -> State:
        query = jnp.maximum(count - 1, 0)
        drawn = draws(example.key, query, example.image.shape[-1])
        sides, stage_of = stages(example.image.shape, num_queries, initial_share, norm)
        moved = propose(drawn, sides, jnp.asarray(stage_of)[query], example, state.best)
        image = jnp.where(count == 0, state.best, inside(moved, example))
        logits = network(image, example.network_key)
        loss = -margin(logits, example.label).astype(image.dtype)
        is_wrong = misclassified(logits, example.label)
        is_lower = is_wrong | (loss < state.loss)
        return State(
            best=jnp.where(is_lower | (loss <= 0), image, state.best),
            loss=jnp.where(is_lower, loss, state.loss),
            adversarial=jnp.where(is_wrong, image, state.adversarial),
            broken=state.broken | is_wrong,
        )

    return Stepwise(lambda _: num_restarts, num_queries + 1, start, step, lambda _: (1, 0))


def stages(
    shape: tuple[int, ...], num_queries: int, initial_share: float, norm: str
) -> tuple[tuple[int, ...], np.ndarray]:
    """Returns the schedule of a run on images `(H, W, C)`: falling window sides and their use.

    The sides are those of the stages, in L2 odd and at least 3; then `[num_queries]` int32,
    the stage of each query.
    """
    height, width, _ = shape
    sides = []
    for stage in range(len(_STAGES) + 1):
        side = max(round(math.sqrt(initial_share / 2**stage * height * width)), 1)
        if norm == "l2":
            side = max(side, 3)
            side += 1 - side % 2
        sides.append(min(side, height, width))
    index = np.searchsorted(_STAGES, np.arange(num_queries), side="left").astype(np.int32)
    return tuple(sides), index


def random_start(key: Key, image: Array, epsilon: Array, *, norm: str) -> Array:
    """Returns the image plus stripes (L-inf) or a grid of bumps (L2), before the projection.

    L-inf: `epsilon` with one random sign for each column and channel. L2: `5 x 5` cells of
    one fifth of the height (at least a pixel) with a random sign for each cell and channel,
    together of norm `epsilon`. The key is consumed.
    """
    height, width, channels = image.shape
    if norm == "linf":
        signs = jax.random.rademacher(key, (1, width, channels), image.dtype)
        return image + epsilon * signs
    cell = max(height // 5, 1)
    offset = max((height - 5 * cell) // 2, 0)
    rows, columns = height // cell, width // cell
    sign_key, turn_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (rows, 1, columns, 1, channels), image.dtype)
    bump = jnp.asarray(_bumps(cell), image.dtype)
    turned = jax.random.bernoulli(turn_key, shape=(rows, 1, columns, 1))
    bumps = jnp.where(turned, bump.T[None, :, None, :], bump[None, :, None, :])
    grid = (bumps[..., None] * signs).reshape(rows * cell, columns * cell, channels)
    canvas = jnp.pad(grid, ((offset, height), (offset, width), (0, 0)))[:height, :width]
    return image + epsilon * normalize(canvas, norm)


def _window(uniform: Array, side: Array, shape: tuple[int, ...]) -> tuple[tuple, Array]:
    """A window's first row and column, never the last possible, and its pixels `[H, W, 1]`."""
    row, column = (
        jnp.floor(u * (extent - side).astype(u.dtype)).astype(side.dtype)
        for u, extent in zip(uniform, shape[:2], strict=True)
    )
    rows, columns = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    pixels = (rows >= row) & (rows < row + side) & (columns >= column) & (columns < column + side)
    return (row, column), pixels


def _propose_linf(drawn: Draw, sides, stage: Array, example: Example, best: Array):
    """Moves one window by twice the radius, up or down in each channel."""
    side = jnp.asarray(sides)[stage]
    _, window = _window(drawn.corner, side, best.shape)
    return best + jnp.where(window, 2 * example.epsilon * drawn.signs.astype(best.dtype), 0.0)


def _propose_l2(drawn: Draw, sides, stage: Array, example: Example, best: Array):
    """Moves the perturbation's mass from two windows into the first, as a new bump."""
    side = jnp.asarray(sides)[stage]
    shape, delta = best.shape, best - example.image
    corner, first = _window(drawn.corner, side, shape)
    _, second = _window(drawn.second_corner, side, shape)
    channel_norm = functools.partial(jnp.linalg.norm, axis=(0, 1), keepdims=True)
    old = jnp.where(first, delta, 0.0)
    freed = channel_norm(jnp.where(first | second, delta, 0.0))
    spare = jnp.maximum(example.epsilon**2 - jnp.sum(delta**2), 0.0)
    bumps = jnp.asarray(_placeable_bumps(sides, shape), best.dtype)
    bump = bumps[stage, drawn.turned.astype(jnp.int32)]
    new = lax.dynamic_slice(bump, (shape[0] - corner[0], shape[1] - corner[1]), shape[:2])
    new = new[..., None] * drawn.signs.astype(best.dtype) + old / (1e-12 + channel_norm(old))
    new = new / (1e-12 + channel_norm(new)) * jnp.sqrt(spare / shape[-1] + freed**2)
    delta = jnp.where(first, new, jnp.where(second, 0.0, delta))
    return example.image + example.epsilon * normalize(delta, "l2")


def _placeable_bumps(sides, shape: tuple[int, ...]) -> np.ndarray:
    """`[stages, 2, 2 H, 2 W]`, each stage's bump and its transpose at `(H, W)`, zero elsewhere."""
    height, width, _ = shape
    table = np.zeros((len(sides), 2, 2 * height, 2 * width))
    for number, side in enumerate(sides):
        bump = _bumps(side)
        table[number, :, height : height + side, width : width + side] = bump, bump.T
    return table


@functools.cache
def _bumps(side: int) -> np.ndarray:
    """`[side, side]` of unit norm: a hill in the upper half, a valley in the lower."""
    half = side // 2
    bump = np.zeros((side, side))
    bump[:half] = _hill(half, side)
    bump[half:] = -_hill(side - half, side)
    return bump / np.sqrt(np.sum(bump**2))


def _hill(height: int, width: int) -> np.ndarray:
    """Nested rectangles whose heights `1, 1/4, 1/9, ...` add up, of unit norm."""
    hill = np.zeros((height, width))
    row, column = height // 2, width // 2
    for reach in range(max(height, width) // 2 + 1):
        rows = slice(max(row - reach, 0), max(row + reach + 1, 0))
        columns = slice(max(column - reach, 0), max(column + reach + 1, 0))
        hill[rows, columns] += 1 / (reach + 1) ** 2
    norm = np.sqrt(np.sum(hill**2))
    return hill / norm if norm else hill


MEMBERS = {"square": make}
