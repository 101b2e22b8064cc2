"""Archives are built here, in both original formats, and must come back byte for byte."""

import functools
import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fairmix_jax.data import load, prepare
from fairmix_jax.errors import UsageError

NAMES = {
    "cifar10": {
        "label": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    },
    "cifar100": {
        "coarse_label": [f"coarse{number}" for number in range(20)],
        "label": [f"fine{number}" for number in range(100)],
    },
}
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
    prepare.prepare(name, source=source, data_dir=tmp_path / "tfds")
    for split in ("train", "test"):
        records = list(tfds.data_source(name, split=split, data_dir=tmp_path / "tfds"))
        records.sort(key=lambda record: record["id"])
        labels, images = expected(name, split)
        assert [r["id"].decode() for r in records] == [
            f"{split}_{number:05d}" for number in range(len(images))
        ]
        np.testing.assert_array_equal(np.stack([r["image"] for r in records]), images)
        for feature, values in labels.items():
            assert [r[feature] for r in records] == values.tolist()


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
        ({"data_batch_3": b"\x80\x02nonsense"}, "data_batch_3 is not a sound CIFAR pickle"),
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
    source = tfds.data_source("cifar10", split="train", data_dir=tmp_path / "tfds")
    assert len(source) == 30


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
