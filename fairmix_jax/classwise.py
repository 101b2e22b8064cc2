"""Evaluation of any JAX function: what becomes of every image, class by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from fairmix_jax import (
    cluster,
    evaluate_batchwise,
    evaluate_ensemble,
    metrics,
    suite,
    verdicts,
)
from fairmix_jax.data import Split, balanced_rows, batches
from fairmix_jax.errors import UsageError
from fairmix_jax.progress import console
from fairmix_jax.types import LogitsFn, ThreatModel

_STATISTICS = ("average", "worst_class", "gap", "std")


class Settings(NamedTuple):
    """How to evaluate; all but the seed are fields of `config.evaluate`.

    Attributes:
      attacks: e.g. `"clean,pgd20,autoattack"`, see `suite.parse`.
      seed: of all attacks.
      batch_size: changes nothing but memory and time.
      step_size: of PGD, in pixel units; a quarter of the radius if `None`.
      num_restarts: of PGD, FGSM and MI-FGSM.
      radii: rising factors of the radius for the curve; empty for none.
      save_adversarial: whether AutoAttack's images are kept.
      masking: whether AutoAttack's number gets a verdict on masked gradients.
    """

    attacks: str = "clean,pgd20"
    seed: int = 0
    batch_size: int = 500
    step_size: float | None = None
    num_restarts: int = 1
    radii: tuple[float, ...] = ()
    save_adversarial: bool = False
    masking: bool = True


def evaluate(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str],
    threat: ThreatModel,
    settings: Settings | None = None,
    rows: np.ndarray | None = None,
    search: LogitsFn | None = None,
    directory: Path | None = None,
) -> dict[str, Any]:
    """Evaluates any JAX function class by class.

    The union counts an image as robust if it is classified correctly as it is, under every
    attack and at every iterate of PGD; it is added where there are two attacks or more, those
    of a subset apart. The curve, too, counts every iterate. An example's random numbers
    depend on the seed, the attack (of PGD and its kind the number of steps) and its row only.
    Of several processes all call this; each attacks its share of the images, all return the
    whole, and the main one writes.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`; must not couple examples. Weights
        given as `jax.tree_util.Partial(apply, weights)` stay out of the compiled programs.
      images: `[N, H, W, C]`, uint8, or float inside the bounds.
      labels: `[N]` int.
      class_names: `K` names.
      threat: norm, radius, bounds.
      settings: how; the defaults if `None`.
      rows: `[N]` positions in the test set, `0 .. N - 1` if `None`.
      search: a cheaper model for AutoAttack to search with.
      directory: where `attacks/NAME/verdicts.npz` (of each image: row, label, robust,
        prediction, confidence, which is NaN of AutoAttack) and `examples.npz` go, and where
        AutoAttack keeps its state.

    Returns: the fields `classes`, `threat`, `attacks`, `settings`, `images_sha256` and, with
    radii, `curve` of `evaluation.json`.

    Raises:
      UsageError: an attack is unknown; images, labels, bounds, classes or logits do not fit
        each other; the radii do not rise.
    """
    settings = settings or Settings()
    chosen = suite.parse(settings.attacks)
    split = Split(np.asarray(images), np.asarray(labels, np.int32))
    model = logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)
    _require(split, class_names, threat, settings)
    _require_logits(model, split, class_names)
    searcher = search if search is None or isinstance(search, Partial) else Partial(search)
    one = _Evaluator(
        model, searcher, split, np.arange(len(split.labels)) if rows is None else rows,
        tuple(class_names), threat, settings, directory,
    )  # fmt: skip
    results, robust = {}, []
    for named in chosen:
        results[named.name], withstood = one.of_subset(named.num_examples).attack(named)
        robust += [] if named.num_examples else withstood
        _tell(named.name, results[named.name])
    whole = [named for named in chosen if not named.num_examples]
    if sum(named.kind != "clean" for named in whole) > 1:
        if all(named.kind != "clean" for named in whole):
            robust.append(one.clean())
        results[suite.UNION] = one.result(np.logical_and.reduce(robust), seconds=0.0)
        results[suite.UNION]["members"] = [named.name for named in whole]
    found = {
        "classes": list(class_names),
        "threat": {"norm": threat.norm, "epsilon": threat.epsilon},
        "attacks": results,
        "images_sha256": verdicts.fingerprint(split.labels, batches.as_float(split.images)),
        "settings": settings._asdict(),
    }
    return found | ({"curve": one.curve(whole)} if settings.radii else {})


class _Evaluator(NamedTuple):
    """What all attacks of an evaluation share."""

    logits_fn: Partial
    search: Partial | None
    split: Split
    rows: np.ndarray
    class_names: tuple[str, ...]
    threat: ThreatModel
    settings: Settings
    directory: Path | None

    @property
    def steps(self) -> evaluate_batchwise.Steps:
        given = self.settings
        step_size = self.threat.epsilon / 4 if given.step_size is None else given.step_size
        return evaluate_batchwise.Steps(
            self.threat, step_size, given.num_restarts, given.seed, given.batch_size, self.rows
        )

    def of_subset(self, num_examples: int) -> "_Evaluator":
        """The same for a class-balanced subset of the images; for all if 0."""
        if not num_examples:
            return self
        chosen = balanced_rows(self.split.labels, num_examples)
        return self._replace(split=self.split.take(chosen), rows=self.rows[chosen])

    def clean(self) -> np.ndarray:
        """Which images are classified correctly as they are."""
        named = suite.Named("clean", "clean")
        judged = evaluate_batchwise.judge(named, self.logits_fn, self.split, self.steps, [])
        return judged.verdicts.correct

    def result(self, correct: np.ndarray, *, seconds: float) -> dict[str, Any]:
        labels, number = self.split.labels, len(self.class_names)
        counts = verdicts.class_counts(labels, correct, number)
        found = metrics.result(*counts, self.class_names, seconds=seconds)
        return found | {"verdicts": verdicts.pack(labels, correct, number)}

    def attack(self, named: suite.Named) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The result of an attack, and which images withstood it, once or for more iterates."""
        number, labels = len(self.class_names), self.split.labels
        examples = [] if named.kind == "clean" else verdicts.example_rows(labels).tolist()
        if named.kind == "ensemble":
            return self._ensemble(named, examples)
        found = evaluate_batchwise.judge(named, self.logits_fn, self.split, self.steps, examples)
        result = self.result(found.verdicts.correct, seconds=found.seconds)
        result |= verdicts.details(labels, found.verdicts, number)
        self._keep(named, found.verdicts, found.adversarial, examples)
        withstood = [found.verdicts.correct]
        if found.any_iterate is not None:
            withstood.append(found.any_iterate.correct)
            counts = verdicts.class_counts(labels, withstood[-1], number)
            summary = metrics.summarize(*counts)
            worst = self.class_names[int(summary["worst_class_index"])]
            result["any_iterate"] = {
                "class_correct": counts[1].tolist(), "worst_class_name": worst,
                **{name: summary[name] for name in _STATISTICS},
            }  # fmt: skip
        return result, withstood

    def _ensemble(self, named: suite.Named, examples: list[int]):
        settings, place = self.settings, self._place(named)
        options = evaluate_ensemble.Options(
            self.threat, self.rows, place, settings.seed, settings.batch_size, settings.masking
        )
        report, facts = evaluate_ensemble.judge(
            named, self.logits_fn, self.split, options, self.search
        )
        unknown = np.full(len(self.rows), np.nan, np.float32)
        told = verdicts.Verdicts(report.predictions, unknown, report.robust)
        extra = {"adversarial": report.adversarial} if settings.save_adversarial else {}
        self._keep(
            named, told, report.adversarial[examples], examples, broken_by=report.broken_by,
            attacks=np.asarray(report.attacks), non_finite=report.non_finite, **extra,
        )  # fmt: skip
        result = self.result(report.robust, seconds=sum(report.seconds))
        return result | facts, [report.robust]

    def curve(self, chosen: Sequence[suite.Named]) -> dict[str, Any]:
        """Class counts over the radius, under the PGD with the most steps, else PGD-20."""
        named = max(
            (n for n in chosen if n.kind == "pgd"), key=lambda n: n.num_steps,
            default=suite.Named("pgd20", "pgd", 20),
        )  # fmt: skip
        radii = (0.0, *self.settings.radii)
        robust = evaluate_batchwise.radius_curve(
            named, self.logits_fn, self.split, self.steps, radii
        )
        labels, number = self.split.labels, len(self.class_names)
        counts = [verdicts.class_counts(labels, row, number) for row in robust]
        return {
            "attack": named.name,
            "epsilon": [radius * self.threat.epsilon for radius in radii],
            "class_total": counts[0][0].tolist(),
            "class_correct": [correct.tolist() for _, correct in counts],
        }

    def _keep(
        self, named: suite.Named, found: verdicts.Verdicts, adversarial: np.ndarray,
        examples: list[int], **extra: Any,
    ) -> None:  # fmt: skip
        place, labels = self._place(named), self.split.labels
        if place is None or not cluster.is_main():
            return
        verdicts.save(
            place / "verdicts.npz", row=self.rows, label=labels, robust=found.correct,
            prediction=found.prediction, confidence=found.confidence, **extra,
        )  # fmt: skip
        if examples:
            verdicts.save(
                place / "examples.npz", row=self.rows[examples], label=labels[examples],
                image=batches.as_float(self.split.images[examples]), adversarial=adversarial,
                prediction=found.prediction[examples],
            )  # fmt: skip

    def _place(self, named: suite.Named) -> Path | None:
        return self.directory and self.directory / "attacks" / named.name


def _require(
    split: Split, class_names: Sequence[str], threat: ThreatModel, settings: Settings
) -> None:
    images, labels = split
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise UsageError(
            f"images of shape {images.shape} and labels of shape {labels.shape} do not fit; "
            "give [N, H, W, C] and [N], N at least 1"
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise UsageError(
            f"labels lie in [{labels.min()}, {labels.max()}], but class_names has "
            f"{len(class_names)} names; give one name a class"
        )
    low, high = threat.bounds
    if images.dtype != np.uint8 and not (
        np.issubdtype(images.dtype, np.floating) and low <= images.min() <= images.max() <= high
    ):
        raise UsageError(
            f"images are {images.dtype} in [{images.min()}, {images.max()}], threat.bounds are "
            f"{threat.bounds}; give uint8, or floats inside the bounds"
        )
    if list(settings.radii) != sorted(set(settings.radii)) or min(settings.radii, default=1) <= 0:
        raise UsageError(f"radii={tuple(settings.radii)} must be positive and rise")


def _require_logits(model: Partial, split: Split, class_names: Sequence[str]) -> None:
    one = jax.ShapeDtypeStruct((1, *split.images.shape[1:]), np.float32)
    shape = jax.eval_shape(model, one).shape
    if shape != (1, len(class_names)):
        raise UsageError(
            f"logits_fn maps one image to shape {shape}, but class_names has {len(class_names)} "
            f"names; it must give (1, {len(class_names)})"
        )


def _tell(name: str, result: dict[str, Any]) -> None:
    console.print(
        f"{name}: average {result['average']:.1%}, worst class {result['worst_class']:.1%} "
        f"({result['worst_class_name']}), {sum(result['class_total']):,} test images in "
        f"{result['seconds']:.1f} s"
    )
