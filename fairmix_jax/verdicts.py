"""What a model makes of every single image, clean or under an attack; NumPy, on the host."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_BINS = 15
_MAX_CONFUSION = 200
_MAX_EXAMPLES = 20


class Verdicts(NamedTuple):
    """One attack's outcome on `N` images.

    Attributes:
      prediction: `[N]` int32, the class with the largest logit.
      confidence: `[N]` float32, its softmax probability.
      correct: `[N]` bool; false where logits are not finite.
    """

    prediction: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def class_counts(labels: np.ndarray, correct: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Returns `[K]` images and `[K]` correct ones of each class."""
    return [np.bincount(rows, minlength=num_classes) for rows in (labels, labels[correct])]


def confusion(labels: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns `[K, K]` counts: row the true class, column the predicted one."""
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, prediction), 1)
    return counts


def calibration(labels: np.ndarray, verdicts: Verdicts, num_classes: int) -> dict[str, Any]:
    """Returns how far confidence and accuracy agree, as plain data.

    `class_confidence` is the mean confidence on each true class, `None` without images:
    above the class's accuracy the model is overconfident there. `ece` is the expected
    calibration error: over 15 equal bins of confidence, the mean of `|accuracy -
    confidence|` weighed by the images in the bin; `bins` has of each bin the images, the
    correct ones and the mean confidence. Images without finite logits are left out.

    Reference: Guo et al. 2017, arXiv 1706.04599.
    """
    finite = np.isfinite(verdicts.confidence)
    labels = labels[finite]
    correct, confidence = verdicts.correct[finite], verdicts.confidence[finite].astype(float)
    total = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=confidence, minlength=num_classes)
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    right = np.bincount(place, weights=correct, minlength=_BINS)
    trust = np.bincount(place, weights=confidence, minlength=_BINS)
    return {
        "ece": round(float(np.abs(right - trust).sum() / max(len(labels), 1)), 6),
        "class_confidence": [
            round(float(s / n), 6) if n else None for s, n in zip(sums, total, strict=True)
        ],
        "bins": {
            "count": count.tolist(),
            "correct": right.astype(int).tolist(),
            "confidence": np.round(trust / np.maximum(count, 1), 6).tolist(),
        },
    }


def details(labels: np.ndarray, verdicts: Verdicts, num_classes: int) -> dict[str, Any]:
    """Returns the confusion (up to 200 classes) and the calibration, as plain data."""
    found: dict[str, Any] = {"calibration": calibration(labels, verdicts, num_classes)}
    if num_classes <= _MAX_CONFUSION:
        found["confusion"] = confusion(labels, verdicts.prediction, num_classes).tolist()
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


def save(path: Path, **arrays: Any) -> None:
    """Writes a compressed `.npz` in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def example_rows(labels: np.ndarray) -> np.ndarray:
    """Returns the first image of each class, of the first twenty classes, as positions."""
    _, first = np.unique(labels, return_index=True)
    return first[:_MAX_EXAMPLES]


def fingerprint(labels: np.ndarray, images: np.ndarray) -> str:
    """Returns a sha256, equal for equal images with equal labels in the same order.

    Args:
      labels: `[N]`.
      images: `[N, H, W, C]`, float in pixel units.
    """
    digest = hashlib.sha256(np.ascontiguousarray(labels, np.int32).tobytes())
    for start in range(0, len(images), 1000):
        part = np.ascontiguousarray(images[start : start + 1000], np.float32)
        digest.update(part.tobytes())
    return digest.hexdigest()
