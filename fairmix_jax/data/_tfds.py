"""Any TFDS image classification set, read without TensorFlow."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fairmix_jax.data import Dataset, Split, balanced_rows
from fairmix_jax.errors import UsageError


def load(name: str, directory: str, *, num_train: int = 0) -> Dataset:
    """Returns the train and test splits of a prepared TFDS data set.

    Examples are ordered by their `id` feature where there is one, else as stored.

    Args:
      name: as in TFDS, e.g. `"fashion_mnist"` or `"cifar10:3.0.2"`.
      directory: TFDS's data directory; empty means `TFDS_DATA_DIR`, else TFDS's default.
      num_train: see `balanced_rows`; only these training images are decoded.

    Raises:
      UsageError: unknown name, missing directory, data not prepared there, or features that
        are not one image of a fixed size and one label.
    """
    import tensorflow_datasets as tfds

    root = Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser()
    if not root.is_dir():
        raise UsageError(
            f"data.dir={str(root)!r} does not exist; set data.dir or TFDS_DATA_DIR to the folder "
            f"of your TFDS data, or make one: python -m fairmix_jax.data.prepare {name}"
        )
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise UsageError(
            f"data.name={name!r} is unknown; choose digits, gaussian, a folder in {root}, or "
            "a TFDS image classification set, e.g. cifar10 or fashion_mnist"
        ) from None
    if not builder.info.splits:
        raise UsageError(
            f"data.name={name!r} is not prepared in {root}; "
            f"run python -m fairmix_jax.data.prepare {name} --data_dir={root}"
        )
    features = builder.info.features
    missing = [
        f"{kind} {key!r}"
        for kind, collection, keys in (
            ("feature", features, ("image", "label")),
            ("split", builder.info.splits, ("train", "test")),
        )
        for key in keys
        if key not in collection
    ]
    if missing:
        raise UsageError(
            f"data.name={name!r} has no {' and no '.join(missing)}; "
            "choose an image classification set with a train and a test split"
        )
    return Dataset(
        train=_read(tfds, builder, "train", num_train),
        test=_read(tfds, builder, "test", 0),
        class_names=tuple(features["label"].names),
    )


def _read(tfds, builder, split: str, number: int) -> Split:
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    records = source.__getitems__(list(range(len(source))))
    if "id" in builder.info.features:
        records = sorted(records, key=lambda record: record["id"])
    labels = np.asarray([record["label"] for record in records], np.int32)
    rows = balanced_rows(labels, number)
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda row: _decode(records[row]["image"]), rows))
    if len({image.shape for image in images}) != 1:
        raise UsageError(
            f"data.name={builder.name!r} has images of several sizes; prepare a copy with one size"
        )
    return Split(np.stack(images), labels[rows])


def _decode(encoded: bytes) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(encoded)))
    return image[..., None] if image.ndim == 2 else image
