"""Makes a data set from an archive or a folder of images.

    python -m fairmix_jax.data.prepare NAME [--source=PATH] [--data_dir=DIR]

`PATH` is the original CIFAR archive (python or binary version, packed or unpacked) or a
folder `train/CLASS/*.png`, `test/CLASS/*.png`. Without `--source`, CIFAR's original archive
is downloaded and checked against the checksum that TFDS records; any other name is left to
TFDS. The result is the file `DIR/NAME.npz`, images decoded, which `data.name=NAME` finds.
"""

import argparse
import hashlib
import os
import re
import urllib.request
from pathlib import Path

import numpy as np
from rich.progress import wrap_file

from fairmix_jax.data import _cifar_archive, _class_folders, _tfds, directory
from fairmix_jax.runtime import registry
from fairmix_jax.runtime.console import printable
from fairmix_jax.runtime.errors import UsageError, exits_on_usage_error, refused
from fairmix_jax.runtime.json_files import whole

_CIFAR = ("cifar10", "cifar100")
_PATIENCE = 60  # seconds that a server may be silent
_OWN_PART = f"{os.getpid()}.part"  # two processes never share a file that is not whole yet


def prepare(name: str, *, source: Path | None, data_dir: Path) -> Path:
    """Makes the data set `name` in `data_dir` and returns its file, or its folder if TFDS did.

    Pixels are those of the archive, or those that a viewer shows of an image file: turned as
    its EXIF data say, palettes resolved; what is passed over is counted on standard output. An
    existing data set is left alone. `source` is as the module says, `None` to download. Raises a
    `UsageError` if anything is amiss, and leaves nothing behind then.
    """
    if source is not None and not (source.is_file() or source.is_dir()):
        raise UsageError(
            f"--source={str(source)!r} does not exist as a file or folder; give another"
        )
    if name in registry.names("data"):
        raise UsageError(f"{name!r} is a data set of fairmix_jax itself; choose another name")
    if found := existing(name, data_dir):
        return found
    if source is None and name not in _CIFAR:
        return _leave_to_tfds(name, data_dir)
    if source is None:
        url, size, checksum = recorded_archive(name)
        source = download(url, data_dir / "downloads", size=size, checksum=checksum)
    if (source / "train").is_dir() and (source / "test").is_dir():
        with refused(f"--source={str(source)!r} cannot be read", "give a copy that you can read"):
            arrays, ignored = _class_folders.read(name, source)
        if ignored:
            print(printable(f"ignored: {len(ignored)}, e.g. {ignored[0]}"))
    elif name in _CIFAR:
        arrays = _cifar_archive.read(name, source)
    else:
        raise UsageError(
            f"--source={str(source)!r} has no folders train/CLASS and test/CLASS; "
            f"{name!r} needs them"
        )
    target = data_dir / f"{name}.npz"
    with refused(f"cannot write {target}", "give another --data_dir"):
        with whole(target, ending=_OWN_PART) as file:
            np.savez(file, allow_pickle=False, **arrays)
    return target


def existing(name: str, data_dir: Path) -> Path | None:
    """Returns where the data set is, if it is prepared so that `data.load` finds it.

    TFDS looks for the version that it knows. Raises a `UsageError` if the name could lead out of
    `data_dir`.
    """
    if not re.fullmatch(r"\w[\w.+-]{0,99}([/:]\w[\w.*+-]{0,99})*", name):
        raise UsageError(f"the name {name!r} is no data set's; use letters, digits, _, . and -")
    if (file := data_dir / f"{name}.npz").is_file():
        return file
    builder = _tfds.builder_of(name, data_dir) if (data_dir / name).is_dir() else None
    return Path(builder.data_dir) if builder and builder.info.splits else None


def recorded_archive(name: str) -> tuple[str, int, str]:
    """Returns URL, size in bytes and sha256 of CIFAR's original archive, as TFDS records them."""
    from tensorflow_datasets.image_classification import cifar

    builder = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]
    ((url, info),) = builder.url_infos.items()
    return url, int(info.size), info.checksum


def download(url: str, directory: Path, *, size: int, checksum: str) -> Path:
    """Downloads a file and returns its path; a sound earlier download is used again.

    Raises a `UsageError` if the server does not answer or falls silent for a minute, or sends
    other bytes than `checksum` (sha256) says; such a file is removed.
    """
    target = directory / url.rsplit("/", 1)[-1]
    if target.exists() and _sha256(target) == checksum:
        return target
    with (
        refused(f"cannot download {url}", "give the file with --source"),
        whole(target, ending=_OWN_PART) as file,
        urllib.request.urlopen(url, timeout=_PATIENCE) as response,
        wrap_file(response, total=size, description=target.name) as stream,
    ):
        while (chunk := stream.read(1 << 20)) and file.tell() <= size:
            file.write(chunk)
        file.flush()
        if (found := _sha256(Path(file.name))) != checksum:
            raise ValueError(f"its sha256 is {found}, not {checksum}")
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _leave_to_tfds(name: str, data_dir: Path) -> Path:
    builder = _tfds.builder_of(name, data_dir)
    if builder is None:
        raise UsageError(f"data set {name!r} is unknown to TFDS; give --source=PATH with images")
    with refused(f"TFDS cannot prepare {name!r}", "give --source=PATH"):
        builder.download_and_prepare()
    return Path(builder.data_dir)


@exits_on_usage_error("prepare")
def main(argv: list[str] | None = None) -> None:
    """The command line; exits with 2 and one line on stderr if something is amiss."""
    parser = argparse.ArgumentParser(prog="python -m fairmix_jax.data.prepare")
    parser.add_argument("name", help="data set, e.g. cifar10")
    parser.add_argument("--source", type=Path, help="archive or folder; without it, download")
    parser.add_argument("--data_dir", default="", help="default: TFDS_DATA_DIR")
    options = parser.parse_args(argv)
    name, data_dir = options.name, directory(options.data_dir)
    before = existing(name, data_dir)
    found = prepare(name, source=options.source, data_dir=data_dir)
    remark = ", already; it is left as it was, remove it to prepare it again" if before else ""
    print(printable(f"{name} is in {found}{remark}"))


if __name__ == "__main__":
    main()
