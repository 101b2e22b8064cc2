"""A pool of slots on the device: a broken example leaves, and the next one takes its slot."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from fairmix_jax.attacks.stepwise import (
    Example,
    Randomized,
    Stepwise,
    misclassified,
    network_of,
    partial_of,
)
from fairmix_jax.types import Array, Key, LogitsFn


class Work(NamedTuple):
    """The examples to attack, `N` of them; the first `size` count.

    Attributes:
      images: `[N, H, W, C]`.
      labels: `[N]` int32.
      rivals: `[N, K - 1]` int32, see `Example`.
      keys: `[N, runs, 3, 2]` uint32, see `run_keys`.
      epsilon: `[]`, of the dtype of the images.
      size: `[]` int32.
    """

    images: Array
    labels: Array
    rivals: Array
    keys: Array
    epsilon: Array
    size: Array


class Slots(NamedTuple):
    """Examples under attack, `S` of them.

    Attributes:
      item: `[S]` int32, position in the work; `N` in a free slot.
      images, labels, rivals: these rows of the work.
      keys: `[S, 3, 2]` uint32, of this run.
      run, count: `[S]` int32, the run the example is in and the steps that it has taken.
      steps: `[S]` int32, steps in all runs.
      state: of the attack.
    """

    item: Array
    images: Array
    labels: Array
    rivals: Array
    keys: Array
    run: Array
    count: Array
    steps: Array
    state: Any


class Outcome(NamedTuple):
    """What is known of each example, in the order of the work.

    Attributes:
      finished: `[N]` bool, whether the attack is over.
      broken: `[N]` bool.
      adversarial: `[N, H, W, C]`, a misclassified image in the ball where broken, else clean.
      steps: `[N]` int32.
    """

    finished: Array
    broken: Array
    adversarial: Array
    steps: Array


class Pool(NamedTuple):
    """Slots, outcomes, and `next`, `[]` int32: the first item that never had a slot."""

    slots: Slots
    outcome: Outcome
    next: Array


def run(
    attack: Stepwise,
    logits_fn: LogitsFn | Randomized,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: float,
    index: Array | None = None,
    early_exit: bool = True,
    first: Callable[[Any], Any] | None = None,
) -> Array:
    """Returns the adversarial images of an attack on one batch; see `apgd.apgd`.

    Args:
      attack: see `Stepwise`.
      logits_fn, key, images, labels, index, early_exit: as in `apgd.apgd`.
      epsilon: the radius.
      first: changes the states `[B, ...]` that the first runs start with.
    """
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}; give [B, H, W, C]")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels has shape {labels.shape}; give {images.shape[:1]}, one each")
    size = len(images)
    index = jnp.arange(size) if index is None else index
    clean_key, attack_key = jax.random.split(key)
    apply = partial_of(logits_fn)
    logits = clean_logits(apply, images, index, clean_key)
    num_runs = attack.num_runs(logits.shape[1])
    work = Work(
        images=images,
        labels=labels.astype(jnp.int32),
        rivals=rivals(logits, labels),
        keys=run_keys(attack_key, index, num_runs=num_runs),
        epsilon=jnp.asarray(epsilon, images.dtype),
        size=jnp.asarray(size, jnp.int32),
    )
    pool = seat(attack, work, empty(attack, work, num_slots=size))
    if first is not None:
        pool = pool._replace(slots=pool.slots._replace(state=first(pool.slots.state)))
    steps = num_runs * attack.num_steps
    pool = advance(attack, apply, work, pool, num_steps=steps, early_exit=early_exit)
    is_wrong = misclassified(logits, labels)[:, None, None, None]
    return lax.stop_gradient(jnp.where(is_wrong, images, pool.outcome.adversarial))


def clean_logits(apply: Partial, images: Array, index: Array, key: Key) -> Array:
    """Returns logits `[B, K]`; a random model draws from each example's own key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(network_of(apply))(images, keys)


def rivals(logits: Array, labels: Array) -> Array:
    """Returns `[B, K - 1]` int32, the classes but the label by falling logit."""
    is_label = jnp.arange(logits.shape[1])[None] == labels[:, None]
    order = jnp.argsort(jnp.where(is_label, jnp.inf, logits), axis=1, descending=True)
    return order[:, 1:].astype(jnp.int32)


def run_keys(key: Key, index: Array, *, num_runs: int) -> Array:
    """Returns `[N, num_runs, 3, 2]` uint32: keys of each run's start, steps and network.

    Args:
      key: of the attack; only folded.
      index: `[N]` int, what tells the examples apart.
      num_runs: static.
    """

    def one(index: Array, run: Array) -> Array:
        key_of_run = jax.random.fold_in(jax.random.fold_in(key, index), run)
        return jax.random.key_data(jax.random.split(key_of_run, 3))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(index, jnp.arange(num_runs))


def empty(attack: Stepwise, work: Work, *, num_slots: int) -> Pool:
    """Returns a pool in which every slot is free and every item waits."""
    capacity = len(work.labels)
    row = jnp.zeros(num_slots, jnp.int32)
    slots = Slots(
        item=jnp.full(num_slots, capacity, jnp.int32),
        images=work.images[row],
        labels=work.labels[row],
        rivals=work.rivals[row],
        keys=work.keys[row, 0],
        run=row,
        count=row,
        steps=row,
        state=None,
    )
    shapes = jax.eval_shape(lambda: _start(attack, work, slots))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    outcome = Outcome(
        finished=jnp.zeros(capacity, bool),
        broken=jnp.zeros(capacity, bool),
        adversarial=work.images,
        steps=jnp.zeros(capacity, jnp.int32),
    )
    return Pool(slots._replace(state=state), outcome, jnp.asarray(0, jnp.int32))


def advance(
    attack: Stepwise,
    apply: Partial,
    work: Work,
    pool: Pool,
    *,
    num_steps: Array | int,
    few: Array | int = 0,
    early_exit: bool = True,
    confirm: Partial | None = None,
) -> Pool:
    """Takes up to `num_steps` steps in every slot; stops earlier once `few` slots are taken.

    Before a step free slots go to waiting items, and examples whose run is over start the
    next; after it those that are broken or have no run left leave.

    Args:
      attack: see `Stepwise`.
      apply: `(images, key) -> logits`, the model the attack sees.
      work: the examples.
      pool: as returned by `empty` or this.
      num_steps: at most; may be traced.
      few: return when no item waits and at most so many slots are taken; may be traced.
      early_exit: whether an example leaves when it is broken, or only at the end of the
        run. The verdicts are the same.
      confirm: if given, a success counts only if this model misclassifies the image too;
        else the attack on it goes on.
    """
    capacity, num_runs = work.keys.shape[:2]

    def body(carry):
        done, pool = carry
        pool = lax.cond(
            _may_seat(attack, work, pool), lambda p: seat(attack, work, p), lambda p: p, pool
        )
        slots = _step(attack, apply, confirm, work, pool.slots)
        is_over = slots.count == attack.num_steps
        ends = slots.state.broken & (is_over | early_exit)
        leaves = (slots.item < capacity) & (ends | (is_over & (slots.run + 1 == num_runs)))
        outcome = lax.cond(
            jnp.any(leaves), lambda o: _record(o, slots, leaves), lambda o: o, pool.outcome
        )
        slots = slots._replace(item=jnp.where(leaves, capacity, slots.item))
        return done + 1, Pool(slots, outcome, pool.next)

    def unfinished(carry) -> Array:
        done, pool = carry
        taken = jnp.sum(pool.slots.item < capacity)
        return (done < num_steps) & ((taken > few) | (pool.next < work.size))

    return lax.while_loop(unfinished, body, (jnp.asarray(0, jnp.int32), pool))[1]


def _may_seat(attack: Stepwise, work: Work, pool: Pool) -> Array:
    is_free = pool.slots.item == len(work.labels)
    is_over = ~is_free & (pool.slots.count == attack.num_steps)
    return jnp.any(is_over) | (jnp.any(is_free) & (pool.next < work.size))


def seat(attack: Stepwise, work: Work, pool: Pool) -> Pool:
    """Gives free slots to waiting items, and starts the next run where one is over."""
    slots, capacity = pool.slots, len(work.labels)
    is_free = slots.item == capacity
    turn = pool.next + jnp.cumsum(is_free, dtype=jnp.int32) - 1
    is_new = is_free & (turn < work.size)
    is_over = ~is_free & (slots.count == attack.num_steps)
    item = jnp.where(is_new, turn, slots.item)
    row, run = jnp.minimum(item, capacity - 1), jnp.where(is_over, slots.run + 1, 0)
    fresh = Slots(
        item=item,
        images=work.images[row],
        labels=work.labels[row],
        rivals=work.rivals[row],
        keys=work.keys[row, run],
        run=run,
        count=jnp.zeros_like(run),
        steps=jnp.where(is_new, 0, slots.steps),
        state=None,
    )
    fresh = fresh._replace(state=_start(attack, work, fresh))
    slots = _select(is_new | is_over, fresh, slots)
    return pool._replace(slots=slots, next=pool.next + jnp.sum(is_new, dtype=jnp.int32))


def _examples(work: Work, slots: Slots, keys: Array) -> Example:
    """What the attack knows of the examples in the slots, `[S]`."""
    key, network_key = jax.random.wrap_key_data(keys[:, 0]), jax.random.wrap_key_data(keys[:, 1])
    radii = jnp.full(len(slots.labels), work.epsilon)
    return Example(slots.images, slots.labels, slots.rivals, radii, key, network_key)


def _start(attack: Stepwise, work: Work, slots: Slots) -> Any:
    return jax.vmap(attack.start)(_examples(work, slots, slots.keys[:, 0::2]), slots.run)


def _step(attack: Stepwise, apply: Partial, confirm, work: Work, slots: Slots) -> Slots:
    def fold(data: Array, count: Array) -> Array:
        keys = jax.random.wrap_key_data(data)
        return jax.random.key_data(jax.vmap(jax.random.fold_in, (0, None))(keys, count))

    keys = jax.vmap(fold)(slots.keys[:, 1:], slots.count)
    step = functools.partial(attack.step, network_of(apply))
    state = jax.vmap(step)(_examples(work, slots, keys), slots.run, slots.count, slots.state)
    if confirm is not None:
        state = _confirm(confirm, _examples(work, slots, keys), slots.state, state)
    return slots._replace(count=slots.count + 1, steps=slots.steps + 1, state=state)


def _confirm(confirm: Partial, examples: Example, before, after):
    """Takes back a new success that `confirm` does not misclassify, and keeps an old one."""
    network = network_of(confirm)

    def check(candidates: Array) -> Array:
        def one(example: Example, image: Array) -> Array:
            return misclassified(network(image, example.network_key), example.label)

        return candidates & jax.vmap(one)(examples, after.adversarial)

    new = after.broken & ~before.broken
    confirmed = lax.cond(jnp.any(new), check, lambda candidates: candidates, new)
    kept = _select(before.broken, before.adversarial, after.adversarial)
    return after._replace(broken=before.broken | confirmed, adversarial=kept)


def _record(outcome: Outcome, slots: Slots, leaves: Array) -> Outcome:
    """Writes down the outcome of the slots that are left."""
    item = jnp.where(leaves, slots.item, len(outcome.broken))
    rows = jnp.where(leaves & slots.state.broken, slots.item, len(outcome.broken))
    return Outcome(
        finished=outcome.finished.at[item].set(True, mode="drop"),
        broken=outcome.broken.at[item].set(slots.state.broken, mode="drop"),
        adversarial=outcome.adversarial.at[rows].set(slots.state.adversarial, mode="drop"),
        steps=outcome.steps.at[item].set(slots.steps, mode="drop"),
    )


def _select(chosen: Array, yes: Any, no: Any) -> Any:
    """Rows of `yes` where `chosen [S]`, else of `no`."""

    def leaf(yes: Array, no: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

    return jax.tree.map(leaf, yes, no)
