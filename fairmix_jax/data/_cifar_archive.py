"""The original CIFAR archives, read without running anything they contain."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.data import _pickle
from fairmix_jax.runtime.errors import UsageError, refused


class _Kind(NamedTuple):
    prefix: str  # of our arrays
    name: str  # of this kind of label in the python version
    size: int  # the number of classes
    names: str  # their file in the binary version


class _Layout(NamedTuple):
    files: dict[str, list[str]]  # each split's data files in order; the binary ones have `.bin`
    names: str  # the file of class names in the python version
    kinds: list[_Kind]  # in the order of the binary's bytes


_LAYOUTS = {
    "cifar10": _Layout(
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        "batches.meta", [_Kind("", "label", 10, "batches.meta.txt")],
    ),
    "cifar100": _Layout({"train": ["train"], "test": ["test"]}, "meta", [
        _Kind("coarse_", "coarse_label", 20, "coarse_label_names.txt"),
        _Kind("", "fine_label", 100, "fine_label_names.txt"),
    ]),
}  # fmt: skip
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_MOST_BYTES, _MOST_MEMBERS = 1 << 29, 10_000  # three times what is in CIFAR's archives; 8 files


def read(name: str, source: Path) -> dict[str, np.ndarray]:
    """Returns the content of CIFAR's original archive, python or binary version.

    `source` is the archive, or a folder that holds what it unpacks to; missing or damaged files are
    a `UsageError`, and so are copies that differ. Nothing that a pickle asks for is made.

    Returns: `class_names` `[K]`, and of both splits `train_images` `[N, 32, 32, 3]` uint8 and
      `train_labels` `[N]` int32, in the archive's order; of CIFAR-100 `coarse_class_names`,
      `train_coarse_labels` and `test_coarse_labels`, too.
    """
    layout = _LAYOUTS[name]
    stems = [stem for split in layout.files.values() for stem in split]
    python = [layout.names, *stems]
    binary = [*(f"{stem}.bin" for stem in stems), *(kind.names for kind in layout.kinds)]
    files = _contents(source, {*python, *binary})
    is_python = files.keys() >= set(python[:2])
    if not is_python and binary[0] not in files:
        raise UsageError(
            f"--source={str(source)!r} holds neither {stems[0]} and {layout.names} nor "
            f"{binary[0]}, so it is no {name} archive; give another"
        )
    if missing := [file for file in (python if is_python else binary) if file not in files]:
        raise UsageError(f"--source={str(source)!r} lacks {', '.join(missing)}; get a whole copy")
    with refused(f"{layout.names} is damaged", "get another copy"):
        if is_python:
            found = _pickle.parsed(files[layout.names])
        else:
            found = {f"{kind.name}_names": files[kind.names].split() for kind in layout.kinds}
        arrays = {f"{kind.prefix}class_names": _names(found, kind) for kind in layout.kinds}
    for split, own in layout.files.items():
        batches = []
        for stem in own:
            with refused(f"{stem} is damaged", "get another copy"):
                content = files[stem if is_python else f"{stem}.bin"]
                found = _pickle.parsed(content) if is_python else _records(content, layout.kinds)
                batches.append(_batch(found, layout.kinds))
        images, *labels = map(np.concatenate, zip(*batches, strict=True))
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"{split}_images"] = np.ascontiguousarray(images)
        for kind, some in zip(layout.kinds, labels, strict=True):
            arrays[f"{split}_{kind.prefix}labels"] = some
    return arrays


def _contents(source: Path, wanted: set[str]) -> dict[str, bytes]:
    """Returns the content of the wanted files of an archive or a folder, by name."""
    contents: dict[str, bytes] = {}
    what = f"--source={str(source)!r} is no readable archive"
    with refused(what, "get another copy, or unpack it and give the folder"):
        for name, content in (_in_folder if source.is_dir() else _packed)(source, wanted):
            if contents.setdefault(name, content) != content:
                raise ValueError(f"it has two files {name} that differ")
    return contents


def _in_folder(source: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    for path in (path for below in ("*", "*/*", "*/*/*") for path in source.glob(below)):
        if path.name in wanted and path.is_file():
            yield path.name, path.read_bytes()


def _packed(source: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    with source.open("rb") as file:
        start = file.read(2)
    with _OPENERS.get(start, open)(source, "rb") as file:
        content = file.read(_MOST_BYTES + 1)  # to the end, where the checksum is
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 20} MiB")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|") as archive:
        for number, member in enumerate(archive):
            if number >= _MOST_MEMBERS or member.size > _MOST_BYTES:
                raise ValueError("it has more or larger files than CIFAR's archives")
            name = Path(member.name).name
            if member.isfile() and name in wanted and (packed := archive.extractfile(member)):
                yield name, packed.read()


def _records(content: bytes, kinds: list[_Kind]) -> dict[str, Any]:
    """A file of the binary version as the python version has it."""
    size = len(kinds) + 3072
    if not content or len(content) % size:
        raise ValueError(f"it has {len(content)} bytes, not a multiple of {size}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = {f"{kind.name}s": records[:, number] for number, kind in enumerate(kinds)}
    return {"data": records[:, len(kinds) :]} | labels


def _names(found: dict[str, Any], kind: _Kind) -> np.ndarray:
    names = [n.decode() if isinstance(n, bytes) else n for n in found[f"{kind.name}_names"]]
    if not "".join(names).isprintable() or not len({*names}) == len(names) == kind.size:
        raise ValueError(f"it has not the names of {kind.size} different classes")
    return np.array(names)


def _batch(found: dict[str, Any], kinds: list[_Kind]) -> list[np.ndarray]:
    """The images of a file and, in order of their kinds, their labels."""
    images = found["data"]
    if not isinstance(images, np.ndarray) or images.dtype != "u1" or images.shape[1:] != (3072,):
        raise ValueError("its images are not uint8 [N, 3072]")
    batch = [images]
    for kind in kinds:
        labels = [*found[f"{kind.name}s"]]
        are_labels = all(isinstance(n, int | np.integer) and 0 <= n < kind.size for n in labels)
        if len(labels) != len(images) or not are_labels:
            raise ValueError(
                f"{len(labels)} labels for {len(images)} images, or not from 0 to {kind.size - 1}"
            )
        batch.append(np.array(labels, np.int32))
    return batch
