"""A model's verdict on every single image, clean or under an attack, in NumPy on the host."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import whole

_BINS = 15
_MAX_CONFUSION = 200


class Verdicts(NamedTuple):
    """One attack's outcome on `N` images."""

    prediction: np.ndarray  # `[N]` int32, the class with the largest logit
    confidence: np.ndarray  # `[N]` float32, its softmax probability
    correct: np.ndarray  # `[N]` bool; false where logits are not finite


def details(labels: np.ndarray, verdicts: Verdicts, num_classes: int) -> dict[str, Any]:
    """Returns how far confidence and accuracy agree, and which classes are confused.

    Of `calibration`, `class_confidence` is the mean confidence on each true class, `None` without
    images: above the class's accuracy the model is overconfident there. `ece` is the expected
    calibration error: over 15 equal bins of confidence, the mean of `|accuracy - confidence|`
    weighed by the images in the bin; `bins` has of each bin the images, the correct ones and the
    mean confidence. Images without finite logits are left out. `confusion`, up to 200 classes, is
    `[K, K]` counts: a row for each true class, a column for each predicted one.

    Reference: Guo et al. 2017, arXiv 1706.04599.
    """
    finite = np.isfinite(verdicts.confidence)
    known, correct = labels[finite], verdicts.correct[finite]
    confidence = verdicts.confidence[finite].astype(float)
    total = np.bincount(known, minlength=num_classes).tolist()
    sums = np.bincount(known, weights=confidence, minlength=num_classes).tolist()
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    right = np.bincount(place, weights=correct, minlength=_BINS)
    trust = np.bincount(place, weights=confidence, minlength=_BINS)
    means = [round(s / n, 6) if n else None for s, n in zip(sums, total, strict=True)]
    bins = {"count": count.tolist(), "correct": right.astype(int).tolist()}
    bins["confidence"] = np.round(trust / np.maximum(count, 1), 6).tolist()
    ece = round(float(np.abs(right - trust).sum() / max(len(known), 1)), 6)
    found: dict[str, Any] = {"calibration": {"ece": ece, "class_confidence": means, "bins": bins}}
    if num_classes <= _MAX_CONFUSION:
        pairs = np.bincount(labels * num_classes + verdicts.prediction, minlength=num_classes**2)
        found["confusion"] = pairs.reshape(num_classes, num_classes).tolist()
    return found


def pack(labels: np.ndarray, correct: np.ndarray, num_classes: int) -> list[str]:
    """Returns `correct` as text: for each class, in the order of the images, bits in base64."""
    return [
        base64.b64encode(np.packbits(correct[labels == number]).tobytes()).decode()
        for number in range(num_classes)
    ]


def unpack(packed: Sequence[str], class_total: Sequence[int]) -> list[np.ndarray]:
    """Returns for each class `[n]` bool, the inverse of `pack`."""
    return [
        np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=total).astype(bool)
        for text, total in zip(packed, class_total, strict=True)
    ]


def unpack_rows(packed: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Returns `[N]` bool, in the order of the images, the inverse of `pack`."""
    correct = np.zeros(len(labels), bool)
    found = unpack(packed, np.bincount(labels, minlength=len(packed)).tolist())
    correct[np.argsort(labels, kind="stable")] = np.concatenate(found)
    return correct


def save(path: Path, **arrays: Any) -> None:
    """Writes a compressed `.npz` in one piece; it carries checksums of its own."""
    with whole(path) as file:
        np.savez_compressed(file, **arrays)


def load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns arrays of these names that `save` has written; `UsageError` if they are damaged."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # whatever zip, zlib and NumPy raise on damaged files
        remedy = "evaluate again with --mode=evaluate, which makes it anew, or delete it"
        raise UsageError(f"{path} is damaged ({error!r}); {remedy}") from error


def fingerprint(labels: np.ndarray, images: np.ndarray) -> str:
    """Returns a sha256, equal for equal images (float) with equal labels in the same order."""
    digest = hashlib.sha256(np.ascontiguousarray(labels, np.int32).tobytes())
    for start in range(0, len(images), 1000):
        digest.update(np.ascontiguousarray(images[start : start + 1000], np.float32).tobytes())
    return digest.hexdigest()
