"""Data sets as arrays: decoded once, ordered by id, held in memory.

A file with a function `make(*, ...) -> Dataset` is a data set found by its name; its
keyword arguments are config fields. Any other name is looked up in TFDS.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.errors import UsageError


class Split(NamedTuple):
    """Examples in a fixed order.

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


def load(config: Mapping[str, Any]) -> Dataset:
    """Returns the data set that a config section names.

    Args:
      config: `name`, `dir` (where TFDS keeps its data; empty means `TFDS_DATA_DIR`, else
        TFDS's own default), `num_train` (see `balanced_rows`; of the training set) and the
        fields of the data set.

    Raises:
      UsageError: unknown name, missing directory, data not prepared, wrong kind of data.
    """
    from fairmix_jax import plugins
    from fairmix_jax.data import _tfds

    section = {k: v for k, v in config.items() if k not in COMMON_FIELDS}
    if config["name"] not in plugins.names("data"):
        return _tfds.load(config["name"], config["dir"], num_train=config["num_train"])
    dataset = plugins.load("data", config["name"])(**plugins.arguments("data", section))
    rows = balanced_rows(dataset.train.labels, config["num_train"])
    return dataset._replace(train=dataset.train.take(rows))


COMMON_FIELDS = ("dir", "val_fraction", "num_train", "crop_padding", "flip")
"""Fields of `config.data` that every data set has."""


def stratified_split(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows to train on and rows to validate on, disjoint and together all rows.

    Of every class `round(fraction * its size)` rows are drawn for validation, the same
    ones in every run, whatever the seed.

    Args:
      labels: `[N]` int.
      fraction: in `[0, 1)`.

    Returns: two sorted int arrays.
    """
    rng = np.random.default_rng(0)
    held_out = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held_out.append(rng.permutation(rows)[: round(fraction * len(rows))])
    validation = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def balanced_rows(labels: np.ndarray, number: int) -> np.ndarray:
    """Returns about `number` rows, the first `number / K` of each class; all rows if 0.

    Raises:
      UsageError: `number` is neither 0 nor at least the number of classes.
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
