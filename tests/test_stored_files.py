"""What is written comes back as it was, or is refused in one line that names the file."""

import copy
import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from fairmix_jax import report
from fairmix_jax.classwise import image_verdicts
from fairmix_jax.lab import workdir
from fairmix_jax.report import packed, runs
from fairmix_jax.report.comparable import comparable
from fairmix_jax.runtime import errors, json_files
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import dumps, load, read_json, read_lines, sealed, write_json
from fairmix_jax.training.progress import MetricLog

STUDY = ROOT / "results" / "study_tuning"
MEMBER = "optim.learning_rate=0.1,mixing.name=none"


def refused(call, *arguments):
    """The line of the `UsageError` that a call raises."""
    with pytest.raises(UsageError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    packed.unpack(STUDY, folder)
    return folder


@pytest.fixture
def run(unpacked, tmp_path):
    """A run of an earlier version, whose files have no checksum."""
    for source in (unpacked / MEMBER).iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path


def seal(folder):
    for name in json_files.FILES:
        path = folder / name
        if path.suffix == ".jsonl":
            path.write_text("".join(dumps(sealed(line)) + "\n" for line in read_lines(path)))
        elif path.exists():
            write_json(path, load(path))


def test_content_comes_back_and_is_json_whatever_its_numbers(tmp_path):
    content = {
        "a": [1, 0.1, -1e-300, np.float64(2.5), True, None], "NaN": "NaN, Infinity \\\" \ud800 é",
        "low": -np.inf, "high": np.inf, "none": np.nan, 10: {2: (), 1: "\u2028"},
    }  # fmt: skip
    write_json(tmp_path / "new" / "x.json", content)
    text = (tmp_path / "new" / "x.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    plain = {"10": {"2": [], "1": "\u2028"}, "none": None, "a": [*content["a"]]}
    expected = {k: v for k, v in content.items() if k != 10} | plain
    assert read_json(tmp_path / "new" / "x.json") == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]
    assert read_json(tmp_path / "none.json") is None


def test_every_flipped_bit_is_noticed_or_changes_nothing(run):
    seal(run)
    for name in ("run.json", "metrics.jsonl"):
        path = run / name
        read = read_lines if name == "metrics.jsonl" else load
        text, whole = path.read_bytes(), read(path)
        for place in range(0, len(text), 1 if name == "run.json" else 7):
            path.write_bytes(
                text[:place] + bytes([text[place] ^ (1 << place % 8)]) + text[place + 1 :]
            )
            try:
                found = read(path)
            except UsageError as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:  # a blank, or the name "checksum" itself, of which the rest is as it was
                found = found if isinstance(found, list) else [found]
                before = whole if isinstance(whole, list) else [whole]
                for one, other in zip(found, before, strict=False):
                    assert {k: one.get(k) for k in other if k != "checksum"} == json_files.plain(
                        other
                    )
        path.write_bytes(text)


@pytest.mark.parametrize("name", [n for n in json_files.FILES if n != "sweep.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 300, b"[]", b"3", b"{", b"\xff\xfe", b'{"a": [' * 9]
)
def test_files_that_hold_no_object_are_named_with_the_remedy(name, content, run):
    (run / name).write_bytes(content + b"\n")
    message = refused(runs.find, run)
    assert message.startswith(f"{run / name}") and " is damaged: " in message
    assert message.endswith(json_files.KINDS[name]["remedy"])


def test_files_of_another_schema_and_edited_ones_say_so(run):
    path = run / "evaluation.json"
    seal(run)
    edited = json.loads(path.read_text())
    path.write_text(json.dumps(edited | {"weights": "best"}))
    assert 'if you edited it, delete "checksum" there' in refused(runs.find, run)
    path.write_text(json.dumps(json_files.plain(edited) | {"weights": "best"}))
    assert runs.find(run)[0].evaluation["weights"] == "best"
    path.write_text(json.dumps(json_files.plain(edited) | {"schema": 2}))
    assert refused(runs.find, run) == (
        f"{path} has schema=2, and this version reads 1; use the version that wrote it"
    )


def nodes(content, path=()):
    """The path of every value in JSON data; of a list, that of its first entry."""
    yield path
    inner = content.items() if isinstance(content, dict) else ()
    inner = enumerate(content[:1]) if isinstance(content, list) else inner
    for key, value in inner:
        yield from nodes(value, (*path, key))


def changed(content, path, value):
    if not path:
        return value
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "run.json", "metrics.jsonl"])
def test_wrong_types_and_missing_names_are_read_or_refused(name, run):
    """Of a run without checksums; a report can show what is read, of which every fifth is tried."""
    whole = (run / name).read_text()
    (run / "model.json").unlink()
    content = json.loads(whole.splitlines()[-1] if "jsonl" in name else whole)
    refusals = taken = 0
    for path in nodes(content):
        for value in ("x", {}, None, KeyError):
            if path or value is not KeyError:
                (run / name).write_text(json.dumps(changed(content, path, value)) + "\n")
                try:
                    found = runs.find(run)
                except UsageError as error:
                    assert str(run / name) in str(error) and "\n" not in str(error)
                    refusals += 1
                else:
                    taken += 1
                    for one in comparable(found) if taken % 5 == 0 else ():
                        report._panel(one, {})
    assert refusals > 5 and taken > 5


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_correct", 1), ("class_total", 1), ("average", 0.01)],
)
def test_a_number_that_the_others_contradict_is_noticed_without_a_checksum(field, value, run):
    evaluation = load(run / "evaluation.json")
    result = evaluation["attacks"]["clean"]
    result[field] = [result[field][0] + value, *result[field][1:]] if value == 1 else value
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert "numbers in it contradict each other" in refused(runs.find, run)


def test_shapes_say_what_does_not_fit_and_where():
    shape = {"a": ["int", "K"], "b?": {"*": [["number", "K"]]}, "c?": {"*M": "text|null"}}
    for value, reason in (
        ({"a": [1, 2], "b": {"x": [[1, 2.5], [3, 4]]}, "c": {"y": None}, "z": 1}, ""),
        ({"b": {}}, "it lacks 'a'"),
        ({"a": [1, True]}, "a[1] is True"),
        ({"a": [1], "b": {"x": [[1], [1, 2]]}}, "b.x[1] has 2 entries, not 1"),
        ({"a": [], "b": {"x": {}}}, "b.x is {}"),
        ([], "it is []"),
    ):
        assert json_files.misfit(value, shape) == reason
    both = {"*": {"p": {"*M": "any"}, "q": {"*M": "any"}}}
    assert (
        json_files.misfit({"1": {"p": {"u": 1}, "q": {"u": 2}}, "2": {"p": {}, "q": {}}}, both)
        == ""
    )
    assert json_files.misfit({"1": {"p": {"u": 1}, "q": {"v": 2}}}, both)


def test_damaged_files_that_are_made_anew_do_not_stop_a_run(tmp_path, capsys):
    (tmp_path / "run.json").write_bytes(b"\0" * 100)
    assert workdir.recorded(tmp_path) == {}
    assert "run.json is damaged" in capsys.readouterr().out
    workdir.record(tmp_path, state_sha256="0")
    assert workdir.recorded(tmp_path)["state_sha256"] == "0"


def test_a_log_goes_on_behind_a_line_that_was_cut_short(tmp_path):
    log, names = MetricLog(tmp_path, last_step=0), ("class_a b", "class_a_b")
    for step in (5, 10):
        log.write(step, dict.fromkeys(names, step / 2) | {"gone": np.nan})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = MetricLog(tmp_path, last_step=10)
    assert [line["step"] for line in again.earlier] == [5]
    again.write(10, dict.fromkeys(names, 5.0))
    lines = read_lines(path)
    assert [line["step"] for line in lines] == [5, 10] and lines[0]["gone"] is None
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert {*names} <= set(events.Tags()["scalars"])
    path.write_text(path.read_text().replace("2.5", "3.5"))
    message = refused(lambda: MetricLog(tmp_path, last_step=10))
    assert message.startswith(f"{path}, line 1, is damaged: it does not match its checksum")


def test_a_pack_keeps_checksums_and_notices_a_flipped_digit(run, tmp_path):
    seal(run)
    packed.pack(run, tmp_path.parent / f"{tmp_path.name}-pack")
    pack = tmp_path.parent / f"{tmp_path.name}-pack" / "runs.jsonl"
    packed.unpack(pack.parent, tmp_path.parent / f"{tmp_path.name}-back")
    back = tmp_path.parent / f"{tmp_path.name}-back"
    assert all((back / p.name).read_bytes() == p.read_bytes() for p in run.iterdir())
    text = pack.read_text()
    for digit in list(re.finditer(r"(?<=: )[0-8]", text))[::9]:
        pack.write_text(text[: digit.start()] + "9" + text[digit.end() :])
        assert "checksum" in refused(runs.find, pack.parent)
    for part in (text[: len(text) // 2], "", "[]\n", text.replace('"folder"', '"f"'), text * 2):
        pack.write_text(part)
        assert str(pack) in refused(runs.find, pack.parent)


def test_examples_are_read_whole_or_refused(tmp_path):
    path = tmp_path / "examples.npz"
    image_verdicts.save(path, row=np.arange(3), label=np.arange(3))
    assert image_verdicts.load(path, ("row",))["row"].tolist() == [0, 1, 2]
    text = path.read_bytes()
    for content in (b"", b"\0" * 200, text[:-30], b"x"):
        path.write_bytes(content)
        assert str(path) in refused(image_verdicts.load, path, ("row", "label"))
    for place in range(len(text)):
        path.write_bytes(text[:place] + bytes([text[place] ^ 4]) + text[place + 1 :])
        try:
            assert image_verdicts.load(path, ("row",))["row"].tolist() == [0, 1, 2]
        except UsageError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    path.write_bytes(text)
    assert "examples.npz is damaged" in refused(image_verdicts.load, path, ("row", "image"))


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_json(path, {"a": "x" * 100_000})
        with pytest.raises(OSError) as of_arrays:
            image_verdicts.save(tmp_path / "y.npz", a=np.random.default_rng(0).random(9_999))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert errors.told(caught.value)[0].startswith(f"{path}: File too large; make room")
    assert str(tmp_path / "y.npz") in errors.told(of_arrays.value)[0]
    with pytest.raises(OSError) as full:
        with json_files.whole(Path("/dev/full"), appends=True) as file:
            file.write(b"x")
    assert errors.told(full.value) == (
        "/dev/full: No space left on device; make room, and run the same command again", 1
    )  # fmt: skip
    assert load(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("file/run", "Not a directory"), ("file", "no folder"), ("nowhere", "no folder"),
        ("circle/run", "Too many levels of symbolic links"), ("x" * 300, "File name too long"),
        ("folder", "Is a directory"),
    ],
)  # fmt: skip
def test_what_is_no_place_for_files_is_one_line(target, reason, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "not" / "there")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        json_files.write_text(tmp_path / target / "x", "")
    line, status = errors.told(caught.value)
    assert reason in line and status == errors.EXIT_USAGE and "give another path" in line


def test_commands_end_with_that_line(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "fairmix_jax.report.packed", "unpack", str(STUDY)]
    done = subprocess.run(
        [*command, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("packed: ")
    assert len(done.stderr.splitlines()) == 1 and "It is no folder" in done.stderr
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "a\nb" / "runs.jsonl").touch()
    done = subprocess.run(
        [*command[:-1], tmp_path / "a\nb", tmp_path / "c"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "it is empty" in done.stderr
    launch = [sys.executable, "launch.py", "--config=digits:smoke", "--compilation_cache="]
    done = subprocess.run(
        [*launch, f"--workdir={tmp_path / 'file'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.endswith("give another --workdir\n")
    assert len(done.stderr.splitlines()) == 1 and "cannot be written" in done.stderr


def test_errors_of_other_kinds_are_not_taken_for_those_of_files():
    for error in (ValueError("x"), OSError(errno.EINVAL, "x"), ConnectionResetError(104, "x")):
        assert errors.told(error)[0] == ""


def test_runs_are_found_behind_links_and_brackets_and_once(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    odd = place / "rule.weights=[1,2],a*?" / "b c"
    odd.mkdir(parents=True)
    for path in run.iterdir():
        (odd / path.name).write_bytes(path.read_bytes())
    (place / "back").symlink_to(place)
    linked = tmp_path_factory.mktemp("linked")
    (linked / "run").symlink_to(odd)
    (found,) = runs.find(place)
    assert found.path == odd
    (other,) = runs.find(linked)
    assert other[1:] == found[1:] and other.path.resolve() == odd.resolve()
    assert runs.find(Path(os.fsdecode(os.fsencode(place)))) == [found]
