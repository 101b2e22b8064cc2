"""The margin table: how near an attack brings each image to each wrong class.

A bias on a class moves every margin `z_y - z_k` by a constant. An attack that descends one such
margin therefore takes the same path whatever the biases are. So one table of the smallest margins
found says which images are robust at *every* choice of biases, without another attack. That holds
for biases, not for factors of the logits, nor for attacks on losses of all logits together.
"""

import functools
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.plan import Plan
from fairmix_jax.attacks.projections import as_radius
from fairmix_jax.attacks.stepwise import Example, Stepwise, network_of, partial_of
from fairmix_jax.runtime import VERSION, inputs, processes, sealed
from fairmix_jax.runtime.errors import Damaged
from fairmix_jax.runtime.precision import at_full_precision
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel


def margin_table(
    logits_fn: LogitsFn, images: Any, labels: Any, *, threat: ThreatModel, num_steps: int = 20,
    num_restarts: int = 1, seed: int = 0, index: Any = None, batch_size: int = 256,
    workdir: Path | str | None = None, save_seconds: float = 30.0,
) -> np.ndarray:  # fmt: skip
    """Returns `[N, K]` float32: the smallest `z_y - z_k` found in each image's ball.

    Each image is attacked once towards each wrong class, by APGD on that margin. The table has the
    least margins at the image itself and at the best point of every one of these runs.

    Guarantees: with biases `b` the image is misclassified at one of these points exactly if
    `table[i, k] + b[y] - b[k] <= 0` for some `k`, where a tie counts as misclassified. Adding
    biases to the logits adds their differences to the table, up to rounding. An image's row depends
    on the model, the image, its label and index, the threat and the seed only: not on order,
    processes or an interruption, nor on batches and devices but for the rounding of their programs.
    Renaming the classes renames the columns. For a linear model whose images lie further than
    epsilon from the threat's bounds, the table is the exact worst case in L-inf, up to rounding; in
    L2 it tends to it with the steps.

    Edge cases: the column of the true class is `inf`. Where logits are not finite at a point that
    was looked at, the rest of the row is `-inf`. With `epsilon=0` it has the clean margins.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`; must not couple examples.
      images, labels: `[N, H, W, C]` float inside `threat.bounds`; `[N]` int.
      num_steps: of a run, at least 1; a run costs `num_steps + 1` gradient passes.
      num_restarts: runs towards each class, from fresh random starts, at least 1.
      index: `[N]` int, numbers that tell the images' random starts apart; `0 .. N - 1` if `None`.
      batch_size: images under attack at a time, over all local devices.
      workdir: where the table is kept, so that the same call goes on after an interruption, and is
        done at once when it is whole. Of several processes each attacks its share.
      save_seconds: how often finished rows are saved.

    Raises:
      ValueError: images, labels, bounds and logits do not fit each other; names what is wrong.

    Reference: the step rule is that of Croce and Hein 2020, arXiv 2003.01690.
    """
    inputs.check_whole(1, num_steps=num_steps, num_restarts=num_restarts, batch_size=batch_size)
    images, labels = np.asarray(images), np.asarray(labels)
    inputs.check_batch(images, labels, threat)
    if not len(images):
        raise ValueError(f"images have shape {images.shape}; give at least one")
    index = np.arange(len(images)) if index is None else np.asarray(index)
    inputs.check_rows("index", index, len(images))
    images = np.asarray(inputs.as_single(images))
    inputs.check_model(logits_fn, images)
    attack = make_apgd(
        norm=threat.norm, bounds=threat.bounds, targeted=True, num_targets=1, loss="margin",
        num_steps=num_steps,
    )  # fmt: skip
    num_runs = num_restarts if threat.epsilon else 0  # with no room there is nothing to find
    plan = Plan(
        partial_of(logits_fn, images), images, labels.astype(np.int32), index,
        np.ones(len(labels), bool), threat, {f"margins, {num_runs} runs": attack}, seed=seed,
        batch_size=batch_size, workdir=workdir, save_seconds=save_seconds,
    )  # fmt: skip
    size = jax.eval_shape(plan.model, images[:1], plan.key).shape[1]
    inputs.check_labels(labels, len(labels), size)
    mine, own = processes.share(len(labels)), plan.of_this_process()
    shares = processes.from_each(lambda: _table(own, attack, num_runs, size)[: len(mine)])
    return processes.dealt(shares)


def _table(plan: Plan, attack: Stepwise, num_runs: int, num_classes: int) -> np.ndarray:
    """The table of one process's images; goes on where it was interrupted."""
    count, number = len(plan.images), plan.mesh.size
    path, table, done = _saved(plan, np.zeros((count, num_classes), np.float32))
    size = -(-min(plan.batch_size, count) // number) * number
    epsilon = jnp.asarray(as_radius(plan.threat.epsilon, plan.images.dtype))
    spread, (model, _) = NamedSharding(plan.mesh, PartitionSpec("device")), plan.models
    saved = time.monotonic()
    for first in range(done, count, size):
        of = np.minimum(np.arange(first, first + size), count - 1)
        given = jax.device_put((plan.images[of], plan.labels[of], plan.index[of]), spread)
        table[of] = _rows(attack, num_runs, model, *given, plan.key, epsilon)
        is_last, now = first + size >= count, time.monotonic()
        if path and (is_last or now - saved >= plan.save_seconds):
            sealed.write(path, table=table, done=np.asarray(min(first + size, count)))
            saved = now
    return table


def _saved(plan: Plan, empty: np.ndarray) -> tuple[Path | None, np.ndarray, int]:
    """Where this table is kept, what is there of it, and how many rows those are.

    The file is named for what the table depends on, so that no other one is taken for it.
    """
    if plan.workdir is None:
        return None, empty, 0
    logits = " ".join(f"{logit:.4g}" for logit in plan.logits.ravel())
    facts = json.dumps([VERSION, plan.facts, logits], sort_keys=True).encode()
    path = Path(plan.workdir) / f"margins-{hashlib.sha256(facts).hexdigest()[:16]}.npz"
    if not path.exists():
        return path, empty, 0
    try:
        found = sealed.read(path)
    except Damaged as error:
        logging.getLogger(__name__).warning("%s; this table begins again", error)
        return path, empty, 0
    return path, found["table"], int(found["done"])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rows(
    attack: Stepwise, num_runs: int, model: Partial, images: Array, labels: Array,
    index: Array, key: Key, epsilon: Array,
) -> Array:  # fmt: skip
    """The table's rows of a batch, `[B, K]`."""
    network = network_of(model)
    margins = at_full_precision(functools.partial(_margins, network, key))
    found = jax.vmap(margins)(images, labels)
    num_classes = found.shape[1]

    def against(found: Array, number: Array) -> tuple[Array, None]:
        restart, step = jnp.divmod(number, num_classes - 1)
        targets = (labels + 1 + step) % num_classes
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, restart), index)
        toward = functools.partial(_nearest, attack, network, epsilon)
        points = jax.vmap(toward)(images, labels, targets, keys)
        return jnp.minimum(found, jax.vmap(margins)(points, labels)), None

    runs = jnp.arange(num_runs * (num_classes - 1))
    return lax.scan(against, found, runs)[0]


def _margins(network: Any, key: Key, image: Array, label: Array) -> Array:
    """`z_y - z_k`, `[K]`, with `inf` at `y`; `-inf` elsewhere if any logit is not finite."""
    logits = network(image, key)
    found = jnp.where(jnp.all(jnp.isfinite(logits)), logits[label] - logits, -jnp.inf)
    return jnp.where(jnp.arange(len(logits)) == label, jnp.inf, found)


def _nearest(
    attack: Stepwise, network: Any, epsilon: Array, image: Array, label: Array, target: Array,
    key: Key,
) -> Array:  # fmt: skip
    """The point of an attack's run that comes nearest to the target, `[H, W, C]`."""
    example = Example(image, label, target[None], epsilon, key, key)
    run = jnp.asarray(0, jnp.int32)

    def step(count: Array, state: Any) -> Any:
        state = attack.step(network, example, run, count, state)
        # APGD compares its second loss with 0, as its authors' code does. A bias would change that
        # and so the path; the first loss does not.
        return state._replace(loss=jnp.where(count == 0, state.best_loss, state.loss))

    return lax.fori_loop(0, attack.num_steps, step, attack.start(example, run)).best
