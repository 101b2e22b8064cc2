"""The original CIFAR archives, read without running anything they contain."""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.errors import UsageError

_PIXELS = 3 * 32 * 32
Example = tuple[dict[str, int], np.ndarray]


class _Layout(NamedTuple):
    """Where a CIFAR set keeps things; the binary files have the suffix `.bin`.

    Attributes:
      files: names of the data files of each split, in order.
      labels: feature -> its key in the python version; in the binary version the labels
        are single bytes in this order.
      python_names: the python version's file of class names, and the keys in it.
      binary_names: feature -> the binary version's file of class names, one a line.
    """

    files: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    python_names: tuple[str, dict[str, str]]
    binary_names: dict[str, str]


_LAYOUTS = {
    "cifar10": _Layout(
        files={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        labels={"label": "labels"},
        python_names=("batches.meta", {"label": "label_names"}),
        binary_names={"label": "batches.meta.txt"},
    ),
    "cifar100": _Layout(
        files={"train": ("train",), "test": ("test",)},
        labels={"coarse_label": "coarse_labels", "label": "fine_labels"},
        python_names=("meta", {"coarse_label": "coarse_label_names", "label": "fine_label_names"}),
        binary_names={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    ),
}


class Archive(NamedTuple):
    """What an archive holds.

    Attributes:
      class_names: feature -> names.
      splits: split -> examples `({feature: class}, image [32, 32, 3] uint8)`, in order.
    """

    class_names: dict[str, list[str]]
    splits: dict[str, Iterator[Example]]


def read(name: str, source: Path) -> Archive:
    """Returns the content of CIFAR's original archive, python or binary version.

    The pickles of the python version are read by an unpickler that builds NumPy arrays
    and nothing else.

    Args:
      name: `"cifar10"` or `"cifar100"`.
      source: the archive, or the folder that it unpacks to.

    Raises:
      UsageError: files are missing or damaged.
    """
    layout, files = _LAYOUTS[name], _open(source)
    first = layout.files["train"][0]
    if first in files and layout.python_names[0] in files:
        reader, suffix, class_names = _read_python, "", _python_names(layout, files)
    elif f"{first}.bin" in files:
        reader, suffix, class_names = _read_binary, ".bin", _binary_names(layout, files)
    else:
        raise UsageError(
            f"--source={str(source)!r} holds neither {first} and {layout.python_names[0]} nor "
            f"{first}.bin, so it is no {name} archive"
        )
    missing = [f for names in layout.files.values() for f in names if f + suffix not in files]
    if missing:
        raise UsageError(f"--source={str(source)!r} lacks {', '.join(missing)}; get a whole copy")

    def examples(split: str) -> Iterator[Example]:
        for file in layout.files[split]:
            yield from reader(layout, file + suffix, files[file + suffix]())

    return Archive(class_names, {split: examples(split) for split in layout.files})


def _open(source: Path) -> Mapping[str, Callable[[], bytes]]:
    """File name -> a function that reads it, from an archive or a folder."""
    if source.is_dir():
        return {path.name: path.read_bytes for path in source.rglob("*") if path.is_file()}
    try:
        archive = tarfile.open(source)
        members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"--source={str(source)!r} is no readable archive: {error}") from error

    def read(member: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(member)
        return file.read() if file else b""

    return {name: partial(read, member) for name, member in members.items()}


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ARRAY_CONSTRUCTORS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the constructors of NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ARRAY_CONSTRUCTORS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def _unpickle(name: str, content: bytes) -> dict[str, Any]:
    try:
        loaded = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {k.decode() if isinstance(k, bytes) else k: v for k, v in loaded.items()}
    except Exception as error:
        raise UsageError(f"{name} is not a sound CIFAR pickle: {error}") from error


def _read_python(layout: _Layout, name: str, content: bytes) -> Iterator[Example]:
    batch = _unpickle(name, content)
    images = np.asarray(batch["data"])
    labels = {feature: batch[key] for feature, key in layout.labels.items()}
    if images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        raise UsageError(f"{name} has images {images.dtype} {images.shape}, not uint8 [N, 3072]")
    for number, image in enumerate(images):
        yield {feature: int(of[number]) for feature, of in labels.items()}, _channels_last(image)


def _read_binary(layout: _Layout, name: str, content: bytes) -> Iterator[Example]:
    size = len(layout.labels) + _PIXELS
    if not content or len(content) % size:
        raise UsageError(f"{name} has {len(content)} bytes, not a multiple of {size}: damaged")
    for record in np.frombuffer(content, np.uint8).reshape(-1, size):
        labels = {feature: int(record[number]) for number, feature in enumerate(layout.labels)}
        yield labels, _channels_last(record[len(layout.labels) :])


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))


def _python_names(layout: _Layout, files: Mapping[str, Callable[[], bytes]]):
    file, keys = layout.python_names
    meta = _unpickle(file, files[file]())
    return {feature: [_text(n) for n in meta[key]] for feature, key in keys.items()}


def _binary_names(layout: _Layout, files: Mapping[str, Callable[[], bytes]]):
    return {
        feature: files[file]().decode().split() for feature, file in layout.binary_names.items()
    }


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
