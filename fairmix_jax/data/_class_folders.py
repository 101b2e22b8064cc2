"""Folders `train/CLASS/*` and `test/CLASS/*` of images, read as a viewer shows them."""

import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fairmix_jax.runtime.errors import UsageError, refused

_SPLITS = ("train", "test")
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"}
_NO_IMAGES = frozenset(".csv .db .html .ini .json .log .md .tsv .txt .xml .yaml .yml".split())


def read(name: str, source: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """Returns arrays as `_cifar_archive.read` does, and the paths that were passed over.

    Classes and images are in the order of their names. Passed over are hidden files and folders,
    texts and tables, and what lies beside `train` and `test`; anything else that is no image of
    one size, of a class that both splits have, is a `UsageError` that names it.
    """
    if name == "cifar100":
        raise UsageError("cifar100 has coarse labels, which class folders lack; give its archive")
    ignored = sorted(path for path in source.iterdir() if path.name not in _SPLITS)
    files = {
        split: {f.name: _entries(f, ignored) for f in _entries(source / split, ignored, "folder")}
        for split in _SPLITS
    }
    classes = sorted(files["train"].keys() | files["test"].keys())
    if len(classes) < 2:
        raise UsageError(f"{source} has {len(classes)} folders train/CLASS; give two or more")
    arrays, shape = {"class_names": np.array(classes)}, None
    for split, own in files.items():
        if lacking := [label for label in classes if not own.get(label)]:
            raise UsageError(f"{source / split} lacks images of the class {lacking[0]!r}; add some")
        paths = [path for label in classes for path in own[label]]
        shape = shape or _pixels(paths[0]).shape
        images = np.empty((len(paths), *shape), np.uint8)
        for row, path in enumerate(paths):
            images[row] = _pixels(path, shape)
        arrays[f"{split}_images"] = images
        numbers = np.arange(len(classes), dtype=np.int32)
        arrays[f"{split}_labels"] = np.repeat(numbers, [len(own[label]) for label in classes])
    return arrays, ignored


def _entries(folder: Path, ignored: list[Path], what: str = "image") -> list[Path]:
    """Returns what is in a folder, by name; what is passed over goes to `ignored`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        is_image = path.suffix.lower() in Image.registered_extensions() and path.is_file()
        if path.name.startswith(".") or (path.suffix.lower() in _NO_IMAGES and path.is_file()):
            ignored.append(path)
            continue
        with refused(f"{path} is no {what} that can be used", "rename, convert or remove it"):
            if not (is_image if what == "image" else path.is_dir()) or not path.name.isprintable():
                raise ValueError("by its name or its kind")
            plain = unicodedata.normalize("NFC", path.name).strip()
            if (other := found.setdefault(plain, path)) != path:
                raise ValueError(f"it looks like {other.name!r}")
    return [*found.values()]


def _pixels(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    formats = [name for name in Image.ID if name != "EPS"]  # which Ghostscript would have to run
    with warnings.catch_warnings(), refused(f"{path} is no readable image", "mend or remove it"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=formats) as file:
            file.verify()  # the checksums of a PNG, which decoding leaves alone
        with Image.open(path, formats=formats) as file:
            if file.mode not in _MODES:
                raise ValueError(f"pixels of mode {file.mode}: save it as 8-bit grey or RGB")
            if getattr(file, "n_frames", 1) > 1 and file.format != "MPO":  # with a preview
                raise ValueError("several frames: save one")
            pixels = np.asarray(ImageOps.exif_transpose(file).convert(_MODES[file.mode]))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if shape and pixels.shape != shape:
            raise ValueError(f"shape {pixels.shape}, and the first image {shape}: resize it")
        return pixels
