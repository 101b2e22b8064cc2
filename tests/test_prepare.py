"""Archives are built here, in both original formats, and must come back byte for byte."""

import functools
import hashlib
import http.server
import io
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from fairmix_jax.data import load, prepare
from fairmix_jax.runtime.errors import UsageError

NAMES = {
    "cifar10": {
        "label": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    },
    "cifar100": {
        "coarse_label": [f"coarse{number}" for number in range(20)],
        "label": [f"fine{number}" for number in range(100)],
    },
}
PREFIXES = {"label": "", "coarse_label": "coarse_"}
FILES = {
    "cifar10": {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


@functools.cache
def contents(name):
    """File -> (labels by feature, images [N, 3072])."""
    rng = np.random.default_rng(7)
    return {
        file: (
            {f: rng.integers(0, len(names), 6) for f, names in NAMES[name].items()},
            rng.integers(0, 256, (6, 3072), dtype=np.uint8),
        )
        for files in FILES[name].values()
        for file in files
    }


def expected(name, split):
    parts = [contents(name)[file] for file in FILES[name][split]]
    images = np.concatenate([images for _, images in parts])
    labels = {f: np.concatenate([labels[f] for labels, _ in parts]) for f in NAMES[name]}
    return labels, images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def as_binary(name):
    files = {}
    for file, (labels, images) in contents(name).items():
        columns = [labels[f].astype(np.uint8)[:, None] for f in NAMES[name]]
        files[f"{file}.bin"] = np.concatenate([*columns, images], axis=1).tobytes()
    if name == "cifar10":
        files["batches.meta.txt"] = ("\n".join(NAMES[name]["label"]) + "\n\n").encode()
    else:
        for feature, file in (("coarse_label", "coarse"), ("label", "fine")):
            files[f"{file}_label_names.txt"] = "\n".join(NAMES[name][feature]).encode()
    return files


def as_python(name):
    keys = {"cifar10": {"label": "labels"}}.get(
        name, {"coarse_label": "coarse_labels", "label": "fine_labels"}
    )
    files = {}
    for file, (labels, images) in contents(name).items():
        batch = {keys[f].encode(): labels[f].tolist() for f in NAMES[name]}
        files[file] = pickle.dumps(batch | {b"data": images}, protocol=2)
    meta = {
        "cifar10": {b"label_names": [n.encode() for n in NAMES[name]["label"]]},
        "cifar100": {
            f"{kind}_label_names".encode(): [n.encode() for n in NAMES[name].get(feature, [])]
            for kind, feature in (("fine", "label"), ("coarse", "coarse_label"))
        },
    }[name]
    files["batches.meta" if name == "cifar10" else "meta"] = pickle.dumps(meta, protocol=2)
    return files


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-batches/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def unpack(path, files):
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", [as_binary, as_python])
@pytest.mark.parametrize("place", [pack, unpack])
def test_archive_comes_back_byte_for_byte(name, form, place, tmp_path):
    source = place(tmp_path / "source.tar.gz", form(name))
    prepare.prepare(name, source=source, data_dir=tmp_path / "data")
    with np.load(tmp_path / "data" / f"{name}.npz") as arrays:
        for kind, names in NAMES[name].items():
            assert arrays[f"{PREFIXES[kind]}class_names"].tolist() == names
        for split in ("train", "test"):
            labels, images = expected(name, split)
            np.testing.assert_array_equal(arrays[f"{split}_images"], images)
            for kind, values in labels.items():
                np.testing.assert_array_equal(arrays[f"{split}_{PREFIXES[kind]}labels"], values)


def test_prepared_set_loads_in_order_with_class_names(tmp_path):
    prepare.prepare(
        "cifar10", source=pack(tmp_path / "c.tar.gz", as_python("cifar10")), data_dir=tmp_path
    )
    dataset = load({"name": "cifar10", "dir": str(tmp_path), "num_train": 0})
    labels, images = expected("cifar10", "train")
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.train.labels, labels["label"])
    assert list(dataset.class_names) == NAMES["cifar10"]["label"]


def test_class_folders(tmp_path, rng):
    images = {}
    for split, number in (("train", 3), ("test", 2)):
        for label in ("ant", "bee"):
            folder = tmp_path / "source" / split / label
            folder.mkdir(parents=True)
            for n in range(number):
                image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{n}.png")
                images[split, label, n] = image
    prepare.prepare("insects", source=tmp_path / "source", data_dir=tmp_path / "tfds")
    dataset = load({"name": "insects", "dir": str(tmp_path / "tfds"), "num_train": 0})
    assert dataset.class_names == ("ant", "bee")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(dataset.train.images[4], images["train", "bee", 1])
    np.testing.assert_array_equal(dataset.test.images[1], images["test", "ant", 1])


class Bomb:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    "damage, message",
    [
        ({"data_batch_3": None}, "lacks data_batch_3"),
        ({"data_batch_3": b"\x80\x02nonsense"}, "data_batch_3 is damaged"),
        ({"data_batch_1": pickle.dumps({b"data": Bomb()})}, "print is not allowed"),
        ({"batches.meta": None}, "no cifar10 archive"),
    ],
)
def test_damaged_python_archive_is_refused(damage, message, tmp_path, capsys):
    files = {k: v for k, v in (as_python("cifar10") | damage).items() if v is not None}
    with pytest.raises(UsageError, match=message):
        prepare.prepare("cifar10", source=pack(tmp_path / "c.tar.gz", files), data_dir=tmp_path)
    assert "this must not run" not in capsys.readouterr().out


def test_truncated_binary_archive_is_refused(tmp_path):
    files = as_binary("cifar10")
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-1]
    with pytest.raises(UsageError, match="not a multiple of 3073"):
        prepare.prepare("cifar10", source=pack(tmp_path / "c.tar.gz", files), data_dir=tmp_path)


@pytest.fixture
def server(tmp_path):
    """Serves a folder on 127.0.0.1; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_download_is_verified_and_used(server, tmp_path, monkeypatch):
    folder, address = server
    archive = pack(folder / "cifar-10-binary.tar.gz", as_binary("cifar10")).read_bytes()
    recorded = (f"{address}/cifar-10-binary.tar.gz", len(archive), hashlib.sha256(archive))
    monkeypatch.setattr(
        prepare, "recorded_archive", lambda name: (*recorded[:2], recorded[2].hexdigest())
    )
    prepare.prepare("cifar10", source=None, data_dir=tmp_path / "tfds")
    dataset = load({"name": "cifar10", "dir": str(tmp_path / "tfds"), "num_train": 0})
    assert len(dataset.train.labels) == 30


def test_download_of_other_bytes_is_refused(server, tmp_path):
    folder, address = server
    (folder / "file").write_bytes(b"something else")
    with pytest.raises(UsageError, match="sha256"):
        prepare.download(f"{address}/file", tmp_path / "d", size=14, checksum="0" * 64)
    assert not list((tmp_path / "d").iterdir())


def test_unreachable_server_is_a_usage_error(server, tmp_path):
    _, address = server
    with pytest.raises(UsageError, match="--source"):
        prepare.download(f"{address}/missing", tmp_path / "d", size=1, checksum="0" * 64)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
def test_a_server_that_falls_silent_is_left(said, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.sendall(said)
                done.wait(60)

        done, thread = threading.Event(), threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/file"
        with pytest.raises(UsageError, match=r"timed out.*--source"):
            prepare.download(url, tmp_path / "d", size=9, checksum="0" * 64)
        done.set()
        thread.join()
    assert not list((tmp_path / "d").iterdir())


def test_no_more_bytes_are_taken_than_are_recorded(server, tmp_path, monkeypatch):
    folder, address = server
    with (folder / "file").open("wb") as file:
        file.truncate(100 << 20)
    read = []
    monkeypatch.setattr(prepare, "_sha256", lambda path: read.append(path.stat().st_size))
    with pytest.raises(UsageError, match="sha256"):
        prepare.download(f"{address}/file", tmp_path / "d", size=9, checksum="0" * 64)
    assert read[0] <= 1 << 20


@pytest.mark.parametrize("error", [RuntimeError(), AssertionError("two\nlines"), KeyError("url")])
def test_what_tfds_cannot_prepare_is_one_line(error, tmp_path, monkeypatch, capsys):
    def fail():
        raise error

    builder = types.SimpleNamespace(download_and_prepare=fail)
    monkeypatch.setattr(prepare._tfds, "builder_of", lambda *_: builder)
    with pytest.raises(SystemExit):
        prepare.main(["mnist", f"--data_dir={tmp_path}"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--source" in said


def test_recorded_checksums_are_those_of_tfds():
    url, size, checksum = prepare.recorded_archive("cifar10")
    assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert size == 170_052_171
    assert checksum == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["cifar10", "--source=/nowhere"], "does not exist"),
        (["cifar100", "--source={folders}"], "coarse"),
        (["nosuchset"], "unknown to TFDS"),
    ],
)
def test_command_line_says_what_is_amiss(arguments, message, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / split / "ant").mkdir(parents=True)
    arguments = [a.format(folders=tmp_path) for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        prepare.main([*arguments, f"--data_dir={tmp_path / 'tfds'}"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error and error.count("\n") == 1


def command(*arguments):
    """Runs the documented command; returns its exit status, standard output and error."""
    done = subprocess.run(
        [sys.executable, "-m", "fairmix_jax.data.prepare", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_documented_command_prepares_and_leaves_what_is_there_alone(tmp_path):
    source = pack(tmp_path / "c.tar.gz", as_python("cifar10"))
    arguments = ("cifar10", f"--source={source}", f"--data_dir={tmp_path}")
    status, output, error = command(*arguments)
    assert status == 0 and str(tmp_path / "cifar10.npz") in output, error
    before = (tmp_path / "cifar10.npz").read_bytes()
    status, output, _ = command(*arguments)
    assert status == 0 and "left as it was" in output
    assert (tmp_path / "cifar10.npz").read_bytes() == before
    dataset = load({"name": "cifar10", "dir": str(tmp_path), "num_train": 20})
    assert np.bincount(dataset.train.labels).max() <= 2


def a_file(label=0, names=("ant",), pixel=np.uint8, size=4):
    shapes = {"train": (2, 4, 4, 3), "test": (2, 4, size, 3)}
    arrays = {f"{split}_images": np.zeros(shape, pixel) for split, shape in shapes.items()}
    labels = {f"{split}_labels": np.array([0, label]) for split in shapes}
    file = io.BytesIO()
    np.savez(file, **arrays, **labels, class_names=np.array(names))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 no more than the beginning", ""),
        (a_file(label=1), "a label has no class name"),
        (a_file(label=-1), "a label has no class name"),
        (a_file(label=0.5), "a label has no class name"),
        (a_file(pixel=np.uint16), "images uint16"),
        (a_file(pixel=object), ""),
        (a_file(size=5), "images uint8"),
    ],
)
def test_a_damaged_file_is_named(content, reason, tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(content)
    with pytest.raises(UsageError, match=f"{reason}.*prepare it again"):
        load({"name": "cifar10", "dir": str(tmp_path), "num_train": 0})


def test_a_wrong_bit_of_a_prepared_file_changes_nothing_or_is_refused(insects, tmp_path):
    """Zip keeps a sum of each array; what is between them says little."""
    path, given = tmp_path / "insects.npz", {"name": "insects", "dir": str(tmp_path)}
    prepare.prepare("insects", source=insects, data_dir=tmp_path)
    content, sound, outcomes = path.read_bytes(), load(given | {"num_train": 0}), []
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = load(given | {"num_train": 0})
        except UsageError as error:
            assert str(error).isprintable()
            outcomes.append("refused")
            continue
        for ours, theirs in zip(
            [*sound.train, *sound.test], [*found.train, *found.test], strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert found.class_names == sound.class_names
        outcomes.append("read")
    assert {"read", "refused"} == {*outcomes}


def picture(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def insects(tmp_path):
    """A folder of two classes, an image of each in both splits."""
    for split in ("train", "test"):
        for n, label in enumerate(("ant", "bee")):
            grey = np.full((4, 4, 3), 100 * n, np.uint8)
            picture(tmp_path / "source" / split / label / "0.png", grey)
    return tmp_path / "source"


def test_pixels_are_those_that_a_viewer_shows(insects, tmp_path):
    """A palette is resolved, hidden files and folders are none of ours."""
    red = np.tile(np.array([255, 0, 0], np.uint8), (4, 4, 1))
    picture(insects / "train" / "ant" / "0.png", red, mode="P")
    (insects / "train" / "ant" / "._0.png").write_bytes(b"of a Mac")
    (insects / "train" / ".ipynb_checkpoints").mkdir()
    prepare.prepare("insects", source=insects, data_dir=tmp_path)
    dataset = load({"name": "insects", "dir": str(tmp_path), "num_train": 0})
    assert dataset.class_names == ("ant", "bee")
    np.testing.assert_allclose(dataset.train.images[0], red, atol=2)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: (root / "train/bee/1.png").write_bytes(b""), "1.png is no readable image"),
        (lambda root: picture(root / "test/cow/0.png", np.zeros((4, 4), np.uint8)), "lacks images"),
        (lambda root: picture(root / "test/bee/1.bmp", np.zeros((9, 4, 3), np.uint8)), "resize"),
        (lambda root: picture(root / "test/bee/1.png", np.zeros((4, 4), np.uint16)), "8-bit"),
    ],
)
def test_no_image_is_left_out_in_silence(damage, message, insects, tmp_path):
    damage(insects)
    with pytest.raises(UsageError, match=message):
        prepare.prepare("insects", source=insects, data_dir=tmp_path)
