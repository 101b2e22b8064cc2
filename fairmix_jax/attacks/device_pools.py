"""Pools of slots on all devices: filling them, letting them work, taking the results out.

A pool (`slots`) works on a device without a word to the host for about a second, a chunk of
steps. Between chunks the host looks at a few counts and decides whether to empty the pools and
deal the images out again. It does where it pays: into smaller pools, when few images are left;
evenly, when a device has nothing left to do while others have; and when it is time to save.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fairmix_jax.attacks import slots
from fairmix_jax.attacks.plan import Plan
from fairmix_jax.attacks.projections import as_radius
from fairmix_jax.attacks.slots import Pool, Queue, Slots
from fairmix_jax.attacks.stepwise import Stepwise
from fairmix_jax.attacks.verdict_state import StateFile, VerdictState
from fairmix_jax.runtime.precision import Precision, at_full_precision
from fairmix_jax.types import Array, Key

_CHUNK_SECONDS = 1.0
_EIGHTHS, _SMALLEST = (8, 6, 4, 2, 1), 16
_COMPILE_COST: dict[Stepwise, float] = {}
"""Seconds that compiling an attack took in this process, at most; what another size may cost."""
_SPLIT, _WHOLE = PartitionSpec("device"), PartitionSpec()


class Counts(NamedTuple):
    """Numbers of the pools, one a device, `[D]`."""

    taken: np.ndarray  # images in slots
    waiting: np.ndarray  # images that had no slot yet
    broken: np.ndarray  # images that have left broken
    steps: np.ndarray  # taken so far for all images
    open_steps: np.ndarray  # taken so far for those in slots


def sizes(batch_size: int) -> list[int]:
    """Returns the slots that a device may have, falling: `batch_size` and eighths of it.

    At most five, since an attack is compiled for each, and none below 16. Eighths and not halves
    only, so that survivors find a size that fits (docs/performance/cpu.md has what that is worth).
    """
    shares = [batch_size * eighths // 8 for eighths in _EIGHTHS]
    return [share for share in shares if share >= _SMALLEST] or [batch_size]


def fitting(batch_size: int, num_images: int) -> int:
    """Returns the smallest size with a slot for each of a device's images, else the largest."""
    return min((s for s in sizes(batch_size) if s >= num_images), default=batch_size)


def smaller(batch_size: int, num_slots: int) -> int:
    """Returns the next smaller size, or 0 if there is none."""
    return max((s for s in sizes(batch_size) if s < num_slots), default=0)


def drain(
    plan: Plan, attack: Stepwise, key: Key, state: VerdictState, file: StateFile
) -> Iterator[Counts]:
    """Runs an attack on every image that the state is not done with; yields every second or so.

    The state is changed in place and saved; its unfinished images continue where they were.
    """
    all_steps, chunk = attack.num_runs(plan.num_classes) * attack.num_steps, 1
    while not state.done.all():
        queue, pool, rows = _fill(plan, attack, key, state)
        num_slots = pool.slots.item.shape[1]
        # Without a step: what it takes is the compilation, if this size is new.
        pool, counts, compile_seconds = _work(plan, attack, queue, pool, 0, 0)
        state.compile_seconds += compile_seconds
        cost = _COMPILE_COST[attack] = max(compile_seconds, _COMPILE_COST.get(attack, 0.0))
        few = 0
        while counts.taken.any() or counts.waiting.any():
            pool, counts, seconds = _work(plan, attack, queue, pool, chunk, few)
            state.seconds[state.current] += seconds
            yield counts
            # A smaller pool saves a share of the time left, but may have to be compiled first,
            # which takes long for a large network: it must not cost more than it saves.
            few = smaller(plan.batch_size, num_slots)
            steps_left = all_steps - counts.open_steps / np.maximum(counts.taken, 1)
            saving = (1 - few / num_slots) * steps_left.max() * seconds / chunk
            few = few if saving > cost else 0
            chunk = _next_chunk(chunk, seconds)
            is_small = not counts.waiting.any() and counts.taken.max() <= few
            is_uneven = not counts.taken.all() and counts.waiting.any()
            if is_small or is_uneven or file.is_due:
                break
        _take_out(pool, rows, state)
        if file.is_due:
            file.save(state)


def _work(
    plan: Plan, attack: Stepwise, queue: Queue, pool: Pool, num_steps: int, few: int
) -> tuple[Pool, Counts, float]:
    """Takes steps; returns the pools, their counts and the seconds it took."""
    start = time.perf_counter()
    steps, how = (np.int32(num_steps), np.int32(few)), (plan.early_exit, plan.search_precision)
    pool = _advance(attack, plan.mesh, *how, *plan.models, queue, pool, *steps)
    held, found = pool.slots, pool.results
    looked_at = held.item, held.run, held.count, pool.next, queue.size, found.broken, found.steps
    item, run, count, seated, size, broken, steps = jax.device_get(looked_at)
    seconds = time.perf_counter() - start
    is_taken = item < broken.shape[1]
    open_steps = np.sum((run * attack.num_steps + count) * is_taken, axis=1)
    taken, steps = np.sum(is_taken, axis=1), np.sum(steps, axis=1) + open_steps
    return pool, Counts(taken, size - seated, np.sum(broken, axis=1), steps, open_steps), seconds


def _next_chunk(chunk: int, seconds: float) -> int:
    """As many steps as fit into a second, at most doubled each time."""
    return max(1, min(2 * chunk, int(chunk * _CHUNK_SECONDS / max(seconds, 1e-3))))


def _fill(
    plan: Plan, attack: Stepwise, key: Key, state: VerdictState
) -> tuple[Queue, Pool, np.ndarray]:
    """Deals the images out to the devices in turn, those under way first.

    Returns the pools and, `[D, n]`, the images' positions, -1 for padding. Queues have room
    for all images, however few are left, since another length would be another program.
    """
    started = state.unfinished[0] if state.unfinished else np.zeros(0, int)
    order = np.concatenate([started, np.setdiff1d(np.flatnonzero(~state.done), started)])
    num_devices = plan.mesh.size
    num_slots = fitting(plan.batch_size, -(-len(order) // num_devices))
    length = -(-len(state.done) // num_devices)
    rows = np.full((length, num_devices), -1)
    rows.ravel()[: len(order)] = order
    rows = rows.T
    each = plan.images, plan.labels, plan.rivals, plan.index
    parts = [part[np.maximum(rows, 0)] for part in each]
    parts += [np.tile(jax.random.key_data(key), (num_devices, 1))]
    parts += [np.full(num_devices, as_radius(plan.threat.epsilon, plan.images.dtype))]
    parts += [np.sum(rows >= 0, axis=1, dtype=np.int32)]
    split = NamedSharding(plan.mesh, _SPLIT)
    queue = Queue(*jax.device_put(parts, split))
    pool = _empty(attack, plan.mesh, num_slots, queue)
    if state.unfinished:
        seated = _put_back(pool.slots, state.unfinished)
        num_seated = np.sum(seated.item < length, axis=1, dtype=np.int32)
        pool = jax.device_put(pool._replace(slots=seated, next=num_seated), split)
    return queue, pool, rows


def _put_back(free: Slots, unfinished: list[np.ndarray]) -> Slots:
    """Puts states back: image `j` is item `j // D` of device `j % D`, and in that slot."""
    num_devices, num_slots = free.item.shape
    number = min(len(unfinished[0]), num_devices * num_slots)  # the others begin again
    item, device = np.divmod(np.arange(number), num_devices)
    saved = jax.tree.unflatten(jax.tree.structure(free), [item, *unfinished[1:]])

    def put(free: Array, saved: np.ndarray) -> np.ndarray:
        changed = np.array(free)
        changed[device, item] = saved[:number]
        return changed

    return jax.tree.map(put, free, saved)


def _take_out(pool: Pool, rows: np.ndarray, state: VerdictState) -> None:
    """Enters what is finished into the state, and what is not as unfinished."""
    results = jax.device_get(pool.results)
    finished = (results.steps > 0) & (rows >= 0)
    found = rows, results.broken, results.adversarial, results.steps
    state.enter(*(part[finished] for part in found))
    item = np.asarray(pool.slots.item)
    taken = item < rows.shape[1]
    position = np.take_along_axis(rows, np.minimum(item, rows.shape[1] - 1), axis=1)
    leaves = [position, *jax.tree.leaves(pool.slots)[1:]]
    state.unfinished = [np.asarray(leaf)[taken] for leaf in leaves] if taken.any() else []


@partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(attack: Stepwise, mesh: Mesh, num_slots: int, queue: Queue) -> Pool:
    return _on_each(mesh, partial(slots.empty, attack, num_slots=num_slots), queue)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def _advance(
    attack, mesh, early_exit, precision, apply, confirm, queue, pool, num_steps, few
) -> Pool:
    def local(queue, pool, apply, confirm, num_steps, few):
        options = dict(num_steps=num_steps, few=few, early_exit=early_exit, confirm=confirm)
        advance = partial(slots.advance, attack, **options)
        advance = at_full_precision(advance) if precision == "highest" else advance
        return advance(apply, queue, pool)

    return _on_each(mesh, local, queue, pool, whole=(apply, confirm, num_steps, few))


def _on_each(mesh: Mesh, local: Callable[..., Any], *split: Any, whole: tuple = ()) -> Any:
    """`local(*split, *whole)` on every device; of `split` and the result it has a row each."""

    def one(split: tuple, whole: tuple):
        result = local(*jax.tree.map(lambda x: x[0], split), *whole)
        return jax.tree.map(lambda x: x[None], result)

    specs = _SPLIT, _WHOLE
    each = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=_SPLIT, check_vma=False)
    return each(split, whole)


def lower(
    attack: Stepwise, apply: Any, mesh: Mesh, shape: Sequence[int], num_classes: int,
    num_slots: int, precision: Precision,
) -> Any:  # fmt: skip
    """Lowers the program that takes an attack's steps, for devices that need not be here.

    `apply` is the model as a pytree of shapes, `shape` that of the images on each device.
    """

    def each(shape: Sequence[int], kind: Any) -> Any:
        sharding = NamedSharding(mesh, _SPLIT)
        return jax.ShapeDtypeStruct((mesh.size, *shape), kind, sharding=sharding)

    queue = Queue(
        images=each(shape, np.float32), labels=each(shape[:1], np.int32),
        rivals=each((shape[0], num_classes - 1), np.int32),
        index=each(shape[:1], np.int32), key=each((2,), np.uint32),
        epsilon=each((), np.float32), size=each((), np.int32),
    )  # fmt: skip
    pool = jax.eval_shape(partial(_empty, attack, mesh, num_slots), queue)
    pool = jax.tree.map(lambda leaf: each(leaf.shape[1:], leaf.dtype), pool)
    number = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, _WHOLE))
    how = True, precision
    return _advance.lower(attack, mesh, *how, apply, None, queue, pool, number, number)
