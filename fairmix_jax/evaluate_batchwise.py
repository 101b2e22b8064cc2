"""Clean accuracy and attacks of a fixed number of steps, a batch at a time."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fairmix_jax import attacks, cluster, sharding, suite
from fairmix_jax.data import Split, batches
from fairmix_jax.types import Array, Batch, Key, ThreatModel
from fairmix_jax.verdicts import Verdicts

EvalAttack = Callable[..., Any]
"""`(logits_fn, key, images, labels, *, index, scale) -> images`, or several arrays of them."""


class Judged(NamedTuple):
    """What an attack did to a split.

    Attributes:
      verdicts: on the images that the attack returns.
      any_iterate: on the first misclassified iterate where there is one; `None` unless the
        attack is PGD.
      adversarial: `[E, H, W, C]`, the images asked for.
      seconds: wall time.
    """

    verdicts: Verdicts
    any_iterate: Verdicts | None
    adversarial: np.ndarray
    seconds: float


class Steps(NamedTuple):
    """How to attack: what PGD, FGSM and MI-FGSM are given, and the images' rows `[N]`."""

    threat: ThreatModel
    step_size: float
    num_restarts: int
    seed: int
    batch_size: int
    rows: np.ndarray


def judge(
    named: suite.Named, logits_fn: Partial, split: Split, steps: Steps, examples: Sequence[int]
) -> Judged:
    """Attacks a split and says what became of each image.

    An example's random numbers depend on the seed, the number of steps and its row only.

    Args:
      named: `clean`, `fgsm`, `mifgsmN` or `pgdN`.
      logits_fn: the model.
      split: `N` images and labels.
      steps: how.
      examples: positions of the images to return.
    """
    look = _judge_of(named, steps)
    start = time.perf_counter()
    found, kept = _over_batches(look, logits_fn, split, steps, named.num_steps, 1.0, examples)
    seconds = time.perf_counter() - start
    return Judged(found[0], found[1] if len(found) > 1 else None, kept, seconds)


def radius_curve(
    named: suite.Named, logits_fn: Partial, split: Split, steps: Steps, radii: Sequence[float]
) -> np.ndarray:
    """Returns `[R, N]` bool: whether each image withstands the attack at each radius and below.

    The attack is compiled once; its step size grows with the radius.

    Args:
      named, logits_fn, split, steps: as in `judge`.
      radii: rising factors of `threat.epsilon`.
    """
    look = _judge_of(named, steps)
    robust, rows = np.ones(len(split.labels), bool), []
    for radius in radii:
        found, _ = _over_batches(look, logits_fn, split, steps, named.num_steps, radius, [])
        robust = robust & found[-1].correct
        rows.append(robust)
    return np.stack(rows)


def _judge_of(named: suite.Named, steps: Steps) -> Callable[..., tuple[tuple, Array]]:
    return make_judge(
        named, threat=steps.threat, step_size=steps.step_size, num_restarts=steps.num_restarts
    )


def _attack(
    named: suite.Named, threat: ThreatModel, step_size: float, num_restarts: int
) -> EvalAttack | None:
    options = {"threat": threat, "num_restarts": num_restarts}
    many = options | {"num_steps": named.num_steps}
    makers: dict[str, Callable[[], EvalAttack | None]] = {
        "clean": lambda: None,
        "fgsm": lambda: partial(attacks.fgsm, **options),
        "mifgsm": lambda: partial(attacks.mi_fgsm, **many),
        "pgd": lambda: partial(attacks.pgd, step_size=step_size, keep="both", **many),
    }
    return makers[named.kind]()


def make_judge(
    named: suite.Named, *, threat: ThreatModel, step_size: float, num_restarts: int
) -> Callable[..., Any]:
    """Returns a jitted `(logits_fn, batch, key, scale) -> (verdicts, images)`.

    `verdicts` is a tuple, of the attack's images first, then, of PGD, of any iterate.

    Args:
      named: `clean`, `fgsm`, `mifgsmN` or `pgdN`.
      threat, step_size, num_restarts: as in `attacks.pgd`; the judge's `scale` multiplies
        radius and step size.
    """
    attack = _attack(named, threat, step_size, num_restarts)

    @jax.jit
    def look(logits_fn: Partial, batch: Batch, key: Key, scale: Array) -> tuple[tuple, Array]:
        attacked = batch.images
        if attack is not None:
            attacked = attack(
                logits_fn, key, batch.images, batch.labels, index=batch.index, scale=scale
            )
        several = attacked if isinstance(attacked, tuple) else (attacked,)
        return tuple(_verdicts(logits_fn(images), batch.labels) for images in several), several[0]

    return look


def _verdicts(logits: Array, labels: Array) -> Verdicts:
    prediction = jnp.argmax(logits, axis=-1)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
    found = (
        prediction.astype(jnp.int32),
        jnp.where(finite, confidence, jnp.nan).astype(jnp.float32),
        (prediction == labels) & finite,
    )
    return Verdicts._make(found)  # device arrays here, NumPy on the host


def _over_batches(
    look: Callable, logits_fn: Partial, split: Split, steps: Steps, salt: int, radius: float,
    examples: Sequence[int],
) -> tuple[tuple[Verdicts, ...], np.ndarray]:  # fmt: skip
    """Verdicts on the whole split, and the attacked images at the positions `examples`.

    Of several processes each attacks its share.
    """
    mine = cluster.share(len(split.labels))
    rows = mine if len(mine) else np.zeros(1, int)  # with nothing to do, do something
    wanted = {int(row): place for place, row in enumerate(examples)}

    def attacked() -> tuple[tuple[Verdicts, ...], dict[int, np.ndarray]]:
        found, kept = _own(look, logits_fn, split.take(rows), steps, salt, radius, rows, wanted)
        return jax.tree.map(lambda x: x[: len(mine)], found), kept

    parts = cluster.from_each(attacked)
    kept = {place: image for _, images in parts for place, image in images.items()}
    shape = (0, *split.images.shape[1:])
    images = np.stack([kept[place] for place in sorted(kept)]) if kept else np.zeros(shape)
    return cluster.dealt([found for found, _ in parts]), images


def _own(
    look: Callable, logits_fn: Partial, split: Split, steps: Steps, salt: int, radius: float,
    rows: np.ndarray, wanted: Mapping[int, int],
) -> tuple[tuple[Verdicts, ...], dict[int, np.ndarray]]:  # fmt: skip
    """Verdicts on this process's images, at the positions `rows`, and those `wanted` of them."""
    key = jax.random.fold_in(jax.random.key(steps.seed), salt)
    parts, kept = [], {}
    mesh = sharding.data_mesh(jax.local_devices())
    logits_fn = sharding.on_each(mesh, logits_fn)
    each = -(-steps.batch_size // (jax.process_count() * mesh.size))
    size = each * mesh.size if jax.process_count() > 1 else steps.batch_size
    for batch in batches.feed(split, mesh).in_order(size):
        mask, positions = np.asarray(batch.mask), rows[np.asarray(batch.index)]
        index = sharding.spread(jnp.asarray(steps.rows[positions], jnp.int32), mesh)
        batch = batch._replace(index=index)
        found, images = look(logits_fn, batch, key, jnp.asarray(radius, jnp.float32))
        parts.append(jax.tree.map(lambda x, mask=mask: np.asarray(x)[mask], found))
        for number, row in enumerate(positions[mask].tolist()):
            if row in wanted:
                kept[wanted[row]] = np.asarray(images[number])
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts), kept
