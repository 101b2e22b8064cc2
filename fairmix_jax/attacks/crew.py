"""Pools on all devices: filling them, letting them work, taking the results out."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from fairmix_jax.attacks import pool as pools
from fairmix_jax.attacks.ledger import Journal, Ledger, UnderWay
from fairmix_jax.attacks.stepwise import Stepwise
from fairmix_jax.types import Array, Key

_SMALLEST, _EIGHTHS, _CHUNK_SECONDS = 16, (8, 6, 4, 2, 1), 1.0
_COMPILE_COST: dict[Stepwise, float] = {}
"""Seconds that compiling an attack took in this process, at most; what another size may cost."""
_SPLIT, _WHOLE = PartitionSpec("device"), PartitionSpec()


class Crew(NamedTuple):
    """What all attacks of an evaluation have in common.

    Attributes:
      apply: the model that is attacked, `(images, key) -> logits`.
      confirm: the model that has the last word on a success, if it is another.
      images, labels, rivals: `[N, ...]` NumPy arrays as in `pool.Work`.
      index: `[N]`, what tells the images' keys apart.
      epsilon: the radius.
      mesh: of the devices, one axis `"device"`.
      batch_size, early_exit, compact: as in `ensemble`.
    """

    apply: Partial
    confirm: Partial | None
    images: np.ndarray
    labels: np.ndarray
    rivals: np.ndarray
    index: np.ndarray
    epsilon: float
    mesh: Mesh
    batch_size: int
    early_exit: bool
    compact: bool

    @property
    def sizes(self) -> list[int]:
        """Slots that a device may have, falling: `batch_size` and some eighths of it.

        Not below 16, nor more than five, for each of which an attack is compiled.
        """
        shares = [self.batch_size * eighths // 8 for eighths in _EIGHTHS]
        return [share for share in shares if share >= _SMALLEST] or [self.batch_size]

    def num_slots(self, num_images: int) -> int:
        """Slots on each device: the smallest size with a slot for each image, else the largest."""
        each = -(-num_images // self.mesh.size)
        return min((size for size in self.sizes if size >= each), default=self.batch_size)

    def fewer(self, num_slots: int) -> int:
        """The next smaller size, or 0 if there is none."""
        smaller = [size for size in self.sizes if size < num_slots]
        return max(smaller, default=0) if self.compact else 0


class Gauge(NamedTuple):
    """Numbers of the pools, one a device.

    Attributes:
      taken, waiting, finished: images in slots, not yet, no more.
      broken: of the finished ones.
      steps, open_steps: taken so far for all of them, and for those in slots.
    """

    taken: Array
    waiting: Array
    finished: Array
    broken: Array
    steps: Array
    open_steps: Array


class _Filled(NamedTuple):
    """Pools at work: `rows` `[D, n]` are the positions of their items, -1 for padding."""

    work: pools.Work
    pool: pools.Pool
    rows: np.ndarray
    num_slots: int


def drain(
    crew: Crew,
    attack: Stepwise,
    key: Key,
    ledger: Ledger,
    journal: Journal,
    *,
    under_way: UnderWay | None,
    on_chunk: Callable[[Gauge], None],
) -> None:
    """Runs an attack on every image that the ledger is not done with.

    Pools are emptied and filled again when what they hold fits into the next smaller size and
    nothing waits (if that saves more time than compiling for it has cost), when a device has
    nothing left to do while others have, and when it is time to save.

    Args:
      crew, attack: see there.
      key: of the attack.
      ledger: changed in place.
      journal: where to save.
      under_way: images that continue where they were.
      on_chunk: called after every second or so of work.
    """
    num_runs = attack.num_runs(crew.rivals.shape[1] + 1)
    keys = np.asarray(_run_keys(key, crew.index, num_runs=num_runs))
    chunk = 1
    while not ledger.done.all():
        filled = _fill(crew, attack, keys, ledger, under_way)
        filled, gauge, compile_seconds = _work(crew, attack, filled, 0, 0)
        ledger.compile_seconds += compile_seconds
        cost = _COMPILE_COST[attack] = max(compile_seconds, _COMPILE_COST.get(attack, 0.0))
        few = 0
        while gauge.taken.any() or gauge.waiting.any():
            filled, gauge, seconds = _work(crew, attack, filled, chunk, few)
            ledger.seconds[ledger.current] += seconds
            on_chunk(gauge)
            steps_left = num_runs * attack.num_steps - gauge.open_steps / np.maximum(gauge.taken, 1)
            few = crew.fewer(filled.num_slots)
            saving = (1 - few / filled.num_slots) * steps_left.max() * seconds / chunk
            if saving <= cost:
                few = 0
            chunk = _next_chunk(chunk, seconds)
            is_small = not gauge.waiting.any() and gauge.taken.max() <= few
            is_uneven = not gauge.taken.all() and gauge.waiting.any()
            if is_small or is_uneven or journal.is_due:
                break
        under_way = _take_out(filled, ledger)
        if journal.is_due:
            journal.save(ledger, under_way)


def _work(
    crew: Crew, attack: Stepwise, filled: _Filled, num_steps: int, few: int
) -> tuple[_Filled, Gauge, float]:
    """Takes steps; returns the pools, their gauge and the seconds it took."""
    start = time.perf_counter()
    pool = _advance(
        attack, crew.mesh, crew.early_exit, crew.apply, crew.confirm, filled.work, filled.pool,
        np.int32(num_steps), np.int32(few),
    )  # fmt: skip
    gauge = jax.device_get(_gauge(crew.mesh, filled.work, pool))
    return filled._replace(pool=pool), gauge, time.perf_counter() - start


def _next_chunk(chunk: int, seconds: float) -> int:
    """As many steps as fit into a second, at most doubled each time."""
    return max(1, min(2 * chunk, int(chunk * _CHUNK_SECONDS / max(seconds, 1e-3))))


def _fill(crew, attack, keys, ledger: Ledger, under_way: UnderWay | None) -> _Filled:
    """Deals the images out to the devices in turn, those under way first."""
    started = np.zeros(0, int) if under_way is None else under_way.rows
    order = np.concatenate([started, np.setdiff1d(np.flatnonzero(~ledger.done), started)])
    num_slots, num_devices = crew.num_slots(len(order)), crew.mesh.size
    if not crew.compact:
        order = order[: num_slots * num_devices]
    length = -(-len(ledger.done) // num_devices)
    rows = np.full((length, num_devices), -1)
    rows.ravel()[: len(order)] = order
    rows = rows.T
    parts = [part[np.maximum(rows, 0)] for part in (crew.images, crew.labels, crew.rivals, keys)]
    parts += [np.full(num_devices, crew.epsilon, crew.images.dtype)]
    parts += [np.sum(rows >= 0, axis=1, dtype=np.int32)]
    work = pools.Work(*jax.device_put(parts, NamedSharding(crew.mesh, _SPLIT)))
    pool = _empty(attack, crew.mesh, num_slots, work)
    if under_way is not None:
        slots = _continue(pool.slots, work, under_way)
        pool = pool._replace(slots=slots, next=np.sum(slots.item < length, axis=1, dtype=np.int32))
        pool = jax.device_put(pool, NamedSharding(crew.mesh, _SPLIT))
    return _Filled(work, pool, rows, num_slots)


def _continue(slots: pools.Slots, work: pools.Work, under_way: UnderWay) -> pools.Slots:
    """Puts states back: image `j` is item `j // D` of device `j % D`, and in that slot."""
    num_devices, num_slots = slots.item.shape
    j = np.arange(min(len(under_way.rows), num_devices * num_slots))
    device, slot, run = j % num_devices, j // num_devices, under_way.run[j]

    def put(free: Array, saved: Any) -> Any:
        changed = np.array(free)
        changed[device, slot] = saved
        return changed

    leaves, structure = jax.tree.flatten(slots.state)
    state = [put(leaf, saved[j]) for leaf, saved in zip(leaves, under_way.state, strict=True)]
    return pools.Slots(
        item=put(slots.item, slot),
        images=put(slots.images, np.asarray(work.images)[device, slot]),
        labels=put(slots.labels, np.asarray(work.labels)[device, slot]),
        rivals=put(slots.rivals, np.asarray(work.rivals)[device, slot]),
        keys=put(slots.keys, np.asarray(work.keys)[device, slot, run]),
        run=put(slots.run, run),
        count=put(slots.count, under_way.count[j]),
        steps=put(slots.steps, under_way.steps_taken[j]),
        state=jax.tree.unflatten(structure, state),
    )


def _take_out(filled: _Filled, ledger: Ledger) -> UnderWay | None:
    """Enters what is finished into the ledger and returns what is not, if anything."""
    slots, outcome = filled.pool.slots, jax.device_get(filled.pool.outcome)
    finished = outcome.finished & (filled.rows >= 0)
    ledger.enter(
        filled.rows[finished],
        outcome.broken[finished],
        outcome.adversarial[finished],
        outcome.steps[finished],
    )
    item = np.asarray(slots.item)
    taken = item < filled.rows.shape[1]
    if not taken.any():
        return None
    rows = np.take_along_axis(filled.rows, np.minimum(item, filled.rows.shape[1] - 1), axis=1)
    pick = lambda leaf: np.asarray(leaf)[taken]  # noqa: E731
    return UnderWay(
        rows[taken],
        pick(slots.run),
        pick(slots.count),
        pick(slots.steps),
        [pick(leaf) for leaf in jax.tree.leaves(slots.state)],
    )


_run_keys = jax.jit(pools.run_keys, static_argnames="num_runs")


@partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(attack: Stepwise, mesh: Mesh, num_slots: int, work: pools.Work) -> pools.Pool:
    def local(work: pools.Work) -> pools.Pool:
        return pools.empty(attack, work, num_slots=num_slots)

    return _on_each(mesh, local, 1)(work)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=6)
def _advance(attack, mesh, early_exit, apply, confirm, work, pool, num_steps, few) -> pools.Pool:
    def local(work, pool, apply, confirm, num_steps, few):
        return pools.advance(
            attack, apply, work, pool, num_steps=num_steps, few=few,
            early_exit=early_exit, confirm=confirm,
        )  # fmt: skip

    return _on_each(mesh, local, 2)(work, pool, apply, confirm, num_steps, few)


def lower(
    attack: Stepwise,
    apply: Any,
    mesh: Mesh,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    num_images: int,
    batch_size: int,
) -> Any:
    """Lowers the program that takes an attack's steps, for devices that need not be here.

    Args:
      attack: which.
      apply: the model as a pytree of shapes, `(images, key) -> logits`.
      mesh: of the devices, one axis `"device"`.
      image_shape: `[H, W, C]`.
      num_classes: `K`.
      num_images: to attack, on each device.
      batch_size: slots on each device.
    """
    split, whole = (NamedSharding(mesh, spec) for spec in (_SPLIT, _WHOLE))

    def each(shape: Sequence[int], kind: Any) -> Any:
        return jax.ShapeDtypeStruct((mesh.size, *shape), kind, sharding=split)

    runs = attack.num_runs(num_classes)
    work = pools.Work(
        images=each((num_images, *image_shape), np.float32),
        labels=each((num_images,), np.int32),
        rivals=each((num_images, num_classes - 1), np.int32),
        keys=each((num_images, runs, 3, 2), np.uint32),
        epsilon=each((), np.float32),
        size=each((), np.int32),
    )
    pool = jax.eval_shape(partial(_empty, attack, mesh, batch_size), work)
    pool = jax.tree.map(lambda leaf: each(leaf.shape[1:], leaf.dtype), pool)
    number = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
    return _advance.lower(attack, mesh, True, apply, None, work, pool, number, number)


@partial(jax.jit, static_argnums=0)
def _gauge(mesh, work: pools.Work, pool: pools.Pool):
    def local(work, pool):
        slots, outcome = pool.slots, pool.outcome
        is_taken = slots.item < len(work.labels)
        open_steps = jnp.sum(jnp.where(is_taken, slots.steps, 0))
        return Gauge(
            taken=jnp.sum(is_taken),
            waiting=work.size - pool.next,
            finished=jnp.sum(outcome.finished),
            broken=jnp.sum(outcome.broken),
            steps=jnp.sum(outcome.steps) + open_steps,
            open_steps=open_steps,
        )

    return _on_each(mesh, local, 2)(work, pool)


def _on_each(mesh: Mesh, local: Callable[..., Any], num_split: int) -> Callable[..., Any]:
    """`local` on every device, its first `num_split` arguments and results a row each."""

    def one(*arguments):
        rows = jax.tree.map(lambda x: x[0], arguments[:num_split])
        result = local(*rows, *arguments[num_split:])
        return jax.tree.map(lambda x: x[None], result)

    def mapped(*arguments):
        specs = (_SPLIT,) * num_split + (_WHOLE,) * (len(arguments) - num_split)
        return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=_SPLIT, check_vma=False)(
            *arguments
        )

    return mapped
