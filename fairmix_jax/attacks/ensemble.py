"""Several attacks one after another on the survivors: the host's part of the work."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from fairmix_jax import cluster
from fairmix_jax.attacks import pool as pools
from fairmix_jax.attacks.crew import Crew, Gauge, drain
from fairmix_jax.attacks.ledger import CLEAN, ROBUST, Journal, Ledger, digest
from fairmix_jax.attacks.report import AttackReport, merged
from fairmix_jax.attacks.stepwise import Randomized, Stepwise, misclassified, partial_of
from fairmix_jax.types import Key, LogitsFn, ThreatModel


class Status(NamedTuple):
    """How far an evaluation is.

    Attributes:
      attack: the name of the one that runs.
      survivors, total: images not broken yet, of all.
      share: of this attack's images that it is done with.
      seconds: since this attack began.
      seconds_left: of all attacks, if the survivors stay what they are.
    """

    attack: str
    survivors: int
    total: int
    share: float
    seconds: float
    seconds_left: float


def ensemble(
    logits_fn: LogitsFn | Randomized,
    images: Any,
    labels: Any,
    *,
    threat: ThreatModel,
    attacks: Mapping[str, Stepwise],
    seed: int = 0,
    batch_size: int = 256,
    index: Any = None,
    candidates: Any = None,
    search: LogitsFn | Randomized | None = None,
    early_exit: bool = True,
    compact: bool = True,
    devices: Sequence[jax.Device] | None = None,
    workdir: Path | str | None = None,
    save_seconds: float = 30.0,
    on_progress: Callable[[Status], None] = lambda status: None,
    notes: Sequence[str] = (),
) -> AttackReport:
    """Runs attacks one after another, each on the images that are not broken yet.

    Guarantees: the verdict on an image depends on the model, the image, its label and
    index, the threat and the seed; not on the batch size, the other images, their order,
    the devices, `early_exit`, `compact` or an interruption (as far as `logits_fn` itself
    does not: on some hardware its rounding depends on the shape of the batch). Every
    adversarial image is in the ball (up to float32 rounding) and in the bounds. Programs
    are compiled for `batch_size` and a few parts of it, and for no other radius again.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`: any JAX function that treats
        examples apart, or a `Randomized` one. A `jax.tree_util.Partial` shares compiled
        programs between different weights, and its arrays may lie on any device.
      images: `[N, H, W, C]` float, inside `threat.bounds`.
      labels: `[N]` int.
      threat: norm, radius, bounds.
      attacks: by name; a name is part of its attack's key.
      seed: of all randomness.
      batch_size: images under attack at a time, on each device.
      index: `[N]` int, numbers that tell the images' keys apart; `0 .. N - 1` if `None`.
      candidates: `[N]` bool, the images to attack; the others count as broken by
        `"clean"`, with what `images` has of them. All, if `None`.
      search: a cheaper version of the model (bfloat16, say) that the attacks work on; a
        success counts only if `logits_fn` misclassifies the image too.
      early_exit: whether an image leaves when it is broken; without, it stays to the end
        of the run, which may change its adversarial image, never a verdict.
      compact: whether broken images make room for others at once; without, they do so
        between batches only.
      devices: to share the work. All if `None`: of several processes, which all call this,
        each then attacks its share of the images, and all return the whole report.
      workdir: where to save the work under way, so that the same call goes on after an
        interruption, to the same result; nothing is saved if `None`. Emptied at the end.
        Several processes save apart, and go on if there are as many again.
      save_seconds: how often.
      on_progress: called now and then.
      notes: for the report.

    Raises:
      ValueError: a shape does not fit, or an image is outside of the bounds; says which.
      OtherEvaluation: `workdir` holds a different evaluation; a `ValueError` too.
    """
    images, labels = checked(images, labels, threat)
    index = _rows("index", np.arange(len(images)) if index is None else index, labels)
    candidates = _rows("candidates", True if candidates is None else candidates, labels)
    options: dict[str, Any] = dict(
        threat=threat, attacks=attacks, seed=seed, batch_size=batch_size, search=search,
        early_exit=early_exit, compact=compact, save_seconds=save_seconds,
        on_progress=on_progress, notes=notes,
    )  # fmt: skip
    given = _Given(images, labels, index, candidates)
    if devices is None and jax.process_count() > 1:
        return _together(logits_fn, given, workdir, options)
    report, journal = _run(logits_fn, given, devices=devices, workdir=workdir, **options)
    journal.discard()
    return report


class _Given(NamedTuple):
    """The images, `N` of them, and what is known of each; arguments of `ensemble`."""

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    candidates: np.ndarray


def _run(
    logits_fn: LogitsFn | Randomized,
    given: _Given,
    *,
    threat: ThreatModel,
    attacks: Mapping[str, Stepwise],
    seed: int,
    batch_size: int,
    search: LogitsFn | Randomized | None,
    early_exit: bool,
    compact: bool,
    devices: Sequence[jax.Device] | None,
    workdir: Path | str | None,
    save_seconds: float,
    on_progress: Callable[[Status], None],
    notes: Sequence[str],
) -> tuple[AttackReport, Journal]:
    """Attacks the images on devices of this process; the journal is to be discarded."""
    images, labels, index, candidates = given
    root, apply = jax.random.key(seed), partial_of(logits_fn)
    logits = _logits(apply, images, index, root, batch_size)
    _check_labels(labels, logits.shape[1])
    is_clean = ~np.asarray(misclassified(jnp.asarray(logits), jnp.asarray(labels)))
    ledger = Ledger(images, is_clean & candidates, 1 + len(attacks))
    mesh = Mesh(np.asarray(jax.local_devices() if devices is None else devices), "device")
    everywhere = NamedSharding(mesh, PartitionSpec())
    attacked = partial_of(search) if search else apply
    crew = Crew(
        apply=jax.device_put(attacked, everywhere),
        confirm=jax.device_put(apply, everywhere) if search else None,
        images=images,
        labels=labels,
        rivals=np.asarray(pools.rivals(jnp.asarray(logits), jnp.asarray(labels))),
        index=index.astype(np.int32),
        epsilon=threat.epsilon,
        mesh=mesh,
        batch_size=batch_size,
        early_exit=early_exit,
        compact=compact,
    )
    predictions = digest(np.argmax(logits, axis=1), ledger.robust, *jax.tree.leaves(apply))
    facts = _facts(crew, threat, seed, attacks) | {"predictions": predictions}
    journal = Journal(workdir, facts, save_seconds)

    def on_chunk(gauge: Gauge) -> None:
        status = _status(gauge, attacks, ledger, logits.shape[1])
        ledger.note(status.survivors)
        on_progress(status)

    under_way = journal.restore(ledger)
    for number, (name, attack) in enumerate(attacks.items(), 1):
        if number < ledger.current:
            continue
        if number > ledger.current:
            ledger.begin(number)
        key = jax.random.fold_in(root, zlib.crc32(name.encode()))
        drain(crew, attack, key, ledger, journal, under_way=under_way, on_chunk=on_chunk)
        under_way = None
    final = _logits(apply, ledger.adversarial, index, root, batch_size)
    return _report(ledger, attacks, labels, logits, final, threat, notes), journal


def _together(
    logits_fn: Any, given: _Given, workdir: Path | str | None, options: Mapping[str, Any]
) -> AttackReport:
    """Each process attacks its share on its own devices; returns the whole report in all."""
    number = len(given.labels)
    mine = cluster.share(number)
    rows = mine if len(mine) else np.zeros(1, int)
    if workdir is not None:
        workdir = Path(workdir) / f"process-{jax.process_index()}-of-{jax.process_count()}"
    journals = []

    def own() -> AttackReport:
        part = _Given(*(array[rows] for array in given))
        local: dict[str, Any] = dict(devices=jax.local_devices(), workdir=workdir)
        report, journal = _run(logits_fn, part, **local, **options)
        journals.append(journal)
        return report

    reports = cluster.from_each(own)
    for journal in journals:  # not before all are done, should one of them be lost
        journal.discard()
    return merged(reports, number)


def _rows(name: str, given: Any, labels: np.ndarray) -> np.ndarray:
    """One entry an image; a scalar is that of all."""
    rows = np.asarray(given)
    if rows.shape not in ((), labels.shape):
        raise ValueError(f"{name} has shape {rows.shape}; give {labels.shape}, one each")
    return np.broadcast_to(rows, labels.shape)


def _check_labels(labels: np.ndarray, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels range over [{labels.min()}, {labels.max()}]; logits_fn has "
            f"{num_classes} classes, from 0"
        )


def _facts(
    crew: Crew, threat: ThreatModel, seed: int, attacks: Mapping[str, Stepwise]
) -> dict[str, Any]:
    """What tells an evaluation from another, besides the model itself."""
    num_classes = crew.rivals.shape[1] + 1
    return {
        "threat": str(threat),
        "seed": seed,
        "search": digest(*jax.tree.leaves(crew.apply)) if crew.confirm else None,
        "early_exit": crew.early_exit,
        "attacks": [
            [name, attack.num_steps, attack.num_runs(num_classes)]
            for name, attack in attacks.items()
        ],
        "images": digest(crew.images, crew.labels, crew.index),
    }


def checked(images: Any, labels: Any, threat: ThreatModel) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels as arrays.

    Raises:
      ValueError: type, shape or range is wrong; says which.
    """
    images, labels = np.asarray(images), np.asarray(labels, np.int32)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images has shape {images.shape}; give [N, H, W, C] with N >= 1")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images has type {images.dtype}; give floats, e.g. images / 255")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels has shape {labels.shape}; give {images.shape[:1]}, one each")
    low, high = threat.bounds
    if not (images.min() >= low and images.max() <= high):
        raise ValueError(
            f"images range over [{images.min()}, {images.max()}]; give values inside "
            f"threat.bounds={threat.bounds}, with any normalisation inside logits_fn"
        )
    return images, labels


predict = jax.jit(pools.clean_logits)


def batches(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields rows `0 .. count - 1` in pieces of one size, the last row repeated at the end."""
    size = min(batch_size, count)
    for first in range(0, count, size):
        yield np.minimum(np.arange(first, first + size), count - 1)


def _logits(apply: Partial, images: np.ndarray, index: np.ndarray, key: Key, batch_size: int):
    """`[N, K]`, in batches of one shape."""
    parts = [
        np.asarray(predict(apply, images[rows], index[rows], key))
        for rows in batches(len(images), batch_size)
    ]
    return np.concatenate(parts)[: len(images)]


def _cost(attack: Stepwise, num_classes: int) -> float:
    """Of a step, in forward passes, a gradient pass counted as three."""
    forward, gradient = attack.passes(num_classes)
    return forward + 3 * gradient


def _status(
    gauge: Gauge, attacks: Mapping[str, Stepwise], ledger: Ledger, num_classes: int
) -> Status:
    number = int(ledger.current)
    names, members = list(attacks), list(attacks.values())
    attack = members[number - 1]

    def work(attack: Stepwise) -> float:
        return attack.num_runs(num_classes) * attack.num_steps * _cost(attack, num_classes)

    unfinished = int(np.sum(gauge.taken + gauge.waiting))
    concerned = int(np.sum((ledger.broken_by == ROBUST) | (ledger.broken_by == number)))
    survivors = int(np.sum(ledger.robust)) - int(np.sum(gauge.broken))
    cost = _cost(attack, num_classes)
    spent = cost * (np.sum(ledger.steps[number]) + np.sum(gauge.steps))
    left = unfinished * work(attack) - cost * np.sum(gauge.open_steps)
    left += survivors * sum(work(later) for later in members[number:])
    seconds = float(ledger.seconds[number])
    return Status(
        attack=names[number - 1],
        survivors=survivors,
        total=len(ledger.done),
        share=1 - unfinished / max(concerned, 1),
        seconds=seconds,
        seconds_left=float(seconds * left / max(spent, 1)),
    )


def _report(ledger, attacks, labels, logits, final, threat, notes) -> AttackReport:
    num_classes = logits.shape[1]
    passes = [(0, 0), *(attack.passes(num_classes) for attack in attacks.values())]
    forward, gradient = (np.asarray(column)[:, None] for column in zip(*passes, strict=True))
    is_wrong = np.asarray(misclassified(jnp.asarray(final), jnp.asarray(labels)))
    is_finite = np.isfinite(logits).all(axis=1) & np.isfinite(final).all(axis=1)
    return AttackReport(
        robust=ledger.robust,
        adversarial=ledger.adversarial,
        broken_by=ledger.broken_by,
        attacks=("clean", *attacks),
        labels=labels,
        predictions=np.argmax(final, axis=1).astype(np.int32),
        non_finite=~is_finite,
        unconfirmed=int(np.sum((ledger.broken_by > CLEAN) & ~is_wrong)),
        forward_passes=ledger.steps * forward,
        gradient_passes=ledger.steps * gradient,
        seconds=tuple(ledger.seconds.tolist()),
        compile_seconds=float(ledger.compile_seconds),
        curve=ledger.curve,
        num_classes=num_classes,
        threat=threat,
        notes=tuple(notes),
    )
