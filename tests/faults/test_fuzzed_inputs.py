"""Command lines and archives that nobody meant: refused in one line, whatever they are."""

import itertools
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import as_binary, as_python, pack, unpack

from fairmix_jax.data import prepare
from fairmix_jax.lab.schema import Config
from fairmix_jax.runtime import declared
from fairmix_jax.runtime.errors import UsageError
from faults.bench import said_clearly

SHORT, LONG = 10, 300
FORMS = {"binary": as_binary, "python": as_python}
NASTY = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "99999999999999999999", "-0.5", "1.5",
    "", " ", "none", "None", "True", "x", "../..", "/dev/null", "/", "()", "(1,)", "(nan,)", "[]",
    "('a',)", "{}", "{'a': 1}", "((1,),)", "'", '"', "\\", "%s", "{0}", "a=b", ",", ",,", "@", "é",
    "\n", "\t", "\u202e", "\U0001f600", "1,2", "0x10", "1_0", "pgd0", "pgd20@0", "clean,clean",
    "seed=0,1", "a" * 10_000,
)  # fmt: skip


def pytest_generate_tests(metafunc):
    if "fields" in metafunc.fixturenames:
        names = [field.name for field, _ in declared.fields(Config())] + ["rule.name", "no.field"]
        pairs = list(itertools.product(names, NASTY))
        random.Random(metafunc.config.getoption("faults_seed")).shuffle(pairs)
        long = [pytest.param(pairs[n::10], marks=pytest.mark.faults, id=f"{n}") for n in range(10)]
        long = [pytest.param(p.values[0][: LONG // 10], marks=p.marks, id=p.id) for p in long]
        metafunc.parametrize("fields", [pytest.param(pairs[:SHORT], id="short"), *long])


def test_no_value_of_a_field_is_more_than_one_line(fields, server, tmp_path, record_property):
    """The mode needs a sweep, which most of these command lines lack; all of them end here."""
    failures = []
    for name, value in fields:
        flag = f"--config.{name}={value}"
        ended = server.launch(
            "--config=configs/digits.py:smoke", "--mode=sweep", f"--workdir={tmp_path}", flag,
            "--config.sweep=" if name != "sweep" else "--config.total_epochs=0",
        )  # fmt: skip
        wrong = said_clearly(ended)
        record_property(
            "fault", ("command lines", "failed" if wrong else "refused", "values of fields")
        )
        if wrong:
            failures.append(f"{flag[:80]!r}: {wrong}")
    assert not failures, "\n".join(failures)


def edited(content, position, kind, value):
    """Changes bytes at a part of the whole."""
    at = int(position * len(content))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ value]) + content[at + 1 :]
    if kind == "lose":
        return content[:at] + content[at + value :]
    return content[:at] + bytes([value]) * value + content[at:]


EDIT = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["cut", "flip", "lose", "insert"]),
    st.integers(1, 255),
)


def prepared(form, source, folder):
    """Returns the arrays that are made of an archive, `None` if it is refused."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        path = prepare.prepare("cifar10", source=source, data_dir=folder)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
        return None
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "count", [25, pytest.param(500, marks=pytest.mark.faults)], ids=["short", "long"]
)
def test_an_archive_is_read_as_it_was_or_refused(form, count, tmp_path, record_property):
    sound = pack(tmp_path / "sound.tar.gz", FORMS[form]("cifar10"))
    expected, content = prepared(form, sound, tmp_path / "data"), sound.read_bytes()
    outcomes = []

    @settings(max_examples=count)
    @given(st.lists(EDIT, min_size=1, max_size=3))
    def check(edits):
        damaged = content
        for edit in edits:
            damaged = edited(damaged, *edit) or b"\0"
        source = tmp_path / "damaged.tar.gz"
        source.write_bytes(damaged)
        found = prepared(form, source, tmp_path / "data")
        if found is not None:
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
        outcomes.append("refused" if found is None else "the same")

    noted(check, outcomes, record_property, form)
    assert "refused" in outcomes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "count", [25, pytest.param(500, marks=pytest.mark.faults)], ids=["short", "long"]
)
def test_unpacked_files_make_a_sound_data_set_or_are_refused(
    form, count, tmp_path, record_property
):
    """These have no checksums: another pixel cannot be noticed, another shape or label can."""
    files, outcomes = FORMS[form]("cifar10"), []

    @settings(max_examples=count)
    @given(st.sampled_from(sorted(files)), EDIT)
    def check(name, edit):
        source = tmp_path / "source"
        shutil.rmtree(source, ignore_errors=True)
        unpack(source, files | {name: edited(files[name], *edit)})
        found = prepared(form, source, tmp_path / "data")
        if found is not None:
            for split in ("train", "test"):
                images, labels = found[f"{split}_images"], found[f"{split}_labels"]
                assert images.dtype == np.uint8 and images.shape == (len(labels), 32, 32, 3)
                assert labels.min() >= 0 and labels.max() < len(found["class_names"])
        outcomes.append("refused" if found is None else "the same")

    noted(check, outcomes, record_property, f"{form}, unpacked")
    assert "refused" in outcomes


def noted(check, outcomes, record_property, row):
    """Runs a property and notes its outcomes, also where it does not hold."""
    try:
        check()
    except BaseException:
        outcomes.append("failed")
        raise
    finally:
        for outcome in outcomes:
            record_property("fault", ("archives", outcome, row))
