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


class _Layout(NamedTuple):
    files: dict[str, list[str]]  # each split's data files in order; the binary ones have `.bin`
    kinds: dict[str, str]  # prefix of our arrays -> label kind; the order of the binary's bytes
    sizes: list[int]  # the number of classes of each kind
    names: str  # the file of class names in the python version
    binary_names: list[str]  # those of the binary version, one for each kind


_LAYOUTS = {
    "cifar10": _Layout(
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        {"": "label"}, [10], "batches.meta", ["batches.meta.txt"],
    ),
    "cifar100": _Layout(
        {"train": ["train"], "test": ["test"]}, {"coarse_": "coarse_label", "": "fine_label"},
        [20, 100], "meta", ["coarse_label_names.txt", "fine_label_names.txt"],
    ),
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
    binary = [*(f"{stem}.bin" for stem in stems), *layout.binary_names]
    files = _contents(source, {*python, *binary})
    is_python = files.keys() >= set(python[:2])
    if not is_python and binary[0] not in files:
        raise UsageError(
            f"--source={str(source)!r} holds neither {stems[0]} and {layout.names} nor "
            f"{binary[0]}, so it is no {name} archive; give another"
        )
    if missing := [file for file in (python if is_python else binary) if file not in files]:
        raise UsageError(f"--source={str(source)!r} lacks {', '.join(missing)}; get a whole copy")
    kinds, parts = layout.kinds.values(), {}
    with refused(f"{layout.names} is damaged", "get another copy"):
        found = _pickle.parsed(files[layout.names]) if is_python else {
            f"{kind}_names": files[file].split()
            for kind, file in zip(kinds, layout.binary_names, strict=True)
        }  # fmt: skip
        names = [_names(found[f"{k}_names"], n) for k, n in zip(kinds, layout.sizes, strict=True)]
    for stem in stems:
        with refused(f"{stem} is damaged", "get another copy"):
            content = files[stem if is_python else f"{stem}.bin"]
            found = _pickle.parsed(content) if is_python else _records(content, [*kinds])
            parts[stem] = _batch(found, layout)
    arrays = {
        f"{p}class_names": np.array(some) for p, some in zip(layout.kinds, names, strict=True)
    }
    for split, own in layout.files.items():
        columns = zip(*(parts[stem] for stem in own), strict=True)
        images, *labels = (np.concatenate(column) for column in columns)
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        arrays[f"{split}_images"] = np.ascontiguousarray(images)
        for prefix, some in zip(layout.kinds, labels, strict=True):
            arrays[f"{split}_{prefix}labels"] = some
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


def _records(content: bytes, kinds: list[str]) -> dict[str, Any]:
    """A file of the binary version as the python version has it."""
    size = len(kinds) + 3072
    if not content or len(content) % size:
        raise ValueError(f"it has {len(content)} bytes, not a multiple of {size}")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = zip(kinds, records.T, strict=False)
    return {"data": records[:, len(kinds) :]} | {f"{kind}s": column for kind, column in labels}


def _names(found: Any, number: int) -> list[str]:
    names = [name.decode() if isinstance(name, bytes) else name for name in found]
    if not "".join(names).isprintable() or not len({*names}) == len(names) == number:
        raise ValueError(f"it has not the names of {number} different classes")
    return names


def _batch(found: dict[str, Any], layout: _Layout) -> list[np.ndarray]:
    """The images of a file and, in order of their kinds, their labels."""
    images = found["data"]
    if not isinstance(images, np.ndarray) or images.dtype != "u1" or images.shape[1:] != (3072,):
        raise ValueError("its images are not uint8 [N, 3072]")
    batch = [images]
    for kind, size in zip(layout.kinds.values(), layout.sizes, strict=True):
        labels = [*found[f"{kind}s"]]
        are_labels = all(isinstance(n, int | np.integer) and 0 <= n < size for n in labels)
        if len(labels) != len(images) or not are_labels:
            raise ValueError(
                f"{len(labels)} labels for {len(images)} images, or not from 0 to {size - 1}"
            )
        batch.append(np.array(labels, np.int32))
    return batch
