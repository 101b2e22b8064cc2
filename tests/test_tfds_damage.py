"""Data sets that TFDS prepared, and what becomes of them on a bad disk."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from fairmix_jax.data import load, prepare
from fairmix_jax.runtime.errors import UsageError

COUNTS = {"train": 6, "test": 4}


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(root, image=png, label=lambda n: n % 2):
    """A data set `tiny` of two classes in the files that TFDS writes; returns its folder."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
    )
    folder, rng = root / "tiny" / "1.0.0", np.random.default_rng(0)
    folder.mkdir(parents=True)
    serializer = ExampleSerializer(features.get_serialized_info())
    for split, number in COUNTS.items():
        path = folder / f"tiny-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for n in range(number):
            pixels = image(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            example = {"id": f"{split}_{n}".encode(), "image": pixels, "label": label(n)}
            writer.write(serializer.serialize_example(example))
        writer.close()
    splits = [
        {
            "name": split, "numBytes": "1", "shardLengths": [f"{number}"],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split, number in COUNTS.items()
    ]  # fmt: skip
    info = {"fileFormat": "array_record", "name": "tiny", "version": "1.0.0", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    return folder


def loaded(root, name="tiny"):
    return load({"name": name, "dir": str(root), "num_train": 0})


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def test_a_sound_set_is_read(folder):
    dataset = loaded(folder.parents[1])
    assert dataset.train.images.shape == (6, 8, 8, 3) and dataset.class_names == ("0", "1")
    assert dataset.train.labels.tolist() == [0, 1] * 3


def cut(path, number=20):
    path.write_bytes(path.read_bytes()[:-number])


def swapped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replaced(path, old, new):
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


TRAIN = "tiny-train.array_record-00000-of-00001"
DAMAGE = {
    "a wrong bit in a record": lambda f: swapped(f / TRAIN, (f / TRAIN).read_bytes().find(b"IHDR")),
    "a cut file": lambda f: cut(f / TRAIN, 40_000),
    "an empty file": lambda f: (f / TRAIN).write_bytes(b""),
    "a missing file": lambda f: (f / TRAIN).unlink(),
    "a cut dataset_info.json": lambda f: cut(f / "dataset_info.json"),
    "an empty dataset_info.json": lambda f: (f / "dataset_info.json").write_text(""),
    "fewer images by dataset_info.json": lambda f: replaced(f / "dataset_info.json", '"6"', '"2"'),
    "more images by dataset_info.json": lambda f: replaced(f / "dataset_info.json", '"6"', '"7"'),
    "no images by dataset_info.json": lambda f: replaced(f / "dataset_info.json", '"6"', '"0"'),
    "another format": lambda f: replaced(f / "dataset_info.json", "array_record", "tfrecord"),
    "a cut features.json": lambda f: cut(f / "features.json"),
    "a missing features.json": lambda f: (f / "features.json").unlink(),
    "fewer classes": lambda f: replaced(f / "features.json", '"2"', '"1"'),
    "an unknown kind of feature": lambda f: replaced(f / "features.json", "image_feature", "x"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_set_is_refused_in_one_line_with_the_remedy(what, folder):
    DAMAGE[what](folder)
    with pytest.raises(UsageError) as raised:
        loaded(folder.parents[1])
    line = str(raised.value)
    assert line.isprintable() and "'tiny'" in line and ";" in line and len(line) < 600


def test_a_wrong_bit_anywhere_changes_nothing_or_is_refused(folder):
    sound, content = loaded(folder.parents[1]), (folder / TRAIN).read_bytes()
    outcomes = set()
    for place in np.random.default_rng(0).integers(0, 4096, 40).tolist():
        swapped(folder / TRAIN, place)
        try:
            np.testing.assert_array_equal(
                loaded(folder.parents[1]).train.images, sound.train.images
            )
            outcomes.add("read")
        except UsageError:
            outcomes.add("refused")
        (folder / TRAIN).write_bytes(content)
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    "image",
    [
        lambda pixels: png(pixels)[:-40],
        lambda pixels: b"no image",
        lambda pixels: png(pixels[..., 0].astype(np.uint16) * 257),
    ],
)
def test_records_that_are_no_images_of_8_bits_are_refused(image, tmp_path):
    write(tmp_path, image)
    with pytest.raises(UsageError, match="tiny"):
        loaded(tmp_path)


def test_images_of_several_sizes_are_refused(tmp_path):
    sizes = iter([8] * 5 + [7] * 5)
    write(tmp_path, lambda pixels: png(pixels[: next(sizes)]))
    with pytest.raises(UsageError, match="several sizes"):
        loaded(tmp_path)


def test_the_command_leaves_a_prepared_set_alone(folder, capsys):
    prepare.main(["tiny", f"--data_dir={folder.parents[1]}"])
    assert f"tiny is in {folder}, already" in capsys.readouterr().out


def test_the_command_says_so_of_a_damaged_set(folder, capsys):
    cut(folder / "dataset_info.json")
    with pytest.raises(SystemExit):
        prepare.main(["tiny", f"--data_dir={folder.parents[1]}"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "remove its folder" in error


@pytest.mark.parametrize("name", ["../evil", "", "a b", "cifar10:9.9.9", "a\nb", "x" * 300])
def test_a_name_that_no_set_can_have_is_refused(name, tmp_path):
    with pytest.raises(UsageError) as raised:
        loaded(tmp_path, name)
    assert str(raised.value).isprintable() and repr(name) in str(raised.value)
