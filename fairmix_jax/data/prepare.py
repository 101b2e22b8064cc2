"""Makes a TFDS data set from an archive or a folder, without TensorFlow.

    python -m fairmix_jax.data.prepare NAME [--source=PATH] [--data_dir=DIR]

`PATH` is the original CIFAR archive (python or binary version, packed or unpacked) or a
folder `train/CLASS/*.png`, `test/CLASS/*.png`. Without `--source`, CIFAR's original archive
is downloaded and checked against the checksum that TFDS records; any other name is left to
TFDS. The result loads with `tfds.data_source(NAME, data_dir=DIR)` as if TFDS had made it.
"""

import argparse
import hashlib
import io
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import wrap_file

from fairmix_jax.data import _cifar_archive
from fairmix_jax.errors import UsageError

_CIFAR = ("cifar10", "cifar100")
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}
Examples = Iterator[tuple[int, dict[str, Any]]]


def prepare(name: str, *, source: Path | None, data_dir: Path) -> Path:
    """Makes the data set `name` in `data_dir` and returns its folder.

    Images keep their bytes: arrays become PNG, which is lossless, and image files are
    stored as they are. An existing data set is left alone.

    Args:
      name: of the data set; with class folders any new name will do.
      source: see the module; `None` to download.
      data_dir: TFDS's data directory, made if needed.

    Raises:
      UsageError: `source` is not what it should be, or the download fails.
    """
    if source is None and name not in _CIFAR:
        return _leave_to_tfds(name, data_dir)
    if source is None:
        url, size, checksum = recorded_archive(name)
        source = download(url, data_dir / "downloads", size=size, checksum=checksum)
    if not source.exists():
        raise UsageError(f"--source={str(source)!r} does not exist; give an archive or a folder")
    if (source / "train").is_dir() and (source / "test").is_dir():
        builder = _from_class_folders(name, source, data_dir)
    elif name in _CIFAR:
        builder = _from_cifar(name, source, data_dir)
    else:
        raise UsageError(
            f"--source={str(source)!r} has no folders train/CLASS and test/CLASS, which "
            f"{name!r} needs"
        )
    builder.download_and_prepare()
    return Path(builder.data_dir)


def recorded_archive(name: str) -> tuple[str, int, str]:
    """Returns URL, size in bytes and sha256 of CIFAR's original archive, as TFDS records them."""
    ((url, info),) = _cifar_builder(name).url_infos.items()
    return url, int(info.size), info.checksum


def download(url: str, directory: Path, *, size: int, checksum: str) -> Path:
    """Downloads a file and returns its path; a sound earlier download is used again.

    Raises:
      UsageError: the server does not answer, or sends other bytes than `checksum` (sha256)
        says; such a file is removed.
    """
    target = directory / url.rsplit("/", 1)[-1]
    directory.mkdir(parents=True, exist_ok=True)
    if target.exists() and _sha256(target) == checksum:
        return target
    part = target.with_suffix(".part")
    try:
        with urllib.request.urlopen(url) as response, part.open("wb") as file:
            shown = wrap_file(response, total=size, description=target.name)
            with shown as stream:
                while chunk := stream.read(1 << 20):
                    file.write(chunk)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"cannot download {url} ({error}); give the file with --source") from None
    found = _sha256(part)
    if found != checksum:
        part.unlink()
        raise UsageError(f"{url} sent a file with sha256 {found}, not {checksum}; try another copy")
    part.replace(target)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cifar_builder(name: str) -> Any:
    from tensorflow_datasets.image_classification import cifar

    return {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]


def _leave_to_tfds(name: str, data_dir: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.registered.DatasetNotFoundError:
        raise UsageError(
            f"data set {name!r} is unknown to TFDS; give --source=PATH with your own images"
        ) from None
    except (OSError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"TFDS cannot prepare {name!r} ({reason}); give --source=PATH") from None
    return Path(builder.data_dir)


def _from_cifar(name: str, source: Path, data_dir: Path) -> Any:
    archive = _cifar_archive.read(name, source)

    def examples(split: str) -> Examples:
        for number, (labels, image) in enumerate(archive.splits[split]):
            yield number, {"id": f"{split}_{number:05d}", "image": _png(image), **labels}

    class Builder(_cifar_builder(name), skip_registration=True):
        def _split_generators(self, dl_manager):
            del dl_manager
            for feature, names in archive.class_names.items():
                self.info.features[feature].names = names
            return {split: examples(split) for split in archive.splits}

    Builder.name = name
    return Builder(data_dir=data_dir, file_format="array_record")


def _from_class_folders(name: str, source: Path, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds

    if name == "cifar100":
        raise UsageError("cifar100 has coarse labels, which class folders lack; give its archive")
    classes = sorted(path.name for path in (source / "train").iterdir() if path.is_dir())
    files = {split: _image_files(source / split, classes) for split in ("train", "test")}
    with Image.open(files["train"][0][0]) as first:
        shape = np.asarray(first).shape
    shape = shape if len(shape) == 3 else (*shape, 1)

    def examples(split: str) -> Examples:
        for number, (path, label) in enumerate(files[split]):
            content = path.read_bytes()
            found = np.asarray(Image.open(io.BytesIO(content))).shape
            if (found if len(found) == 3 else (*found, 1)) != shape:
                raise UsageError(f"{path} has shape {found}, the first image {shape}; resize it")
            yield number, {"id": f"{split}_{number:07d}", "image": content, "label": label}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0" if name != "cifar10" else "3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(names=classes),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: examples(split) for split in files}

        def _generate_examples(self):
            raise AssertionError("the splits carry their own generators")

    Builder.name = name
    return Builder(data_dir=data_dir, file_format="array_record")


def _image_files(folder: Path, classes: list[str]) -> list[tuple[Path, str]]:
    found = [
        (path, label)
        for label in classes
        for path in sorted((folder / label).glob("*"))
        if path.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if len({label for _, label in found}) != len(classes) or not classes:
        raise UsageError(f"{folder} lacks images of some of the classes {', '.join(classes)}")
    return found


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 2 and one line on stderr if something is amiss."""
    parser = argparse.ArgumentParser(prog="python -m fairmix_jax.data.prepare")
    parser.add_argument("name", help="data set, e.g. cifar10")
    parser.add_argument("--source", type=Path, help="archive or folder; without it, download")
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")),
        help="TFDS's data directory",
    )
    options = parser.parse_args(argv)
    try:
        folder = prepare(
            options.name, source=options.source, data_dir=options.data_dir.expanduser()
        )
    except UsageError as error:
        print(f"prepare: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{options.name} is in {folder}")


if __name__ == "__main__":
    main()
