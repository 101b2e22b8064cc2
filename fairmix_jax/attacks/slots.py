"""Slots on one device: an example that is done leaves, and the next one takes its slot.

Why slots: most examples break in the first steps, a few never do. A batch that waits for its
last example would work for nobody most of the time, and one that shrinks would be compiled for
every size. A slot is never idle while an example waits, at one compiled shape.

Why this changes no verdict: an attack is written for one example with its own state, counter and
keys (`Stepwise`). Examples side by side may be at different steps, and know nothing of each other.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from fairmix_jax.attacks.stepwise import Example, Stepwise, misclassified, network_of
from fairmix_jax.runtime.precision import at_full_precision
from fairmix_jax.types import Array, Key


class Queue(NamedTuple):
    """The examples to attack, `N` of them; the first `size` count, the rest is padding."""

    images: Array  # [N, H, W, C]
    labels: Array  # [N] int32
    rivals: Array  # [N, K - 1] int32, see `Example`
    index: Array  # [N] int32, numbers that tell the examples' keys apart
    key: Array  # [2] uint32, the data of the attack's key, since NumPy has no arrays of keys
    epsilon: Array  # [], of the dtype of the images
    size: Array  # [] int32


class Slots(NamedTuple):
    """Examples under attack, `S` of them."""

    item: Array  # [S] int32, position in the queue; `N` in a free slot
    run: Array  # [S] int32, the run the example is in
    count: Array  # [S] int32, steps that it has taken in this run
    state: Any  # of the attack


class Results(NamedTuple):
    """The result for each example, in the order of the queue."""

    broken: Array  # [N] bool
    adversarial: Array  # [N, H, W, C], misclassified and in the ball where broken, else clean
    steps: Array  # [N] int32, that the attack took; 0 while it is not over


class Pool(NamedTuple):
    """Slots, results, and the first item that never had a slot."""

    slots: Slots
    results: Results
    next: Array  # [] int32


@at_full_precision
def clean_logits(apply: Partial, images: Array, index: Array, key: Key) -> Array:
    """Returns `[B, K]`, for verdicts; a random model draws from each example's own key."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(network_of(apply))(images, keys)


def rivals(logits: Array, labels: Array) -> Array:
    """Returns `[B, K - 1]` int32, the classes but the label by falling logit."""
    is_label = jnp.arange(logits.shape[1])[None] == labels[:, None]
    order = jnp.argsort(jnp.where(is_label, jnp.inf, logits), axis=1, descending=True)
    return order[:, 1:].astype(jnp.int32)


def empty(attack: Stepwise, queue: Queue, *, num_slots: int) -> Pool:
    """Returns a pool in which every slot is free and every item waits."""
    capacity, zeros = len(queue.labels), jnp.zeros(num_slots, jnp.int32)
    item = jnp.full(num_slots, capacity, jnp.int32)
    slots = Slots(item, run=zeros, count=zeros, state=None)
    started = jax.eval_shape(lambda: _started(attack, queue, slots).state)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), started)
    steps = jnp.zeros(capacity, jnp.int32)
    results = Results(jnp.zeros(capacity, bool), queue.images, steps)
    return Pool(slots._replace(state=state), results, jnp.asarray(0, jnp.int32))


def advance(
    attack: Stepwise, apply: Partial, queue: Queue, pool: Pool, *, num_steps: Array | int,
    few: Array | int = 0, early_exit: bool = True, confirm: Partial | None = None,
) -> Pool:  # fmt: skip
    """Takes up to `num_steps` steps in every slot, fewer once no item waits and `few` are taken.

    Before a step free slots go to waiting items, and examples whose run is over start the next;
    after it those that are broken (without `early_exit` not before the end of the run) or have no
    run left leave. A success counts only if at full precision `confirm`, by default `apply`,
    misclassifies the image too; else the attack on it goes on.
    """
    capacity, num_runs = len(queue.labels), attack.num_runs(queue.rivals.shape[1] + 1)

    def body(carry):
        done, pool = carry
        pool = _seat(attack, queue, pool)
        slots = _step(attack, apply, confirm, queue, pool.slots)
        is_over = slots.count == attack.num_steps
        ends = slots.state.broken & (is_over | early_exit)
        leaves = (slots.item < capacity) & (ends | (is_over & (slots.run + 1 == num_runs)))
        record = partial(_record, slots, leaves, slots.run * attack.num_steps + slots.count)
        results = lax.cond(jnp.any(leaves), record, lambda results: results, pool.results)
        slots = slots._replace(item=jnp.where(leaves, capacity, slots.item))
        return done + 1, Pool(slots, results, pool.next)

    def unfinished(carry) -> Array:
        done, pool = carry
        taken = jnp.sum(pool.slots.item < capacity)
        return (done < num_steps) & ((taken > few) | (pool.next < queue.size))

    return lax.while_loop(unfinished, body, (jnp.asarray(0, jnp.int32), pool))[1]


def _seat(attack: Stepwise, queue: Queue, pool: Pool) -> Pool:
    """Gives free slots to waiting items, and starts the next run where one is over."""
    slots = pool.slots
    is_free = slots.item == len(queue.labels)
    turn = pool.next + jnp.cumsum(is_free, dtype=jnp.int32) - 1
    is_new = is_free & (turn < queue.size)
    is_over = ~is_free & (slots.count == attack.num_steps)
    starts = is_new | is_over
    next_run = Slots(
        item=jnp.where(is_new, turn, slots.item),
        run=jnp.where(is_over, slots.run + 1, 0),
        count=jnp.zeros_like(slots.count),
        state=None,
    )
    slots = lax.cond(
        jnp.any(starts),
        lambda slots: _select(starts, _started(attack, queue, next_run), slots),
        lambda slots: slots,
        slots,
    )
    return pool._replace(slots=slots, next=pool.next + jnp.sum(is_new, dtype=jnp.int32))


def _started(attack: Stepwise, queue: Queue, slots: Slots) -> Slots:
    examples = _examples(queue, slots, is_start=True)
    return slots._replace(state=jax.vmap(attack.start)(examples, slots.run))


def _examples(queue: Queue, slots: Slots, *, is_start: bool = False) -> Example:
    """The examples in the slots as the attack sees them, `[S]`, at the start or in a step.

    Keys follow from the attack's key, the example, the run and the step, not the order of work.
    """
    row = jnp.minimum(slots.item, len(queue.labels) - 1)

    def keys(index: Array, run: Array, count: Array) -> tuple[Key, Key]:
        of_example = jax.random.fold_in(
            jax.random.wrap_key_data(queue.key, impl="threefry2x32"), index
        )
        start, step, network = jax.random.split(jax.random.fold_in(of_example, run), 3)
        own = start if is_start else jax.random.fold_in(step, count)
        return own, jax.random.fold_in(network, count)

    key, network_key = jax.vmap(keys)(queue.index[row], slots.run, slots.count)
    known = queue.images[row], queue.labels[row], queue.rivals[row]
    return Example(*known, jnp.full(len(row), queue.epsilon), key, network_key)


def _step(attack: Stepwise, apply: Partial, confirm, queue: Queue, slots: Slots) -> Slots:
    step = partial(attack.step, network_of(apply))
    state = jax.vmap(step)(_examples(queue, slots), slots.run, slots.count, slots.state)
    confirmed = at_full_precision(_confirm, on_cpu=None if confirm else _as_found)
    state = confirmed(confirm or apply, _examples(queue, slots), slots.state, state)
    return slots._replace(count=slots.count + 1, state=state)


def _as_found(confirm, examples: Example, before, after):
    return after


def _confirm(confirm: Partial, examples: Example, before, after):
    """Takes back a new success that `confirm` does not misclassify, and keeps an old one.

    Why: a cheaper model (bfloat16) to search with, or rounded products, may misclassify an image
    by rounding alone; the verdict is about the model itself. It is asked right after the step, so
    that the attack goes on where it says no, and only if some slot has a new success.
    """
    network = network_of(confirm)

    def one(example: Example, image: Array) -> Array:
        return misclassified(network(image, example.network_key), example.label)

    def check(candidates: Array) -> Array:
        return candidates & jax.vmap(one)(examples, after.adversarial)

    new = after.broken & ~before.broken
    confirmed = lax.cond(jnp.any(new), check, lambda candidates: candidates, new)
    kept = _select(before.broken, before.adversarial, after.adversarial)
    return after._replace(broken=before.broken | confirmed, adversarial=kept)


def _record(slots: Slots, leaves: Array, steps: Array, results: Results) -> Results:
    """Writes down what became of the examples that leave their slots."""
    item = jnp.where(leaves, slots.item, len(results.broken))
    rows = jnp.where(leaves & slots.state.broken, slots.item, len(results.broken))
    return Results(
        broken=results.broken.at[item].set(slots.state.broken, mode="drop"),
        adversarial=results.adversarial.at[rows].set(slots.state.adversarial, mode="drop"),
        steps=results.steps.at[item].set(steps, mode="drop"),
    )


def _select(chosen: Array, yes: Any, no: Any) -> Any:
    """Rows of `yes` where `chosen [S]`, else of `no`."""
    select = jax.vmap(jnp.where)
    return jax.tree.map(lambda yes, no: select(chosen, yes, no), yes, no)
