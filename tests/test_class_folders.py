"""Folders of images as they arrive: what is no image is said or refused, never mistaken for one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from fairmix_jax.data import load, prepare
from fairmix_jax.runtime.errors import UsageError

GREY = np.full((4, 4, 3), 100, np.uint8)


def picture(path, pixels=GREY, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def fill(source, labels=("ant", "bee")):
    for split in ("train", "test"):
        for label in labels:
            picture(source / split / label / "0.png")
    return source


@pytest.fixture
def source(tmp_path):
    """A folder of two classes, an image of each in both splits."""
    return fill(tmp_path / "source")


def prepared(source, name="insects"):
    target = source.parent / "data"
    prepare.prepare(name, source=source, data_dir=target)
    assert [path.name for path in target.iterdir()] == [f"{name}.npz"]
    return load({"name": name, "dir": str(target), "num_train": 0})


def refusal(source, name="insects"):
    """The line by which the command refuses a folder; it leaves nothing behind."""
    before = set(source.parent.rglob("*"))
    with pytest.raises(UsageError) as raised:
        prepare.prepare(name, source=source, data_dir=source.parent / "data")
    after = [path for path in source.parent.rglob("*") if path not in before]
    assert not [path for path in after if path.name != "data"]
    line = str(raised.value)
    assert line.isprintable() and ";" in line
    return line


def film(root, name, **options):
    frames = [Image.fromarray(np.full((4, 4, 3), 80 * n, np.uint8)) for n in range(3)]
    frames[0].save(root / "train/bee" / name, save_all=True, append_images=frames[1:], **options)


def swapped_bit(root):
    """A bit of the pixels' stream that decoding accepts: the first such one."""
    smooth = np.add.outer(np.arange(32), np.arange(32))[..., None] * np.array([1, 2, 3])
    for split in ("train", "test"):
        for label in ("ant", "bee"):
            picture(root / split / label / "0.png", smooth.astype(np.uint8))
    path = root / "train/bee/0.png"
    whole = path.read_bytes()
    for place in range(41, len(whole) - 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            with Image.open(path) as file:
                if (np.asarray(file) != smooth.astype(np.uint8)).any():
                    return
        except (OSError, SyntaxError, ValueError):
            continue
    raise AssertionError("no bit is accepted")


REFUSED = {
    "an empty file": (lambda r: (r / "train/bee/1.png").write_bytes(b""), "train/bee/1.png"),
    "a cut file": (
        lambda r: (r / "train/bee/1.png").write_bytes((r / "train/bee/0.png").read_bytes()[:-30]),
        "train/bee/1.png",
    ),
    "a wrong bit that decoding accepts": (swapped_bit, "train/bee/0.png"),
    "a text with an image's ending": (
        lambda r: (r / "train/bee/1.jpg").write_text("no image"),
        "train/bee/1.jpg",
    ),
    "an ending that is unknown": (
        lambda r: (r / "train/bee/1.heic").write_bytes(b"ftypheic"),
        "train/bee/1.heic",
    ),
    "no ending": (lambda r: (r / "train/bee/1").write_bytes(b"?"), "train/bee/1"),
    "16 bits": (lambda r: picture(r / "train/bee/1.png", np.zeros((4, 4), np.uint16)), "8-bit"),
    "floats": (lambda r: picture(r / "train/bee/1.tiff", np.zeros((4, 4), np.float32)), "8-bit"),
    "grey with alpha": (lambda r: picture(r / "train/bee/1.png", mode="LA"), "8-bit"),
    "grey among colours": (lambda r: picture(r / "train/bee/1.png", mode="L"), "resize"),
    "another size": (
        lambda r: picture(r / "test/bee/1.jpg", np.zeros((9, 4, 3), np.uint8)),
        "resize",
    ),
    "an animated GIF": (lambda r: film(r, "1.gif"), "several frames"),
    "an animated PNG": (lambda r: film(r, "1.png"), "several frames"),
    "an animated WebP": (lambda r: film(r, "1.webp", lossless=True), "several frames"),
    "a TIFF of several pages": (lambda r: film(r, "1.tiff"), "several frames"),
    "too many pixels": (
        lambda r: Image.new("1", (20_000, 20_000)).save(r / "train/bee/1.png"),
        "pixels",
    ),
    "many pixels": (
        lambda r: Image.new("1", (10_000, 10_000)).save(r / "test/bee/1.png"),
        "pixels",
    ),
    "a program for Ghostscript": (
        lambda r: (r / "train/bee/1.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n"),
        "1.eps",
    ),
    "a folder in a class": (lambda r: picture(r / "train/bee/more/0.png"), "train/bee/more"),
    "an empty folder in a class": (lambda r: (r / "train/bee/more.png").mkdir(), "more.png"),
    "an image beside the classes": (lambda r: picture(r / "train/0.png"), "train/0.png"),
    "a broken link": (lambda r: (r / "train/bee/1.png").symlink_to("nowhere.png"), "bee/1.png"),
    "a link to itself": (lambda r: (r / "train/bee/1.png").symlink_to("1.png"), "bee/1.png"),
    "a class that is a broken link": (lambda r: (r / "train/cow").symlink_to("nowhere"), "cow"),
    "a pipe": (lambda r: os.mkfifo(r / "train/bee/1.png"), "train/bee/1.png"),
    "a device": (lambda r: (r / "train/bee/1.png").symlink_to("/dev/zero"), "train/bee/1.png"),
    "a class of the test set only": (lambda r: picture(r / "test/cow/0.png"), "lacks images"),
    "a class without images": (lambda r: (r / "train/cow").mkdir(), "lacks images"),
    "a line break in an image's name": (
        lambda r: (r / "train/bee/1\n.png").write_bytes(b""),
        r"1\n.png",
    ),
    "a line break in a class's name": (lambda r: fill(r, ["c\nw"]), r"c\nw"),
    "a class's name that is no text": (lambda r: fill(r, [os.fsdecode(b"c\xffw")]), r"c\udcffw"),
    "classes that look the same": (lambda r: fill(r, ["\u00e9l", "e\u0301l"]), "looks like"),
    "classes but for a space": (lambda r: fill(r, ["bee "]), "looks like"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_image_of_a_class_is_refused_by_its_name(what, source):
    damage, named = REFUSED[what]
    damage(source)
    assert named in refusal(source)


def test_the_command_prepares_a_folder_which_loads(source):
    (source / "train/bee/._0.png").write_bytes(b"Mac OS X")
    done = subprocess.run(
        [sys.executable, "-m", "fairmix_jax.data.prepare", "insects", f"--source={source}",
         f"--data_dir={source.parent}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    ignored, is_in = done.stdout.splitlines()
    assert done.returncode == 0 and "ignored: 1, e.g." in ignored and "insects.npz" in is_in
    dataset = load({"name": "insects", "dir": str(source.parent), "num_train": 0})
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 1]
    assert (dataset.train.images == GREY).all()


IGNORED = {
    "the shadow of a Mac": lambda r: (r / "train/bee/._0.png").write_bytes(b"Mac OS X"),
    "Finder's file": lambda r: (r / ".DS_Store").write_bytes(b"Bud1"),
    "Explorer's file": lambda r: (r / "train/bee/Thumbs.db").write_bytes(b"\xd0\xcf"),
    "Jupyter's folder": lambda r: picture(r / "train/.ipynb_checkpoints/0.png"),
    "Jupyter's folder in a class": lambda r: picture(r / "train/bee/.ipynb_checkpoints/0.png"),
    "a table": lambda r: (r / "train/labels.CSV").write_text("0,bee"),
    "a text in a class": lambda r: (r / "test/bee/boxes.txt").write_text("0 0 4 4"),
    "another split": lambda r: picture(r / "val/bee/0.png"),
}


@pytest.mark.parametrize("what", IGNORED)
def test_what_is_passed_over_is_said_and_counted(what, source, capsys):
    IGNORED[what](source)
    dataset = prepared(source)
    assert dataset.class_names == ("ant", "bee")
    assert len(dataset.train.labels) == len(dataset.test.labels) == 2
    assert "ignored: 1, e.g. " in capsys.readouterr().out


RED = np.tile(np.array([255, 0, 0], np.uint8), (4, 4, 1))


@pytest.mark.parametrize(
    "ending, mode",
    [
        ("png", "RGB"), ("PNG", "RGB"), ("png", "P"), ("bmp", "RGB"), ("gif", "P"),
        ("tiff", "RGB"), ("TIF", "CMYK"), ("webp", "RGB"), ("JPEG", "RGB"), ("jpg", "CMYK"),
    ],
)  # fmt: skip
def test_an_image_is_what_a_viewer_shows_whatever_its_format(ending, mode, source):
    lossless = {"lossless": True} if ending == "webp" else {"quality": 100}
    options = lossless if ending.lower() in ("webp", "jpg", "jpeg") else {}
    picture(source / "train/bee" / f"1.{ending}", RED, mode, **options)
    images = prepared(source).train.images
    assert images.dtype == np.uint8 and images.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(images[2].astype(int), RED, atol=3)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_photograph_is_turned_as_its_exif_data_say(ending, tmp_path):
    sky = np.zeros((16, 16, 3), np.uint8)
    sky[:8] = 230
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    for split in ("train", "test"):
        for label, pixels, options in (("a", sky, {}), ("b", np.rot90(sky), {"exif": exif})):
            picture(tmp_path / "source" / split / label / f"0.{ending}", pixels, **options)
    images = prepared(tmp_path / "source").train.images.astype(int)
    np.testing.assert_allclose(images, np.stack([sky, sky]), atol=20)


def test_a_photograph_with_a_preview_is_its_first_image(source):
    red, small = Image.fromarray(RED), Image.fromarray(GREY)
    path = source / "train/bee/1.jpg"
    red.save(path, "MPO", save_all=True, append_images=[small], quality=100)
    with Image.open(path) as file:
        assert file.format == "MPO" and file.n_frames == 2
    np.testing.assert_allclose(prepared(source).train.images[2].astype(int), RED, atol=3)


def test_links_to_images_and_to_classes_are_followed(source):
    (source / "train/bee/1.png").symlink_to(source / "train/ant/0.png")
    for split in ("train", "test"):
        (source / split / "cow").symlink_to(source / split / "bee")
    dataset = prepared(source)
    assert dataset.class_names == ("ant", "bee", "cow")
    assert np.bincount(dataset.train.labels).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/../../evil", "..", "", ".hidden", "a b", "x" * 300, "n\n"]
)
def test_a_name_cannot_lead_out_of_the_data_directory(name, source):
    assert "the name" in refusal(source, name)


@pytest.mark.parametrize("name", ["my-set", "v1.2", "\u732b", "9lives"])
def test_a_prepared_name_loads_whatever_tfds_makes_of_it(name, source):
    assert prepared(source, name).class_names == ("ant", "bee")


def test_a_name_of_the_library_is_left_to_it(source):
    assert "digits" in refusal(source, "digits")


def test_the_source_is_a_folder_or_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "does not exist as a file" in refusal(tmp_path / "pipe", "cifar10")
    assert "train/CLASS" in refusal(fill(tmp_path / "few", ["ant"]))
    (tmp_path / "half/train/ant").mkdir(parents=True)
    assert "test/CLASS" in refusal(tmp_path / "half")


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "data").write_text("a file")
    assert "--data_dir" in refusal(source)


def test_pixels_that_do_not_fit_into_memory_are_refused(source, monkeypatch):
    def empty(*_):
        raise MemoryError("Unable to allocate 9.9 TiB")

    monkeypatch.setattr(sys.modules["fairmix_jax.data._class_folders"].np, "empty", empty)
    assert "9.9 TiB" in refusal(source)
