"""Clean accuracy and attacks of a fixed number of steps, a batch at a time."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fairmix_jax import attacks
from fairmix_jax.classwise import image_verdicts, metrics
from fairmix_jax.classwise.attack_names import AttackChoice
from fairmix_jax.classwise.image_verdicts import Verdicts
from fairmix_jax.classwise.subject import Judgement, Settings, Subject
from fairmix_jax.data import batches
from fairmix_jax.runtime import processes, sharding
from fairmix_jax.runtime.precision import at_full_precision
from fairmix_jax.types import Array, Batch, Key, ThreatModel


def judge(choice: AttackChoice, subject: Subject) -> Judgement:
    """Attacks the images with `clean`, `fgsm`, `mifgsmN` or `pgdN`.

    The facts are `calibration`, up to 200 classes `confusion`, `non_finite`, of how many images
    logits, and gradients on the way, were not finite, and, of PGD, `any_iterate`: the counts on the
    first misclassified iterate where there is one.
    """
    start = time.perf_counter()
    look = make_judge(choice, threat=subject.threat, settings=subject.settings)
    ((verdicts, *any_iterate), spoiled), adversarial = _over_batches(
        look, choice, subject, examples=[] if choice.kind == "clean" else subject.examples
    )
    seconds = time.perf_counter() - start
    facts = image_verdicts.details(subject.split.labels, verdicts, len(subject.class_names))
    lost = np.any([np.isnan(found.confidence) for found in (verdicts, *any_iterate)], axis=0)
    facts["non_finite"] = {"logits": int(lost.sum()), "gradients": int(spoiled.sum())}
    withstood = verdicts.correct
    for found in any_iterate:
        withstood = withstood & found.correct
        counts = subject.class_counts(withstood)
        summary = metrics.summarize(*counts)
        facts["any_iterate"] = {
            "class_correct": counts[1].tolist(),
            "worst_class_name": subject.class_names[int(summary["worst_class_index"])],
            **{name: summary[name] for name in (*metrics.STATISTICS, "std")},
        }
    return Judgement(verdicts, withstood, adversarial, seconds, facts)


def radius_curve(choice: AttackChoice, subject: Subject, radii: Sequence[float]) -> np.ndarray:
    """Returns `[R, N]` bool: whether each image withstands the attack at each radius and below.

    The attack is compiled once; its step size grows with the radius. `radii` are rising factors
    of `threat.epsilon`.
    """
    look = make_judge(choice, threat=subject.threat, settings=subject.settings)
    found = [_over_batches(look, choice, subject, radius=radius)[0][0] for radius in radii]
    withstood = [np.all([each.correct for each in verdicts], axis=0) for verdicts in found]
    return np.logical_and.accumulate(withstood)


def make_judge(
    choice: AttackChoice, *, threat: ThreatModel, settings: Settings
) -> Callable[..., Any]:
    """Returns a jitted `(logits_fn, batch, key, scale) -> ((verdicts, spoiled), images)`.

    `verdicts` is a tuple, of the attack's images first, then, of PGD, of any iterate; `spoiled` is
    `[B]` bool, whether a gradient was not finite. `scale` multiplies radius and step size.
    """
    common: dict[str, Any] = dict(
        threat=threat, num_restarts=settings.num_restarts, flag_non_finite=True
    )
    step_size, num_steps = settings.step_size_at(threat.epsilon), choice.num_steps
    attack = {  # FGSM and MI-FGSM have a step size of their own
        "clean": None,
        "fgsm": partial(attacks.fgsm, **common),
        "mifgsm": partial(attacks.mi_fgsm, num_steps=num_steps, **common),
        "pgd": partial(
            attacks.pgd, num_steps=num_steps, step_size=step_size, keep="both", **common
        ),
    }[choice.kind]

    def search(logits_fn: Partial, batch: Batch, key: Key, scale: Array) -> Any:
        images, labels, _, _ = batch
        if attack is None:
            return images, jnp.zeros(len(labels), bool)
        return attack(logits_fn, key, images, labels, index=batch.index, scale=scale)

    is_highest = settings.search_precision == "highest"
    attacked_by = at_full_precision(search) if is_highest else search

    @jax.jit
    def look(logits_fn: Partial, batch: Batch, key: Key, scale: Array) -> tuple[Any, Array]:
        attacked, spoiled = attacked_by(logits_fn, batch, key, scale)
        several = attacked if isinstance(attacked, tuple) else (attacked,)
        logits = map(at_full_precision(logits_fn), several)
        verdicts = tuple(_verdicts(each, batch.labels) for each in logits)
        return (verdicts, spoiled), several[0]

    return look


def _verdicts(logits: Array, labels: Array) -> Verdicts:
    prediction = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    finite = jnp.all(jnp.isfinite(logits), axis=-1)
    below = logits - jnp.max(logits, axis=-1, keepdims=True)
    confidence = jnp.max(jax.nn.softmax(jnp.maximum(below, -1e3)), axis=-1)  # exp(-1e30) may be NaN
    confidence = jnp.where(finite, confidence, jnp.nan)
    found = prediction, confidence.astype(jnp.float32), (prediction == labels) & finite
    return Verdicts._make(found)  # device arrays here, NumPy on the host


def _over_batches(
    look: Callable[..., Any], choice: AttackChoice, subject: Subject, *, radius: float = 1.0,
    examples: Sequence[int] = (),
) -> tuple[Any, np.ndarray]:  # fmt: skip
    """What `look` finds of all images, and the attacked ones at the positions `examples`.

    Of several processes each attacks its share.
    """
    settings, split = subject.settings, subject.split
    mine = processes.share(len(split.labels))
    rows = mine if len(mine) else np.zeros(1, int)  # with nothing to do, do something
    key = jax.random.fold_in(jax.random.key(settings.seed), choice.num_steps)

    def attacked() -> tuple[Any, dict[int, np.ndarray]]:
        parts, kept = [], {}
        mesh = sharding.data_mesh(jax.local_devices())
        logits_fn = sharding.on_each(mesh, subject.logits_fn)
        each = -(-settings.batch_size // (jax.process_count() * mesh.size))
        size = each * mesh.size if jax.process_count() > 1 else settings.batch_size
        for batch in batches.feed(split.take(rows), mesh).in_order(size):
            mask, positions = np.asarray(batch.mask), rows[np.asarray(batch.index)]
            index = sharding.spread(jnp.asarray(subject.rows[positions], jnp.int32), mesh)
            batch = batch._replace(index=index)
            found, images = look(logits_fn, batch, key, jnp.asarray(radius, jnp.float32))
            parts.append(jax.tree.map(lambda x, mask=mask: np.asarray(x)[mask], found))
            for number, row in enumerate(positions[mask].tolist()):
                if row in examples:
                    kept[row] = np.asarray(images[number])
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(mine)], *parts), kept

    shares = processes.from_each(attacked)
    kept = {row: image for _, images in shares for row, image in images.items()}
    images = [kept[row] for row in examples] or np.zeros((0, *split.images.shape[1:]))
    return processes.dealt([found for found, _ in shares]), np.asarray(images)
