"""The model and images under evaluation, the settings, and the outcome of an attack."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from fairmix_jax.classwise.image_verdicts import Verdicts
from fairmix_jax.data import Split, balanced_rows, batches
from fairmix_jax.runtime import inputs
from fairmix_jax.runtime.declared import declared
from fairmix_jax.runtime.precision import Precision
from fairmix_jax.types import Amount, Array, Count, LogitsFn, Positive, ThreatModel

_MAX_EXAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of an evaluation.

    All are fields of `config.evaluate` but `seed`, which all attacks share.
    """

    attacks: str = declared("clean,pgd20", "attacks, with commas; see docs/evaluate-your-model.md")
    seed: int = 0
    batch_size: Count = declared(512, "number of images at a time; changes only memory and time")
    step_size: Amount | None = declared(
        None, "size of a step of PGD, where pixels are 0 to 1; a quarter of the radius unless given"
    )
    num_restarts: Count = declared(1, "number of random starts of PGD, FGSM and MI-FGSM")
    radii: tuple[Positive, ...] = declared(
        (), "multiples of attack.epsilon at which to measure accuracy, for a curve", rises=True
    )
    search_precision: Precision = declared(
        "default", "precision of float32 products in attacks on GPU and TPU; verdicts have highest"
    )
    save_adversarial: bool = declared(False, "whether to save AutoAttack's adversarial images")
    masking: bool = declared(True, "whether to judge AutoAttack's result for gradient masking")

    def step_size_at(self, epsilon: Array | float) -> Array | float:
        """Returns the step size of PGD at a radius, both in pixel units."""
        return epsilon / 4 if self.step_size is None else self.step_size


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and the images that it is evaluated on: what every attack is given.

    The fields are as in `evaluate`, `split` holding images and labels.
    """

    logits_fn: Partial
    split: Split
    rows: np.ndarray
    class_names: Sequence[str]
    threat: ThreatModel
    settings: Settings
    search: LogitsFn | None = None
    directory: Path | None = None

    @property
    def float_images(self) -> np.ndarray:
        """`[N, H, W, C]`, the images in pixel units."""
        return batches.as_float(self.split.images)

    @property
    def examples(self) -> list[int]:
        """Positions of the images to show: the first of each of the first twenty classes."""
        _, first = np.unique(self.split.labels, return_index=True)
        return first[:_MAX_EXAMPLES].tolist()

    def class_counts(self, correct: np.ndarray) -> list[np.ndarray]:
        """Returns `[K]` images and `[K]` correct ones of each class, from `[N]` bool."""
        labels, number = self.split.labels, len(self.class_names)
        return [np.bincount(rows, minlength=number) for rows in (labels, labels[correct])]

    def subset(self, num_examples: int) -> "Subject":
        """Returns the same with a class-balanced subset of the images; with all if 0."""
        if not num_examples:
            return self
        chosen = balanced_rows(self.split.labels, num_examples)
        return dataclasses.replace(self, split=self.split.take(chosen), rows=self.rows[chosen])

    def folder(self, attack: str) -> Path | None:
        """Returns where the files of an attack go."""
        return self.directory and self.directory / "attacks" / attack


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The outcome of an attack on the images of a subject."""

    verdicts: Verdicts  # on the images that the attack returned
    withstood: np.ndarray  # `[N]` bool, correct whenever looked at: for PGD at every iterate, too
    adversarial: np.ndarray  # `[E, H, W, C]`, attacked, at `Subject.examples`; empty without
    seconds: float  # wall time
    facts: dict[str, Any]  # more for the attack's entry of `evaluation.json`
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)  # more for `verdicts.npz`


def check(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str],
    threat: ThreatModel, *, by_gradient: bool,
) -> None:  # fmt: skip
    """Raises a `ValueError` if images, labels, bounds, classes or logits do not fit each other.

    `by_gradient` tells whether the model is also looked at for a gradient, see `check_model`.
    """
    inputs.check_labels(labels, len(np.atleast_1d(images)))
    inputs.check_whole(1, number_of_images=len(labels))
    pixels = batches.as_float(images)
    inputs.check_batch(pixels, labels, threat)
    if images.dtype == np.uint8 and threat.bounds != (0, 1):
        raise ValueError(
            f"images are uint8, which stand for [0, 1], but threat.bounds are {threat.bounds}; "
            "give floats inside the bounds"
        )
    if not (isinstance(class_names, Sequence) and all(isinstance(n, str) for n in class_names)):
        raise ValueError(f"class_names={class_names!r} are no texts; give one name a class")
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    shape = jax.eval_shape(inputs.checked_model(logits_fn, labels), one).shape
    if shape != (1, len(class_names)):
        raise ValueError(
            f"logits_fn maps one image to shape {shape}, but class_names has {len(class_names)} "
            f"names; it must give (1, {len(class_names)})"
        )
    inputs.check_model(logits_fn, pixels, by_gradient=by_gradient)
