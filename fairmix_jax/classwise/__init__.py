"""Evaluation class by class of any JAX function, and the statistics of its counts.

`evaluate` attacks images and judges what becomes of them, `attack_names` lists the attacks.
`metrics` has the statistics of class accuracies (average, worst class, gap) and their means over
seeds, `intervals` their intervals over test images, `paired` differences between methods.
`predictions` reads the statements that a study is to test.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairmix_jax.classwise import ensemble_attacks, image_verdicts, metrics, step_attacks
from fairmix_jax.classwise.attack_names import UNION, AttackChoice, parse
from fairmix_jax.classwise.subject import Judgement, Settings, Subject, check
from fairmix_jax.data import Split, batches
from fairmix_jax.runtime import declared, inputs, processes
from fairmix_jax.runtime.closures import as_partial
from fairmix_jax.runtime.console import console, printable, working
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.types import LogitsFn, ThreatModel

__all__ = ["Settings", "evaluate"]


def evaluate(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str],
    threat: ThreatModel, settings: Settings | None = None, rows: np.ndarray | None = None,
    search: LogitsFn | None = None, directory: Path | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates any JAX function class by class.

    The union counts an image as robust if it is classified correctly as it is, under every attack
    and at every iterate of PGD; it is added where there are two attacks or more, those of a subset
    apart. The curve, too, counts every iterate, and an image that is broken at one radius as broken
    at all larger ones, so it never rises; steps grow with the radius. An example's random numbers
    depend on the seed, the attack (of PGD and its kind the number of steps) and its row only. Of
    several processes all call this; each attacks its share of the images, all return the whole, and
    the main one writes.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`; must not couple examples. Weights
        given as `jax.tree_util.Partial(apply, weights)` stay out of the compiled programs; where
        those that a function closes over have changed, all is compiled anew.
      images: `[N, H, W, C]`, uint8, or float inside the threat's bounds.
      labels: `[N]` int.
      class_names: `K` names.
      settings: the defaults if `None`.
      rows: `[N]` positions in the test set, `0 .. N - 1` if `None`.
      search: a cheaper model for AutoAttack to search with.
      directory: where `attacks/NAME/verdicts.npz` (of each image: row, label, robust,
        prediction, confidence, which is NaN of AutoAttack) and `examples.npz` go, and where
        AutoAttack keeps its state.
      known: `attacks` and `curve` that an earlier call found of the same model and images, with
        settings that agree. They come first, and are not done again.

    Returns: the fields `classes`, `threat`, `attacks`, `settings`, `images_sha256` and, with
    radii or a known one, `curve` of `evaluation.json`.

    Raises:
      UsageError: an attack is unknown; images, labels, bounds, classes or logits do not fit
        each other; the radii do not rise.
    """
    settings = settings or Settings()
    declared.check(settings)
    choices = parse(settings.attacks)
    images, labels = np.asarray(images), np.asarray(labels)
    rows = np.arange(len(np.atleast_1d(labels))) if rows is None else rows
    try:
        steps = any(choice.kind not in ("clean", "ensemble") for choice in choices)
        check(logits_fn, images, labels, class_names, threat, by_gradient=steps)
        inputs.check_rows("rows", rows, len(labels))
        inputs.check_whole(-(2**63), seed=settings.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    model = as_partial(logits_fn, batches.as_float(images[:1]))
    split = Split(images, labels.astype(np.int32))
    subject = Subject(
        model, split, np.asarray(rows), class_names, threat, settings, search, directory
    )
    past = {name: of for name, of in (known or {}).get("attacks", {}).items() if name != UNION}
    choices = list(dict.fromkeys([*(parse(name)[0] for name in past), *choices]))
    results, judged = dict(past), list[tuple[AttackChoice, Subject, Judgement]]()
    for choice in (choice for choice in choices if choice.name not in past):
        attacked = subject.subset(choice.num_examples)
        judgement, results[choice.name] = _attacked(choice, attacked)
        judged.append((choice, attacked, judgement))
    whole = [choice for choice in choices if not choice.num_examples]
    if sum(choice.kind != "clean" for choice in whole) > 1:
        results[UNION] = _union(whole, subject, results)
    names = ",".join(choice.name for choice in choices)
    found = {
        "classes": list(class_names),
        "threat": {"norm": threat.norm, "epsilon": threat.epsilon},
        "attacks": results,
        "images_sha256": image_verdicts.fingerprint(split.labels, subject.float_images),
        "settings": dataclasses.asdict(settings) | ({"attacks": names} if past else {}),
    }
    if curve := _curve(whole, subject, (known or {}).get("curve")):
        found["curve"] = curve
    for each in judged:  # not before all is done, so that files and results are of one evaluation
        _save(*each)
    return found


def _attacked(choice: AttackChoice, subject: Subject) -> tuple[Judgement, dict[str, Any]]:
    """Attacks the images; tells and returns what became of them."""
    if choice.kind == "ensemble":
        judgement = ensemble_attacks.judge(choice, subject)
    else:
        with working(f"{choice.name}: {len(subject.rows):,} test images"):
            judgement = step_attacks.judge(choice, subject)
    found = _result(subject, judgement.verdicts.correct, seconds=judgement.seconds)
    found |= judgement.facts
    if choice.kind == "pgd":
        found["withstood"] = _packed(subject, judgement.withstood)
    predicted = judgement.verdicts.prediction
    is_balanced = metrics.is_balanced(found["class_total"])
    overall = "" if is_balanced else f", overall {found['overall']:.1%}"
    console.print(
        f"{choice.name}: average {found['average']:.1%}{overall}, worst class "
        f"{found['worst_class']:.1%} ({printable(found['worst_class_name'])}), "
        f"{sum(found['class_total']):,} test images in {found['seconds']:.1f} s"
    )
    if lost := metrics.non_finite(found):
        meaning = "such logits count as wrong, such a gradient moves nothing"
        console.print(f"{choice.name}: {lost} are not finite ({meaning})")
    elif choice.kind == "clean" and np.ptp(subject.split.labels) and not np.ptp(predicted):
        what = f"{printable(subject.class_names[predicted[0]])} for all {len(predicted):,} images"
        console.print(f"clean: predicts {what}; check normalisation and weights")
    return judgement, found


def _union(
    choices: Sequence[AttackChoice], subject: Subject, results: Mapping[str, Any]
) -> dict[str, Any]:
    """The result under all attacks together, and on the images as they are."""
    members = [choice.name for choice in choices]
    packed = [results[name].get("withstood", results[name]["verdicts"]) for name in members]
    withstood = [image_verdicts.unpack_rows(bits, subject.split.labels) for bits in packed]
    if all(choice.kind != "clean" for choice in choices):
        withstood.append(step_attacks.judge(AttackChoice("clean", "clean"), subject).withstood)
    return _result(subject, np.logical_and.reduce(withstood), seconds=0.0) | {"members": members}


def _result(subject: Subject, correct: np.ndarray, *, seconds: float) -> dict[str, Any]:
    found = metrics.result(*subject.class_counts(correct), subject.class_names, seconds=seconds)
    return found | {"verdicts": _packed(subject, correct)}


def _packed(subject: Subject, correct: np.ndarray) -> list[str]:
    return image_verdicts.pack(subject.split.labels, correct, len(subject.class_names))


def _curve(
    choices: Sequence[AttackChoice], subject: Subject, known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Class counts over the radius, under the PGD with the most steps, else PGD-20.

    Without radii they are those that are known, if any.
    """
    if not subject.settings.radii:
        return dict(known or {})
    pgds = [choice for choice in choices if choice.kind == "pgd"]
    strongest = max(pgds, key=lambda c: c.num_steps, default=AttackChoice("pgd20", "pgd", 20))
    radii = (0.0, *subject.settings.radii)
    epsilons = [radius * subject.threat.epsilon for radius in radii]
    if known and (known["attack"], known["epsilon"]) == (strongest.name, epsilons):
        return dict(known)
    counts = list(map(subject.class_counts, step_attacks.radius_curve(strongest, subject, radii)))
    return {
        "attack": strongest.name,
        "epsilon": epsilons,
        "class_total": counts[0][0].tolist(),
        "class_correct": [correct.tolist() for _, correct in counts],
    }


def _save(choice: AttackChoice, subject: Subject, judgement: Judgement) -> None:
    folder, verdicts, shown = subject.folder(choice.name), judgement.verdicts, subject.examples
    if folder is None or not processes.is_main():
        return
    known = {"row": subject.rows, "label": subject.split.labels, "prediction": verdicts.prediction}
    judged = {"robust": verdicts.correct, "confidence": verdicts.confidence}
    image_verdicts.save(folder / "verdicts.npz", **known, **judged, **judgement.arrays)
    if len(judgement.adversarial):
        pixels = {"image": subject.float_images[shown], "adversarial": judgement.adversarial}
        chosen = {name: array[shown] for name, array in known.items()}
        image_verdicts.save(folder / "examples.npz", **chosen, **pixels)
