"""Any TFDS image classification set, read without TensorFlow."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fairmix_jax.data import Dataset, Split, balanced_rows, require_sound
from fairmix_jax.runtime.errors import UsageError, refused

REMEDY = "remove its folder or file and prepare it again, or choose another name"


def builder_of(name: str, root: Path) -> Any:
    """Returns TFDS's builder of a data set in a folder, or `None` if it does not know the name.

    Raises a `UsageError` if what is there of the data set is damaged.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name, re.ASCII):
        return None
    with refused(f"TFDS cannot read {name!r} in {root}", REMEDY):
        try:
            return tfds.builder(name, data_dir=root, file_format="array_record")
        except tfds.core.registered.DatasetNotFoundError:
            return None


def load(name: str, root: Path, *, num_train: int = 0) -> Dataset:
    """Returns the train and test splits of a prepared TFDS data set, e.g. `"cifar10:3.0.2"`.

    Examples are ordered by their `id` feature where there is one, else as stored. Only the
    `balanced_rows` of the training images are decoded. Raises a `UsageError` if the data are not
    there or damaged, or are not one image of a fixed size and one label.
    """
    if not root.is_dir():
        raise UsageError(
            f"data.dir={str(root)!r} does not exist; set data.dir or TFDS_DATA_DIR to the folder "
            f"of your data, or make one: python -m fairmix_jax.data.prepare {name}"
        )
    builder = builder_of(name, root)
    if builder is None:
        raise UsageError(
            f"data.name={name!r} is unknown; choose digits, gaussian, a data set in {root}, or "
            "a TFDS image classification set, e.g. cifar10 or fashion_mnist"
        )
    features, splits = builder.info.features, builder.info.splits
    if not splits:
        raise UsageError(
            f"data.name={name!r} is not prepared in {root}; "
            f"run python -m fairmix_jax.data.prepare {name} --data_dir={root}"
        )
    missing = [f"feature {key!r}" for key in ("image", "label") if key not in features]
    missing += [f"split {key!r}" for key in ("train", "test") if key not in splits]
    if missing:
        raise UsageError(
            f"data.name={name!r} has no {' and no '.join(missing)}; "
            "choose an image classification set with a train and a test split"
        )
    train, test = _split(builder, "train", num_train), _split(builder, "test", 0)
    dataset = Dataset(train, test, tuple(features["label"].names))
    require_sound(dataset)
    return dataset


def _split(builder: Any, split: str, number: int) -> Split:
    """The `balanced_rows` of a split; its files must hold as many images as the builder says."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils.lazy_imports_utils import array_record_data_source

    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    paths = [str(path) for path in builder.info.splits[split].filepaths]
    if len(stored := array_record_data_source.ArrayRecordDataSource(paths)) != len(source):
        raise ValueError(f"{len(stored)} images of {split}, not {len(source)}, as it says")
    records = source.__getitems__(list(range(len(source))))
    if "id" in builder.info.features:
        records = sorted(records, key=lambda record: record["id"])
    labels = np.asarray([record["label"] for record in records], np.int32)
    rows = balanced_rows(labels, number)
    encoded = [io.BytesIO(records[row]["image"]) for row in rows]
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda file: np.asarray(Image.open(file)), encoded))
    if len({image.shape for image in images}) != 1:
        raise UsageError(f"data.name={builder.name!r} has images of several sizes; give them one")
    stacked = np.stack(images)
    return Split(stacked[..., None] if stacked.ndim == 3 else stacked, labels[rows])
