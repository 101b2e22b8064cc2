"""Several attacks one after another, each on the survivors of those before."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fairmix_jax.attacks.device_pools import Counts, drain
from fairmix_jax.attacks.plan import Plan
from fairmix_jax.attacks.report import AttackReport, merged
from fairmix_jax.attacks.stepwise import Classifier, Randomized, Stepwise, misclassified, partial_of
from fairmix_jax.attacks.verdict_state import CLEAN, ROBUST, StateFile, VerdictState
from fairmix_jax.runtime import inputs, processes
from fairmix_jax.runtime.precision import Precision
from fairmix_jax.types import ThreatModel


class Status(NamedTuple):
    """The progress of an evaluation."""

    attack: str  # the name of the one that runs
    survivors: int  # images not broken yet
    total: int  # all images
    share: float  # of this attack's images that it is done with
    seconds: float  # since this attack began
    seconds_left: float  # of all attacks, if the survivors stay what they are


def ensemble(
    logits_fn: Classifier, images: Any, labels: Any, *, threat: ThreatModel,
    attacks: Mapping[str, Stepwise], index: Any = None, candidates: Any = None,
    search: Classifier | None = None, **settings: Any,
) -> AttackReport:  # fmt: skip
    """Runs attacks one after another, each on the images that are not broken yet.

    Guarantees: the verdict on an image depends on the model, the image, its label and
    index, the threat and the seed; not on the batch size, the other images, their order,
    the devices, `early_exit` or an interruption (as far as `logits_fn` itself does not: on some
    hardware its rounding depends on the shape of the batch). Every adversarial image is in the
    ball, with the exact difference to the image, and in the bounds, and misclassified at full
    float32 precision, which no platform rounds. Programs are compiled for
    `batch_size` and a few parts of it, and for no other radius again.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`: any JAX function that treats
        examples apart, or a `Randomized` one. A `jax.tree_util.Partial` shares compiled
        programs between different weights, and its arrays may lie on any device. Where what
        another function closes over has changed, all is compiled anew.
      index, candidates, search: `0 .. N - 1`, all, and `logits_fn` itself if `None`.
      **settings: the fields of `Plan` after `search`; see there for all other arguments, too.

    A ValueError names what is wrong: images, labels, bounds and logits that do not fit each other,
    logits of an image that depend on the others of a batch, an `OtherEvaluation` in `workdir`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    inputs.check_batch(images, labels, threat)
    if not len(images):
        raise ValueError(f"images has shape {images.shape}; give at least one image")
    images, labels = np.asarray(inputs.as_single(images)), labels.astype(np.int32)
    if not isinstance(logits_fn, Randomized):
        steps = any(attack.passes(2)[1] for attack in attacks.values())
        inputs.check_model(logits_fn, images, by_gradient=steps)
    index = np.arange(len(images)) if index is None else index
    candidates = True if candidates is None else candidates
    inputs.check_whole(1, batch_size=settings.get("batch_size", 1))
    inputs.check_whole(-(2**63), seed=settings.get("seed", 0))
    if (precision := settings.get("search_precision", "default")) not in get_args(Precision):
        choices = ", ".join(get_args(Precision))
        raise ValueError(f"search_precision={precision!r} is unknown; choose one of {choices}")
    if not attacks:
        raise ValueError("attacks, or the version, name none; give at least one")
    plan = Plan(
        model=partial_of(logits_fn, images), images=images, labels=labels, threat=threat,
        attacks=attacks, index=_one_each("index", index, labels, np.int32),
        candidates=_one_each("candidates", candidates, labels, bool),
        search=partial_of(search, images) if search else None, **settings,
    )  # fmt: skip
    is_shared = plan.devices is None and jax.process_count() > 1
    own = plan.of_this_process() if is_shared else plan
    file = StateFile(own)
    if is_shared:
        report = merged(processes.from_each(lambda: _run(own, file)), len(plan.labels))
    else:
        report = _run(own, file)
    file.discard()  # not before all processes are done, should one of them be lost
    return report


def _run(plan: Plan, file: StateFile) -> AttackReport:
    """Attacks the images on the plan's devices, going on from what the file holds."""
    inputs.check_labels(plan.labels, len(plan.labels), plan.num_classes)
    state = VerdictState(plan.images, plan.attacked, 1 + len(plan.attacks))
    file.restore(state)
    for number, (name, attack) in enumerate(plan.attacks.items(), 1):
        if number < state.current:
            continue
        if number > state.current:
            state.begin(number)
        # The name's checksum, not its number, is in the key: an attack finds the same in every
        # ensemble.
        key = jax.random.fold_in(plan.key, zlib.crc32(name.encode()))
        for counts in drain(plan, attack, key, state, file):
            status = _status(plan, state, counts)
            state.note(status.survivors)
            plan.on_progress(status)
    return _report(plan, state)


def _one_each(name: str, given: Any, labels: np.ndarray, kind: type) -> np.ndarray:
    """One entry an image; a scalar is that of all."""
    rows = np.asarray(given)
    if rows.shape not in ((), labels.shape):
        raise ValueError(f"{name} has shape {rows.shape}; give {labels.shape}, one each")
    return np.broadcast_to(rows, labels.shape).astype(kind)


def _status(plan: Plan, state: VerdictState, counts: Counts) -> Status:
    number, attacks = int(state.current), list(plan.attacks.values())
    name, attack = list(plan.attacks.items())[number - 1]

    def cost(attack: Stepwise) -> float:
        forward, gradient = attack.passes(plan.num_classes)
        return forward + 3 * gradient  # a gradient pass takes as long as three

    def work(attack: Stepwise) -> float:
        return attack.num_runs(plan.num_classes) * attack.num_steps * cost(attack)

    unfinished = int(np.sum(counts.taken + counts.waiting))
    concerned = int(np.sum((state.broken_by == ROBUST) | (state.broken_by == number)))
    survivors = int(np.sum(state.robust)) - int(np.sum(counts.broken))
    spent = cost(attack) * (np.sum(state.steps[number]) + np.sum(counts.steps))
    left = unfinished * work(attack) - cost(attack) * np.sum(counts.open_steps)
    left += survivors * sum(map(work, attacks[number:]))
    seconds, share = float(state.seconds[number]), 1 - unfinished / max(concerned, 1)
    seconds_left = float(seconds * left / max(spent, 1))
    return Status(name, survivors, len(state.done), share, seconds, seconds_left)


def _report(plan: Plan, state: VerdictState) -> AttackReport:
    final = plan.logits_of(state.adversarial)
    passes = [(0, 0), *(attack.passes(plan.num_classes) for attack in plan.attacks.values())]
    forward, gradient = (np.asarray(column)[:, None] for column in zip(*passes, strict=True))
    is_wrong = np.asarray(misclassified(jnp.asarray(final), jnp.asarray(plan.labels)))
    return AttackReport(
        robust=state.robust, adversarial=state.adversarial, broken_by=state.broken_by,
        attacks=("clean", *plan.attacks), labels=plan.labels,
        predictions=np.argmax(final, axis=1).astype(np.int32),
        non_finite=np.any(~np.isfinite(np.hstack([plan.logits, final])), axis=1),
        unconfirmed=int(np.sum((state.broken_by > CLEAN) & ~is_wrong)),
        forward_passes=state.steps * forward, gradient_passes=state.steps * gradient,
        seconds=tuple(state.seconds.tolist()), compile_seconds=float(state.compile_seconds),
        curve=state.curve, num_classes=plan.num_classes, notes=(),
    )  # fmt: skip
