"""CIFAR's archives as they were written, as they are damaged, and as they could be made to harm."""

import bz2
import gzip
import hashlib
import json
import lzma
import pickle
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cifar_archives
import numpy as np
import pytest
from cifar_archives import cpickle, packed, python_version
from conftest import ROOT

from fairmix_jax.data import _cifar_archive, _pickle, load, prepare
from fairmix_jax.runtime.errors import UsageError

FORMS = {"python 10": "cifar10", "python 100": "cifar100", "binary 10": "cifar10"}


def files_of(form):
    binary = form.startswith("binary")
    return cifar_archives.binary_version() if binary else python_version(FORMS[form])


def command(name, source, data_dir):
    return subprocess.run(
        [sys.executable, "-m", "fairmix_jax.data.prepare", name, f"--source={source}",
         f"--data_dir={data_dir}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_files_are_written_as_the_originals_were():
    """The sums of the originals' class names are those by which other libraries know them."""
    sums = {
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    }
    files = python_version("cifar10") | python_version("cifar100")
    assert {name: hashlib.md5(files[name]).hexdigest() for name in sums} == sums


def batch_of(files, file):
    return pickle.loads(files[file], encoding="bytes")  # made here


@pytest.mark.parametrize("form", FORMS)
def test_the_command_prepares_every_form_of_archive_and_it_loads(form, tmp_path):
    files, name = files_of(form), FORMS[form]
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(packed(files)))
    done = command(name, tmp_path / "c.tar.gz", tmp_path / "data")
    assert done.returncode == 0 and done.stdout.startswith(f"{name} is in "), done.stderr
    dataset = load({"name": name, "dir": str(tmp_path / "data"), "num_train": 0})
    if form == "binary 10":
        records = np.frombuffer(b"".join(files[f"data_batch_{n}.bin"] for n in range(1, 6)), "u1")
        labels, pixels = records.reshape(-1, 3073)[:, 0], records.reshape(-1, 3073)[:, 1:]
    else:
        stems = ["train"] if name == "cifar100" else [f"data_batch_{n}" for n in range(1, 6)]
        batches = [batch_of(files, stem) for stem in stems]
        key = b"fine_labels" if name == "cifar100" else b"labels"
        labels = [label for batch in batches for label in batch[key]]
        pixels = np.concatenate([batch[b"data"] for batch in batches])
    np.testing.assert_array_equal(dataset.train.labels, labels)
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.train.images, images)
    names = cifar_archives.FINE if name == "cifar100" else cifar_archives.CLASSES
    assert dataset.class_names == tuple(word.decode() for word in names)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("encoding", ["bytes", "latin-1"])
def test_a_copy_that_python_3_wrote_is_read(protocol, encoding, tmp_path):
    files = python_version("cifar10")
    again = {
        f: pickle.dumps(pickle.loads(c, encoding=encoding), protocol) for f, c in files.items()
    }
    (tmp_path / "a").write_bytes(packed(files))
    (tmp_path / "b").write_bytes(packed(again))
    found = [_cifar_archive.read("cifar10", tmp_path / file) for file in "ab"]
    for key, value in found[0].items():
        np.testing.assert_array_equal(found[1][key], value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_may_be_packed_again(pack, tmp_path):
    (tmp_path / "c").write_bytes(pack(packed(python_version("cifar10"))))
    assert _cifar_archive.read("cifar10", tmp_path / "c")["train_labels"].shape == (10,)


def refusal(source, name="cifar10"):
    with pytest.raises(UsageError) as raised:
        prepare.prepare(name, source=source, data_dir=source.parent / "data")
    assert not (source.parent / "data").exists()
    line = str(raised.value)
    assert line.isprintable() and ";" in line
    return line


WHOLE = cpickle({b"labels": np.arange(1, 17, dtype="u1"), b"data": np.zeros((2, 3072), "u1")})
OBJECTS = WHOLE.replace(b"U\x02u1", b"U\x02O8", 1).replace(b"K\x10\x85", b"K\x02\x85", 1)
"""Two labels that are Python objects; their addresses are the bytes of the file."""


class Bomb:
    def __reduce__(self):
        return print, ("this must not run",)


def batch(**fields):
    """A batch with other fields; a field that is `None` is left out."""
    whole = {"labels": [3, 8], "data": np.zeros((2, 3072), np.uint8)} | fields
    return cpickle({key.encode(): value for key, value in whole.items() if value is not None})


DEEP = b")" + b"\x85" * 200_000
WIDE = b")" + b"q\x09h\x09\x86" * 60
DATA = cpickle({b"data": np.zeros((2, 3072), np.uint8)})[:-2]
"""Tuples 200,000 deep, whose hash needs as much stack, and 2^60 wide, where it needs time."""

PICKLES = {
    "a key that is deep": (b"\x80\x02}" + DEEP + b"K\x01s.", "no text"),
    "a key among others that is deep": (b"\x80\x02}(K\x01K\x01" + DEEP + b"K\x01u.", "no text"),
    "a key that is wide": (b"\x80\x02}" + WIDE + b"K\x01s.", "no text"),
    "a label that is deep": (DATA + b"U\x06labels](K\x01" + DEEP + b"eu.", "0 to 9"),
    "a label that is wide": (DATA + b"U\x06labels](K\x01" + WIDE + b"eu.", "0 to 9"),
    "a shape that is deep": (batch().replace(b"K\x02M\x00\x0c", b"K\x02" + DEEP), "damaged"),
    "bytes that are pointers": (OBJECTS, "not uint8"),
    "another dtype": (batch().replace(b"u1", b"i1"), "not uint8"),
    "fewer bytes than its shape has": (batch().replace(b"M\x00\x0c", b"M\x01\x0c"), "damaged"),
    "a call": (pickle.dumps({b"data": Bomb()}), "print is not allowed"),
    "a call of another name": (pickle.dumps({b"data": np.float64}), "not allowed"),
    "a place of 4 GB among what is remembered": (b"\x80\x02}r\xff\xff\xff\xff.", "damaged"),
    "a byte array of 1 TB": (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".", "damaged"),
    "text of 2 GB": (b"\x80\x02T\xff\xff\xff\x7f.", "damaged"),
    "no dictionary": (cpickle([1]), "damaged"),
    "no end": (batch()[:-1], "damaged"),
    "no labels": (batch(labels=None), "labels"),
    "no pixels": (batch(data=None), "data"),
    "pixels of a grey image": (batch(data=np.zeros((2, 1024), np.uint8)), "uint8 [N, 3072]"),
    "pixels in a list": (batch(data=[[0] * 3072] * 2), "uint8 [N, 3072]"),
    "label -1": (batch(labels=[3, -1]), "0 to 9"),
    "label 99": (batch(labels=[3, 99]), "0 to 9"),
    "label 0.9": (pickle.dumps({b"labels": [3, 0.9], b"data": b""}, 2), "damaged"),
    "a label that is a list": (batch(labels=[3, [8]]), "damaged"),
    "a label too few": (batch(labels=[3]), "1 labels for 2 images"),
    "a label too many": (batch(labels=[3, 8, 1]), "3 labels for 2 images"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_forged_or_damaged_pickle_is_refused_by_its_name(what, tmp_path, capsys):
    content, reason = PICKLES[what]
    (tmp_path / "c").write_bytes(packed(python_version("cifar10") | {"data_batch_3": content}))
    line = refusal(tmp_path / "c")
    assert "data_batch_3" in line and reason in line
    assert "this must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"]" * 100_000 + b".",
        b"\x80\x02c_codecs\nencode\nX\x10\x27\0\0" + b"a" * 10_000 + b"X\x06\0\0\0latin1\x86q\x01"
        + b"c_codecs\nencode\nh\x01R" * 1000 + b".",
    ],
)  # fmt: skip
def test_a_pickle_cannot_take_more_memory_than_it_is_worth(content, tmp_path, monkeypatch):
    monkeypatch.setattr(_pickle._Reader, "left", 1 << 20)
    (tmp_path / "c").write_bytes(packed(python_version("cifar10") | {"data_batch_3": content}))
    assert "more objects" in refusal(tmp_path / "c")


def test_bytes_that_are_pointers_do_not_crash_the_command(tmp_path):
    (tmp_path / "c").write_bytes(packed(python_version("cifar10") | {"data_batch_3": OBJECTS}))
    done = command("cifar10", tmp_path / "c", tmp_path / "data")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "data_batch_3" in done.stderr


@pytest.mark.parametrize(
    "names",
    [None, [], [b"cat"] * 10, [b"c%d" % n for n in range(9)], [*cifar_archives.CLASSES, b"cow"],
     [*cifar_archives.CLASSES[1:], ((),)], [b"\xff%d" % n for n in range(10)],
     [b"a\nb%d" % n for n in range(10)], [*range(10)]],
)  # fmt: skip
def test_names_of_classes_are_ten_and_differ(names, tmp_path):
    meta = cpickle({} if names is None else {b"label_names": names})
    (tmp_path / "c").write_bytes(packed(python_version("cifar10") | {"batches.meta": meta}))
    assert "batches.meta" in refusal(tmp_path / "c")


def member(name, kind=tarfile.REGTYPE, content=b"", **fields):
    """One entry of a tar file."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def without(*names):
    return packed({k: v for k, v in python_version("cifar10").items() if k not in names})


SOUND = packed(python_version("cifar10"))
ARCHIVES = {
    "a cut archive": (lambda: gzip.compress(SOUND)[:-1000], "archive"),
    "a cut tar": (lambda: SOUND[: len(SOUND) // 2], "end of data"),
    "a wrong checksum": (lambda: gzip.compress(SOUND)[:-8] + bytes(8), "CRC"),
    "garbage behind it": (lambda: gzip.compress(SOUND) + b"garbage", "archive"),
    "no archive": (lambda: b"no archive", "archive"),
    "nothing": (lambda: b"", "archive"),
    "two copies that differ": (
        lambda: member("a/data_batch_2", content=batch()) + SOUND,
        "two files data_batch_2",
    ),
    "a link in place of a file": (
        lambda: (
            member("data_batch_2", tarfile.SYMTYPE, linkname="/etc/passwd")
            + without("data_batch_2")
        ),
        "lacks data_batch_2",
    ),
    "a hard link in place of a file": (
        lambda: (
            member("data_batch_2", tarfile.LNKTYPE, linkname="data_batch_1")
            + without("data_batch_2")
        ),
        "lacks data_batch_2",
    ),
    "a device in place of a file": (
        lambda: member("data_batch_2", tarfile.CHRTYPE) + without("data_batch_2"),
        "lacks data_batch_2",
    ),
    "a size of 3 GB": (lambda: member("data_batch_2", size=3 << 30) + SOUND, "larger"),
    "a size below zero": (lambda: member("cifar", size=-1024) + SOUND, "archive"),
    "a name of 3 GB": (lambda: member("x", tarfile.GNUTYPE_LONGNAME, size=3 << 30) + SOUND, ""),
    "many files": (lambda: b"".join(member(f"{n}") for n in range(10_001)) + SOUND, "more"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_damaged_or_forged_archive_is_refused(what, tmp_path):
    content, reason = ARCHIVES[what]
    (tmp_path / "c").write_bytes(content())
    assert reason in refusal(tmp_path / "c")


def test_a_zip_file_is_refused_with_the_way_to_read_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, content in python_version("cifar10").items():
            archive.writestr(name, content)
    assert "unpack it and give the folder" in refusal(tmp_path / "c.zip")


def test_three_gigabytes_in_three_megabytes_are_not_unpacked(tmp_path, monkeypatch):
    """A gzip file of a thousand streams, each of 3 MiB of zeros."""
    monkeypatch.setattr(_cifar_archive, "_MOST_BYTES", 32 << 20)
    header = gzip.compress(member("data_batch_1", size=3 << 30)[:512])
    (tmp_path / "c").write_bytes(header + gzip.compress(bytes(3 << 20)) * 1024)
    assert "unpacks to more than 32 MiB" in refusal(tmp_path / "c")


def test_places_that_an_archive_names_are_not_written_to(tmp_path):
    evil = tmp_path / "evil"
    files = {f"{evil}/{name}": content for name, content in python_version("cifar10").items()}
    (tmp_path / "c").write_bytes(packed(files, folder=".."))
    prepare.prepare("cifar10", source=tmp_path / "c", data_dir=tmp_path / "data")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c", "cifar10.npz", "data"]


def test_folders_that_are_linked_to_themselves_come_to_an_end(tmp_path):
    place = tmp_path / "source/cifar"
    place.mkdir(parents=True)
    for name, content in python_version("cifar10").items():
        (place / name).write_bytes(content)
    (place / "again").symlink_to("..")
    (place / "more").symlink_to("..")
    assert len(_cifar_archive.read("cifar10", tmp_path / "source")["train_labels"]) == 10
    (tmp_path / "source/data_batch_1").write_bytes(batch())
    assert "two files data_batch_1" in refusal(tmp_path / "source")


def fuzzed(start, stop, folder):
    """Runs numbers of `archive_fuzz.py` in a process; returns its counts."""
    place = folder / str(start)
    place.mkdir()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("archive_fuzz.py")), f"{start}", f"{stop}",
         str(place)],
        capture_output=True, text=True, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, f"{start} to {stop}: status {done.returncode}, {done.stderr}"
    counts, failures, _, left = json.loads(done.stdout.splitlines()[-1])
    assert not failures and left == ["archive", "data"]
    return counts


@pytest.mark.parametrize(
    "number, size", [(300, 300), pytest.param(10_000, 500, marks=pytest.mark.slow)]
)
def test_damaged_archives_are_read_right_or_refused(number, size, tmp_path):
    """No crash, no traceback, nothing written elsewhere; see `archive_fuzz.py`."""
    starts = range(0, number, size)
    with ThreadPoolExecutor(2) as pool:
        parts = [*pool.map(lambda start: fuzzed(start, start + size, tmp_path), starts)]
    counts = {kind: sum(part.get(kind, 0) for part in parts) for part in parts for kind in part}
    print(counts)
    assert sum(counts.values()) == number
    for kind in ("opcodes", "headers", "file", "tar"):
        assert counts[f"{kind} read"] and counts[f"{kind} refused"]
