"""Data sets as arrays: decoded once, in a fixed order, held in memory.

A file with a function `make(*, ...) -> Dataset` is a data set found by its name; its
keyword arguments are config fields. Any other name is looked up in the data directory: first
as `NAME.npz`, which `fairmix_jax.data.prepare` writes, then as a data set of TFDS.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import UsageError, refused


class Split(NamedTuple):
    """Examples in a fixed order: NumPy arrays, or arrays on the device in `batches`.

    Attributes:
      images: `[N, H, W, C]` uint8, or float32 in the data set's bounds.
      labels: `[N]` int32.
    """

    images: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Split":
        """Returns the examples at `rows`, in that order."""
        return Split(self.images[rows], self.labels[rows])


class Dataset(NamedTuple):
    """A data set.

    Attributes:
      train, test: its splits.
      class_names: `K` names.
      bounds: the valid pixel range once uint8 has become float (`255 -> 1.0`).
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    bounds: tuple[float, float] = (0.0, 1.0)


COMMON_FIELDS = ("dir", "val_fraction", "num_train", "crop_padding", "flip")
"""Fields of `config.data` that every data set has."""


def load(config: Mapping[str, Any]) -> Dataset:
    """Returns the data set that a config section names.

    It has `name`, `dir` (see `directory`), `num_train` (see `balanced_rows`; of the training
    set) and the fields of the data set. Raises a `UsageError` if the name is unknown, the
    directory missing, or the data not prepared or of the wrong kind.
    """
    from fairmix_jax.data import _tfds

    name, number = config["name"], config["num_train"]
    if name in registry.names("data"):
        section = {k: v for k, v in config.items() if k not in COMMON_FIELDS}
        dataset = registry.load("data", name)(**registry.arguments("data", section))
    else:
        root = directory(config["dir"])
        with refused(f"data.name={name!r} in {root} cannot be read", _tfds.REMEDY):
            if not (file := root / f"{name}.npz").is_file():
                return _tfds.load(name, root, num_train=number)
            dataset = _from_file(file)
    return dataset._replace(train=dataset.train.take(balanced_rows(dataset.train.labels, number)))


def directory(given: str = "") -> Path:
    """Returns the data directory: the one given, else `TFDS_DATA_DIR`, else TFDS's default."""
    return Path(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _from_file(path: Path) -> Dataset:
    """The data set in a file of `prepare`; nothing in it is unpickled."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        train = Split(arrays["train_images"], arrays["train_labels"])
        test = Split(arrays["test_images"], arrays["test_labels"])
        dataset = Dataset(train, test, tuple(arrays["class_names"].tolist()))
    require_sound(dataset)
    return dataset


def require_sound(dataset: Dataset) -> None:
    """Raises a `ValueError` unless classes have names, and images are pixels with a label each."""
    names = dataset.class_names
    for images, labels in dataset[:2]:
        is_scaled = images.dtype == np.float32 and 0 <= images.min() <= images.max() <= 1
        are_pixels = images.ndim == 4 and (images.dtype == np.uint8 or is_scaled)
        is_like_train = images.shape[1:] == dataset.train.images.shape[1:]
        if not (are_pixels and is_like_train and labels.shape == images.shape[:1]):
            raise ValueError(f"images {images.dtype} {images.shape}, labels {labels.shape}")
        if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError("a label has no class name")
    if not (all(isinstance(n, str) for n in names) and len({*names}) == len(names) > 1):
        raise ValueError(f"class_names {names} are not two or more different texts")


def stratified_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows to train on and rows to validate on, disjoint and together all rows, sorted.

    Of every class `round(fraction * its size)` rows are drawn for validation, the same
    ones in every run, whatever the seed; `fraction` is in `[0, 1)`.
    """
    rng = np.random.default_rng(0)
    of_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    held_out = [rows[: round(fraction * len(rows))] for rows in of_class]
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def balanced_rows(labels: np.ndarray, number: int) -> np.ndarray:
    """Returns about `number` rows, the first `number / K` of each class; all rows if 0.

    Raises a `UsageError` if another `number` is below that of the classes.
    """
    if number == 0 or number >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    if number < len(classes):
        raise UsageError(
            f"a subset of {number} examples cannot hold all {len(classes)} classes; "
            "give a larger number, or 0 for all"
        )
    per_class = number // len(classes)
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in classes]))
