"""Files of PyTorch as our models: what is read, what is refused, and that nothing is run.

Here without PyTorch; tests/parity has files that it wrote and networks that it computed.
"""

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file
from torch_files import Call, Name, Storage, legacy, pickled, tensor, zipped

from fairmix_jax.export import _torch_file, _zoo, load_model, save_model, torch_export
from fairmix_jax.export._torch_names import state_dict
from fairmix_jax.export.torch_import import Told, import_model
from fairmix_jax.models.described import build_model, weights_template
from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.types import Weights

HEAD = {"linear.weight": np.arange(12, dtype="f4").reshape(3, 4), "linear.bias": np.ones(3, "f4")}
TOLD = Told(classes="a,b,c", image_shape=(2, 2, 1), mean=(0.5,), std=(0.25,))


def read(content, path, form=zipped):
    """The arrays of a state dict that a file of a form holds."""
    path.write_bytes(form(content))
    with _torch_file.opened(path) as found:
        return {name: value.array() for name, value in state_dict(found)[1].items()}


@pytest.mark.parametrize("form", [zipped, legacy])
def test_numbers_of_all_kinds_come_as_they_are(form, tmp_path):
    kinds = ("f4", "f8", "f2", "i8", "?", jnp.bfloat16)
    expected = {str(n): np.arange(-3, 3).astype(kind) for n, kind in enumerate(kinds)}
    expected |= {"none": np.zeros((2, 0), "f4"), "one": np.array(3, "f4")}
    found = read(OrderedDict(expected), tmp_path / "f.pt", form)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("form", [zipped, legacy])
def test_views_of_one_storage_are_read_by_their_strides(form, tmp_path):
    """A transposed matrix, every other number, one number for all, and the last one."""
    storage = Storage(np.arange(12, dtype="f4"))
    grid = np.arange(12, dtype="f4").reshape(3, 4)
    views = {
        "transposed": (tensor(storage, 0, (4, 3), (1, 4)), grid.T),
        "every other": (tensor(storage, 1, (3, 2), (4, 2)), grid[:, 1::2]),
        "one for all": (tensor(storage, 5, (2, 2), (0, 0)), np.full((2, 2), 5, "f4")),
        "last": (tensor(storage, 11, (), ()), np.float32(11)),
    }
    found = read({name: view for name, (view, _) in views.items()}, tmp_path / "f.pt", form)
    for name, (_, expected) in views.items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_older_format_is_read_in_later_protocols(protocol, tmp_path):
    """Those number what they remember by themselves, from 0 in each of the file's pickles."""
    found = read(HEAD, tmp_path / "f.pt", partial(legacy, protocol=protocol))
    for name, array in HEAD.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("size", [316, 15392])
@pytest.mark.parametrize("name", ["f.safetensors", "f.pt"])
def test_a_file_is_what_its_content_says(name, size, tmp_path):
    """Of safetensors whose head's length is `<` in text, and of another name; and the reverse."""
    save_file(HEAD, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    own = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + own].ljust(size)
    (tmp_path / name).write_bytes(size.to_bytes(8, "little") + head + content[8 + own :])
    assert (tmp_path / name).read_bytes().lstrip()[:1] == b"<"
    assert read_only(tmp_path / name).keys() == HEAD.keys()
    for form in (zipped, legacy):
        assert read(HEAD, tmp_path / name, form).keys() == HEAD.keys()


def test_parameters_and_the_state_of_a_state_dict_are_read(tmp_path):
    rebuild = Name("torch._utils", "_rebuild_parameter")
    parameter = Call(
        rebuild, tensor(np.ones(2, "f4")), True, Call(Name("collections", "OrderedDict"))
    )
    data = pickled({"a": parameter})[0]
    assert b"_rebuild_parameter" in data
    np.testing.assert_array_equal(read({"a": parameter}, tmp_path / "f.pt")["a"], [1, 1])


WRAPPED = {
    "bare": HEAD,
    "state_dict": {"state_dict": HEAD, "epoch": 3, "best": np.array(0.5, "f4"), "lr": 0.1},
    "model_state_dict": {"model_state_dict": HEAD, "unaveraged_model_state_dict": HEAD},
    "last": {"last": HEAD, "best": HEAD},
    "optimizer beside it": {"net": HEAD, "optimizer": {"state": {0: {"step": 1}}, "groups": [{}]}},
    "other keys beside it": {"net": HEAD, "x": {0.5: 1, (1, "a"): 2, None: 3}},
    "module.": {f"module.{name}": value for name, value in HEAD.items()},
    "module.0.": {"model": {f"module.0.{name}": value for name, value in HEAD.items()}},
    "_orig_mod.": {f"_orig_mod.model.{name}": value for name, value in HEAD.items()},
}


@pytest.mark.parametrize("form", [zipped, legacy])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_state_dict_is_found_under_wrappers_and_prefixes(name, form, tmp_path):
    found = read(WRAPPED[name], tmp_path / "f.pt", form)
    assert found.keys() == HEAD.keys()
    np.testing.assert_array_equal(found["linear.weight"], HEAD["linear.weight"])


def test_of_two_wrappers_that_fit_the_user_chooses(tmp_path):
    other = {name: value + 1 for name, value in HEAD.items()}
    (tmp_path / "f.pt").write_bytes(zipped({"net": HEAD, "ema": other, "mine": HEAD}))
    with pytest.raises(UsageError, match=r"several state dicts: net, ema; choose with --key=NAME"):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)
    for key, bias in ("net", 1.0), ("ema", 2.0), ("mine", 1.0):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD._replace(key=key))
        stored = load_file(tmp_path / "out" / "model.safetensors")
        np.testing.assert_array_equal(stored["params/Dense_0/bias"], np.full(3, bias))
    with pytest.raises(UsageError, match="--key='last' is not in it; it has net, ema, mine"):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD._replace(key="last"))


PLANTED = Call(Name("os", "system"), "echo planted > planted")
MODEL = Call(Name("torch.nn.modules.linear", "Linear"))


def float8():
    rebuild = Name("torch._utils", "_rebuild_tensor_v3")
    return Call(rebuild, Storage(np.zeros(3, "f4")), 0, (3,), (1,), Name("torch", "float8_e4m3fn"))


def biased(storage, *view):
    """A state dict whose bias is a view of a storage."""
    return HEAD | {"linear.bias": tensor(storage, *view)}


def dotted(*view):
    """A state dict whose bias is a view of a storage of three numbers."""
    return biased(Storage(np.ones(3, "f4")), *view)


REFUSED = {  # what a file holds, and what is said
    "os.system": ({"state_dict": HEAD, "x": PLANTED}, r"asks for os\.system.*none of it was run.*"
                  r"safetensors\.torch\.save_file"),
    "a whole model": (MODEL, r"asks for torch\.nn\.modules\.linear\.Linear"),
    "arguments of a script": ({"net": HEAD, "args": Call(Name("argparse", "Namespace"))},
                              r"asks for argparse\.Namespace"),
    "float8": (HEAD | {"linear.bias": float8()}, r"asks for torch\.(float8|_utils\._rebuild_t.*3)"),
    "complex": (biased(Storage(np.ones(3, "f4"), kind="ComplexFloat"), 0, (3,)),
                r"asks for torch\.ComplexFloatStorage"),
    "quantised": (HEAD | {"q": Call(Name("torch._utils", "_rebuild_qtensor"))}, "_rebuild_qtensor"),
    "a stride out of bounds": (dotted(0, (3,), (2,)), "reaches beyond its storage"),
    "an offset out of bounds": (dotted(1, (3,), (1,)), "reaches beyond its storage"),
    "a negative stride": (dotted(2, (3,), (-1,)), "or negative"),
    "a huge stride": (dotted(0, (3,), (2**62,)), "reaches beyond its storage"),
    "a size that is no number": (dotted(0, (3.0,), (1,)), "no number, or negative"),
    "a storage that is longer than told": (
        biased(Storage(np.ones(4, "f4"), count=3), 0, (3,)), "as it should be"),
    "a storage that is shorter than told": (
        biased(Storage(np.ones(2, "f4"), count=3), 0, (3,)), "as it should be"),
    "numbers that are shared by all": (
        dict.fromkeys(map(str, range(9)), tensor(Storage(np.ones(9000, "f4")), 0, (9000,))),
        "share numbers"),
    "nothing of a huge size": (
        HEAD | {"conv1.weight": tensor(Storage(np.ones(0, "f4")), 0, (0, 10**12, 3, 3))},
        "share numbers"),
    "a negative view": (
        HEAD | {"linear.bias": Call(Name("torch._utils", "_rebuild_tensor_v2"),
                                    Storage(np.ones(3, "f4")), 0, (3,), (1,), False,
                                    Call(Name("collections", "OrderedDict")), {"neg": True})},
        r"a negative view; save it again after v\.resolve_neg"),
    "numbers beyond float32": (HEAD | {"linear.bias": np.full(3, 1e300)}, "linear.bias has NaN"),
    "NaN": (HEAD | {"linear.bias": np.full(3, np.nan, "f4")}, "linear.bias has NaN, or numbers"),
    "integers": (HEAD | {"linear.bias": np.ones(3, "i8")}, "numbers of type int64"),
    "no dictionary": ([1, 2], "no dictionary of tensors"),
    "no state dict": ({"epoch": 3, "nets": [1, {}]}, "has epoch, nets, and no state dict there"),
}  # fmt: skip


def out_of(tmp_path):
    """Every file there but the one that is imported."""
    return sorted(path.name for path in tmp_path.rglob("*") if path.name != "f.pt")


@pytest.mark.parametrize("form", [zipped, legacy])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_state_dict_of_ordinary_numbers_is_refused(what, form, tmp_path):
    content, said = REFUSED[what]
    (tmp_path / "f.pt").write_bytes(form(content))
    with pytest.raises(UsageError, match=said) as told:
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)
    assert str(told.value).startswith(repr(str(tmp_path / "f.pt"))) and "\n" not in str(told.value)
    assert out_of(tmp_path) == []


def planting(path):
    """A pickle that writes a file with Python's own unpickler."""
    command = f"echo planted > {path}".encode()
    size = len(command).to_bytes(4, "little")
    return b"\x80\x02cos\nsystem\nX" + size + command + b"\x85R."


def with_pickle(data, form):
    """A file of a form whose pickle is replaced."""
    content, own = form({"a": np.ones(1, "f4")}), pickled({"a": np.ones(1, "f4")})[0]
    if form is legacy:
        return content.replace(own, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


@pytest.mark.parametrize("form", [zipped, legacy])
def test_a_planted_payload_runs_in_python_and_not_here(form, tmp_path):
    """The same bytes, so that the test would see it; by the command, in a process of its own."""
    data = planting(tmp_path / "planted")
    pickle.loads(data)
    assert (tmp_path / "planted").exists()
    (tmp_path / "planted").unlink()
    (tmp_path / "f.pt").write_bytes(with_pickle(data, form))
    done = command(tmp_path, "f.pt", "out")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "asks for os.system" in done.stderr and "none of it was run" in done.stderr
    assert out_of(tmp_path) == []


AS_A_PROCESS = {
    "a stride out of bounds": REFUSED["a stride out of bounds"],
    "float8": REFUSED["float8"],
    "two wrappers": ({"net": HEAD, "ema": HEAD}, "several state dicts: net, ema"),
    "cut short": (zipped(HEAD)[:-9], "is damaged, or no file of weights"),
    "a page": (b"<!DOCTYPE html>", "is a web page"),
}


@pytest.mark.parametrize("what", AS_A_PROCESS)
def test_the_command_refuses_in_one_line_with_status_2(what, tmp_path):
    content, said = AS_A_PROCESS[what]
    (tmp_path / "f.pt").write_bytes(content if isinstance(content, bytes) else zipped(content))
    done = command(tmp_path, "f.pt", "out")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("torch_import: 'f.pt'") and re.search(said, done.stderr)
    assert out_of(tmp_path) == []


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "fairmix_jax.export.torch_import", *arguments], cwd=folder,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


STATES = {  # a pickle that gives a state to a function of the reader, or to text
    "a function": b"ctorch._utils\n_rebuild_tensor_v2\n}U\x08__name__U\x01xsb",
    "a type": b"ctorch\nFloatStorage\n}b",
    "a dictionary": b"}}b",
}


@pytest.mark.parametrize("what", STATES)
def test_nothing_of_the_reader_can_be_changed(what, tmp_path):
    (tmp_path / "f.pt").write_bytes(with_pickle(b"\x80\x02" + STATES[what] + b".", zipped))
    with pytest.raises(UsageError, match="gives a state to what has none"):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)


TUPLES = {  # too deep to be hashed, and one that it would take for ever
    "deep": b")" + b"\x85" * 1_000_000,
    "shared": b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)),
}


@pytest.mark.parametrize("what", TUPLES)
def test_a_tuple_for_the_type_of_a_storage_is_refused(what, tmp_path):
    """In a process of its own, since the hash of it ends Python."""
    text = (b"X" + len(t).to_bytes(4, "little") + t for t in (b"storage", b"0", b"cpu"))
    kind, key, device = text
    data = b"\x80\x02(" + kind + TUPLES[what] + key + device + b"K\x01tQ."
    (tmp_path / "f.pt").write_bytes(with_pickle(data, zipped))
    done = command(tmp_path, "f.pt", "out")
    assert done.returncode == 2 and "names a storage in a way that is not known" in done.stderr


def test_a_deep_or_a_long_tuple_is_no_key(tmp_path):
    for tuple_ in (b")" + b"\x85" * 1_000_000, b"(" + b"K\x01" * 9 + b"t"):
        (tmp_path / "f.pt").write_bytes(with_pickle(b"\x80\x02}" + tuple_ + b"K\x01s.", zipped))
        with pytest.raises(UsageError, match="no text, no number, and no short tuple"):
            import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["data.pkl", "data/0", "version"])
def test_two_members_of_one_name_are_refused(name, tmp_path):
    """Readers differ in which they take."""
    (tmp_path / "f.pt").write_bytes(zipped(HEAD))
    with zipfile.ZipFile(tmp_path / "f.pt", "a") as archive:
        archive.writestr(f"archive/{name}", archive.read(f"archive/{name}"))
    with pytest.raises(UsageError, match="two of its members have the same name"):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)


def test_a_file_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path):
    for form in (zipped, legacy):
        whole = form(HEAD)
        for size in (0, 1, 10, 100, len(whole) // 2, len(whole) - 40, len(whole) - 1):
            (tmp_path / "f.pt").write_bytes(whole[:size])
            with pytest.raises(UsageError, match=r"damaged, or no file|asks for coll"):
                import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)
    save_file(HEAD, tmp_path / "f.safetensors")
    whole = (tmp_path / "f.safetensors").read_bytes()
    (tmp_path / "f.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UsageError, match="damaged, or no file of weights"):
        import_model(tmp_path / "f.safetensors", tmp_path / "out", TOLD)


def flips(whole, *, seed, number):
    """Yields copies of a file with one bit flipped."""
    rng = np.random.default_rng(seed)
    for place in rng.integers(len(whole), size=number):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        yield flipped


def test_no_flipped_bit_of_a_zip_makes_another_model_unseen(tmp_path):
    """Its checksums are compared; of the format before 1.6 there are none."""
    for flipped in flips(zipped(HEAD), seed=0, number=150):
        (tmp_path / "f.pt").write_bytes(flipped)
        try:
            found = read_only(tmp_path / "f.pt")
        except UsageError:
            continue
        for name, array in found.items():
            np.testing.assert_array_equal(array, HEAD[name])


def test_no_flipped_bit_of_the_older_format_does_more_than_change_numbers(tmp_path):
    for flipped in flips(legacy(HEAD), seed=1, number=300):
        (tmp_path / "f.pt").write_bytes(flipped)
        with contextlib.suppress(UsageError):
            assert len(read_only(tmp_path / "f.pt")) == 2


def read_only(path):
    with _torch_file.opened(path) as found:
        return {name: value.array() for name, value in state_dict(found)[1].items()}


OTHER_FILES = {
    "a page": (b"<!DOCTYPE html><html>Google Drive can't scan this file", "is a web page"),
    "a page after a line": (b"\n <html>", "is a web page"),
    "an array": (b"\x93NUMPY\x01\0v\0{'descr': '|O'", "of DeepMind's models take the .pt file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "text": (b"hello", "the form of neither torch.save nor safetensors"),
    "big-endian": (zipped(HEAD, byteorder=b"big"), "big-endian"),
    "packed": (zipped(HEAD, zipfile.ZIP_DEFLATED), "compressed or encrypted"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_another_file_is_refused_by_what_it_is(what, tmp_path):
    content, said = OTHER_FILES[what]
    (tmp_path / "f.pt").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)


def test_a_bomb_is_not_unpacked(tmp_path):
    """A member of a gigabyte in a file of a megabyte, and members that share their bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    (tmp_path / "f.pt").write_bytes(file.getvalue())
    with pytest.raises(UsageError, match="compressed or encrypted"):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)
    large = zipped({"a": np.zeros(10_000, "f4")})
    entry = large.index(b"PK\x01\x02", large.index(b"archive/data/0") + 40_000)
    first = large.index(b"PK\x01\x02", entry)
    last = large.index(b"PK\x05\x06")
    central = large[first:last]
    start = central.index(b"archive/data/0") - 46
    size = 46 + len("archive/data/0")
    twice = central + central[start : start + size].replace(b"data/0", b"data/1")
    end = bytearray(large[last:])
    end[8:12] = (5).to_bytes(2, "little") * 2
    end[12:16] = len(twice).to_bytes(4, "little")
    (tmp_path / "f.pt").write_bytes(large[:first] + twice + end)
    assert len(zipfile.ZipFile(tmp_path / "f.pt").infolist()) == 5
    with pytest.raises(UsageError, match="its members are larger than it is"):
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)


def test_float8_in_safetensors_is_refused_by_its_name(tmp_path):
    head = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}).encode()
    content = len(head).to_bytes(8, "little") + head + bytes(3)
    (tmp_path / "f.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"w has numbers of type F8_E4M3; .*v\.float\(\)"):
        import_model(tmp_path / "f.safetensors", tmp_path / "out", TOLD)


def test_bfloat16_in_safetensors_is_read(tmp_path):
    head = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    numbers = np.array([1.5, -2], jnp.bfloat16)
    content = len(head).to_bytes(8, "little") + head + numbers.tobytes()
    (tmp_path / "f.safetensors").write_bytes(content)
    np.testing.assert_array_equal(read_only(tmp_path / "f.safetensors")["w"], numbers)


def test_a_matrix_behind_an_image_has_its_columns_reordered(tmp_path):
    """PyTorch flattens channels, rows, columns, we flatten rows, columns, channels."""
    matrix = np.arange(24, dtype="f4").reshape(2, 12)  # of 2 x 3 pixels and 2 channels
    head = {"linear.weight": matrix.astype("f2"), "linear.bias": np.zeros(2, "f8")}
    (tmp_path / "f.pt").write_bytes(zipped(head))
    told = Told(classes="a,b", image_shape=(2, 3, 2), mean=(0.0, 0.0), std=(1.0, 1.0))
    import_model(tmp_path / "f.pt", tmp_path / "out", told)
    images = np.random.default_rng(0).random((4, 2, 3, 2)).astype("f4")
    expected = images.transpose(0, 3, 1, 2).reshape(4, 12) @ matrix.T
    found = load_model(tmp_path / "out")[0](jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


MODELS = [
    dict(name="small_cnn", width=8, norm="batch"), dict(name="small_cnn", width=8, norm="group"),
    dict(name="small_cnn", width=8, norm="none"), dict(name="linear"),
    dict(name="resnet", depth=10, width=8, norm="group"), dict(name="resnet", depth=14, width=8),
    dict(name="preact_resnet", depth=10, width=8, norm="batch:2"),
    dict(name="preact_resnet", depth=18, width=8, shortcut="raw", last_norm=False),
    dict(name="preact_resnet", depth=10, width=8, shortcut="raw3x3", activation="silu"),
    dict(name="wide_resnet", depth=10, width=1, padding="same", activation="silu"),
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_export_and_import_give_the_same_bits(model, tmp_path):
    """For every model, and the card comes back as well, with where the file is from."""
    card = {
        "model": {"name": model["name"]} | registry.arguments("models", model),
        "image_shape": [16, 24, 3], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25],
        "classes": ["a", "b", "c"],
    }  # fmt: skip
    rng = np.random.default_rng(0)
    template = weights_template(build_model(card))
    weights = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), template)
    facts = {"dataset": "own", "threat": {"norm": "linf", "epsilon": 0.1}, "weights": "best"}
    save_model(tmp_path / "run", Weights(*weights), card, facts)
    torch_export.export(tmp_path / "run", tmp_path / "torch")
    file = tmp_path / "torch" / "model_torch.safetensors"
    what, found = import_model(file, tmp_path / "back", Told(licence="Apache-2.0"))
    assert "our own export" in what and {n: found[n] for n in card | facts} == card | facts
    assert found["source"]["licence"] == "Apache-2.0" and len(found["source"]["sha256"]) == 64
    there, back = (tmp_path / name / "model.safetensors" for name in ("run", "back"))
    assert there.read_bytes() == back.read_bytes()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_norm_without_running_statistics_is_told_or_refused(norm, tmp_path):
    """PyTorch's have other groups and another epsilon, which the file does not show."""
    card = {
        "model": {"name": "small_cnn", "width": 8, "norm": norm}, "image_shape": [8, 8, 3],
        "mean": [0.0] * 3, "std": [1.0] * 3, "classes": ["a", "b", "c"],
    }  # fmt: skip
    template = weights_template(build_model(card))
    weights = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), template)
    facts = {"dataset": "own", "threat": {}, "weights": "best"}
    save_model(tmp_path / "run", Weights(*weights), card, facts)
    torch_export.export(tmp_path / "run", tmp_path / "torch")
    (tmp_path / "torch" / "model.json").unlink()
    file = tmp_path / "torch" / "model_torch.safetensors"
    told = Told(classes="a,b,c", image_shape=(8, 8, 3), mean=(0.0,) * 3, std=(1.0,) * 3)
    fixed = ["ReLU", "strides in place of pooling"]
    said = {"batch": ["epsilon 1e-5 of batch norm"], "none": []}
    if norm == "group":
        with pytest.raises(UsageError, match=r"no running statistics; give --model\.norm=group if"):
            import_model(file, tmp_path / "out", told)
        told = told._replace(model={"norm": "group"})
        said["group"] = ["groups of 8 channels with epsilon 1e-6"]
    _, found = import_model(file, tmp_path / "out", told)
    assert found["model"] == card["model"] and found["source"]["assumed"] == fixed + said[norm]


def head_of(**more):
    """A state dict of which only the last layer fits, and some sizes."""
    arrays = {name.replace("_", "."): np.zeros(shape, "f4") for name, shape in more.items()}
    return HEAD | {f"{name}.weight": array for name, array in arrays.items()}


BLOCK = {"conv1": (16, 1, 3, 3), "bn": (16,), "layer1_0_conv1": (16, 16, 3, 3)}
SHAPES = {
    "a bias of no size": (HEAD | {"linear.bias": np.array(1, "f4")}, r"bias has shape \[\], and"),
    "a kernel of one size": (head_of(conv1=(3,)), r"shape \[3\], and ours is of 4 dim"),
    "a first block of 1": (head_of(conv1=(8, 1, 3, 3), layer1_1_conv1=(8, 8, 3, 3)),
                           r"lacks conv1\.weight or layer1\.0\.conv1\.weight"),
    "a first layer of 0": (head_of(layer0_0_conv1=(8, 8, 3, 3)), "lacks conv1"),
    "a block without a stem": (head_of(layer1_0_conv1=(8, 8, 3, 3)), "lacks conv1"),
    "a long number": (head_of(**{"layer" + "9" * 5000 + "_0_conv1": (1, 1, 1, 1)}), "has layer999"),
    "many blocks": (
        head_of(**BLOCK) | {"bn.running_mean": np.zeros(16, "f4")} | {
            f"layer{stage}.{n}.conv1.weight": np.zeros((16, 1, 1, 1), "f4")
            for stage in (1, 2, 3) for n in range(60)},
        "depth=364 .*has more than 1,000 layers"),
}  # fmt: skip


@pytest.mark.parametrize("what", SHAPES)
def test_names_and_sizes_that_no_model_has_are_said(what, tmp_path):
    content, said = SHAPES[what]
    (tmp_path / "f.pt").write_bytes(zipped(content))
    with pytest.raises(UsageError, match=said) as told:
        import_model(tmp_path / "f.pt", tmp_path / "out", TOLD)
    assert "damaged" not in str(told.value) and out_of(tmp_path) == []


def test_constants_that_cannot_be_divided_by_are_refused_in_an_own_card_too(tmp_path):
    (tmp_path / "f.pt").write_bytes(zipped(HEAD))
    import_model(tmp_path / "f.pt", tmp_path / "run", TOLD)
    torch_export.export(tmp_path / "run", tmp_path / "torch")
    file, page = tmp_path / "torch" / "model_torch.safetensors", tmp_path / "torch" / "model.json"
    card = json.loads(page.read_text())
    del card["checksum"]  # as who forges a card does
    for wrong in ({"std": [0.0]}, {"std": [1e-60]}, {"mean": [float("nan")]}, {"std": [1.0, 1.0]}):
        page.write_text(json.dumps(card | wrong))
        with pytest.raises(UsageError, match=r"--(mean|std)=.* does not fit images of shape"):
            import_model(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_the_file_or_a_run_is_not_written_to(tmp_path):
    """Else the model would replace what it was made of, or what was trained."""
    (tmp_path / "theirs").mkdir()
    save_file(HEAD, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "ours" / "checkpoints").mkdir(parents=True)
    for output, said in ("theirs", "itself"), ("link", "itself"), ("ours", "holds a run"):
        with pytest.raises(UsageError, match=said):
            import_model(tmp_path / "theirs" / "model.safetensors", tmp_path / output, TOLD)
    assert load_file(tmp_path / "theirs" / "model.safetensors").keys() == HEAD.keys()
    assert out_of(tmp_path) == ["checkpoints", "link", "model.safetensors", "ours", "theirs"]


def test_a_linear_model_has_the_channels_that_are_told(tmp_path):
    (tmp_path / "f.pt").write_bytes(zipped(HEAD))
    told = Told(classes="a,b,c", image_shape=(1, 2, 2))
    _, card = import_model(tmp_path / "f.pt", tmp_path / "out", told)
    assert card["mean"] == [0.0, 0.0] and card["source"]["assumed"] == ["mean", "std"]


def test_every_model_is_among_those_that_come_back():
    assert {model["name"] for model in MODELS} == set(registry.names("models"))


def test_the_zoo_s_names_give_constants_licences_and_reasons():
    assert {len(names) for names in _zoo.CLASSES.values()} == {10, 100}
    assert all(names == sorted(names) for names in _zoo.CLASSES.values())
    entry = _zoo.entry("cifar10/L2/Rony2019Decoupling")
    assert entry.licence == "BSD-3-Clause" and entry.normalisation[1] == (0.247, 0.243, 0.262)
    assert _zoo.entry("cifar100/Linf/Gowal2020Uncovering").licence == "Apache-2.0"
    for name, said in {
        "cifar10/Linf/Chen2020Adversarial": "the mean softmax of three networks",
        "cifar10/Linf/Ding2020MMA": "normalises each image by its own mean",
        "cifar10/Linf/Wu2002Adversarial": "is not known; give cifar10/Linf/NAME",
        "cifar10/linf/Wu2020Adversarial": "is not known",
        "imagenet/Linf/Standard": "is not known",
    }.items():
        with pytest.raises(UsageError, match=said):
            _zoo.entry(name)


def test_what_is_told_has_to_fit(tmp_path):
    (tmp_path / "f.pt").write_bytes(zipped(HEAD))
    for told, said in (
        (TOLD._replace(classes=""), "are not the 3 classes of its last layer"),
        (TOLD._replace(classes="a,b,b"), "are not the 3 classes"),
        (TOLD._replace(mean=(0.5, 0.5)), r"--mean=\[0.5, 0.5\] does not fit images of shape"),
        (TOLD._replace(std=(0.0,)), "give a positive number for each channel"),
        (TOLD._replace(std=(float("inf"),)), "give a positive number for each channel"),
        (TOLD._replace(model={"name": "resnet"}), r"lacks conv1\.weight|lacks "),
        (TOLD._replace(model={"name": "lenet"}), "model.name='lenet' is unknown"),
        (TOLD._replace(model={"depth": 3}), "model.depth=3 does not belong to model.name=linear"),
        (TOLD._replace(image_shape=(3, 3, 1)), r"linear\.weight has shape \[3, 4\]"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            import_model(tmp_path / "f.pt", tmp_path / "out", told)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="holds a run; give a folder of its own"):
        import_model(tmp_path / "f.pt", tmp_path / "run", TOLD)


def test_what_was_assumed_is_kept_and_an_own_export_keeps_its_source(tmp_path):
    (tmp_path / "f.pt").write_bytes(zipped(HEAD))
    _, card = import_model(tmp_path / "f.pt", tmp_path / "out", TOLD._replace(std=(), licence="X"))
    assert card["std"] == [1.0] and card["source"]["assumed"] == ["std"]
    (tmp_path / "model.json").write_text("{}")  # of something else, so it is not looked at
    _, card = import_model(tmp_path / "f.pt", tmp_path / "out", TOLD._replace(licence="X"))
    assert card["source"]["assumed"] == [] and card["source"]["parameters"] == 15
    torch_export.export(tmp_path / "out", tmp_path / "torch")
    _, again = import_model(tmp_path / "torch" / "model_torch.safetensors", tmp_path / "again")
    assert again["source"]["licence"] == "X" and again["sha256"] == card["sha256"]
    assert again["source"]["file"] == "model_torch.safetensors"


def test_the_command_says_what_it_found_and_what_it_wants(tmp_path):
    (tmp_path / "f.pt").write_bytes(zipped({"net": HEAD}))
    flags = ["--image_shape=2,2,1", "--classes=a,b,c", "--mean=.5", "--std=.25", "--licence=MIT"]
    done = command(tmp_path, "f.pt", "out", *flags)
    assert done.returncode == 0 and done.stderr == ""
    for said in ("f.pt: net: a network", "linear", "a, b, c", "2, 2, 1", "0.25", "15 parameters"):
        assert said in done.stdout, done.stdout
    for flags, said in {
        ("--nosuch=1",): "--nosuch=1 is not understood",
        ("--mean=x",): "--mean='x' are no numbers",
        ("--image_shape=2,2",): "is not height,width,channels",
        ("--zoo=cifar10/Linf/Pang2020Boosting",): "features and weights of length one",
    }.items():
        done = command(tmp_path, "f.pt", "out", *flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("torch_import: ") and said in done.stderr
