"""What judges the faults: it forgives time and nothing else, and sees what it should."""

import json
import random

import numpy as np
import pytest

from faults.bench import Ended, differing, final, said_clearly, timeless
from faults.damage import BYTES, JSON, damage, fitting
from faults.watch import watched

EVALUATION = {
    "schema": 1, "provenance": {"date": "2026-11-30", "argv": ["launch.py"]},
    "attacks": {
        "square": {
            "average": 0.7, "worst_k": float("nan"), "seconds": 1.2,
            "detail": {"seconds_by_attack": {"square": 1.0}, "curve": [["square", 0.4, 12]]},
        },
    },
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "run" / "evaluation.json", EVALUATION)
    write(tmp_path / "run" / "run.json", {"state_sha256": "abc", "date": "2026-11-30"})
    write(tmp_path / "run" / "checkpoints" / "metadata.json", {"date": "2026-11-30"})
    line = {"step": 5, "loss": 2.5, "images_per_second": 61.0}
    (tmp_path / "run" / "metrics.jsonl").write_text((json.dumps(line) + "\n") * 3)
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "table.md").write_text("| clean | 0.7 |\n| seconds | 1.2 |\n")
    np.savez(tmp_path / "run" / "verdicts.npz", robust=np.ones(5, bool))
    return tmp_path / "run"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_time_is_no_difference(folder):
    before = final(folder)
    slower = json.loads(json.dumps(EVALUATION))
    slower["provenance"]["date"] = "2026-12-01"
    square = slower["attacks"]["square"]
    square["seconds"], square["detail"]["seconds_by_attack"]["square"] = 9.0, 8.0
    square["detail"]["curve"][0][1] = 7.0
    write(folder / "evaluation.json", slower)
    write(folder / "run.json", {"state_sha256": "abc", "date": "2026-12-01"})
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace("61.0", "12.0"))
    table = folder / "report" / "table.md"
    table.write_text(table.read_text().replace("| seconds | 1.2 |", "| seconds | 9.9 |"))
    assert not differing(before, final(folder))


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("evaluation.json", "0.7", "0.8"),
        ("evaluation.json", "12", "11"),
        ("evaluation.json", "average", "averages"),
        ("run.json", "abc", "ab1"),
        ("metrics.jsonl", "2.5", "2.6"),
        ("report/table.md", "0.7", "0.6"),
    ],
)
def test_everything_else_is_a_difference(name, old, new, folder):
    before, path = final(folder), folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert differing(before, final(folder)) == [name]
    path.unlink()
    assert differing(before, final(folder)) == [name]


def test_arrays_and_what_cannot_be_read_are_differences(folder):
    before = final(folder)
    np.savez(folder / "verdicts.npz", robust=np.array([1, 1, 1, 1, 0], bool))
    (folder / "run.json").write_text("{")
    assert differing(before, final(folder)) == ["run.json", "verdicts.npz"]


def test_timeless_keeps_nested_lists():
    assert timeless([{"seconds": 1, "a": [{"b": 2, "compile_seconds": 3}]}]) == [{"a": [{"b": 2}]}]


LINE = "launch.py: run.json holds no JSON; delete it\n"


@pytest.mark.parametrize(
    "ended, wrong",
    [
        (Ended(2, "", LINE), ""),
        (Ended(1, "epoch 1/2", "W1130 run.json is damaged\n" + LINE), ""),
        (Ended(1, "", "Traceback (most recent call last):\n" + LINE), "traceback"),
        (Ended(75, "", LINE), "status 75"),
        (Ended(-11, "", ""), "status -11"),
        (Ended(None, "", LINE), "status None"),
        (Ended(2, "", ""), "no line"),
        (Ended(2, "", "KeyError: 'members'"), "no line"),
        (Ended(2, "", LINE + LINE), "several lines"),
        (Ended(2, "", "launch.py: something is wrong"), "names no file"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_file(ended, wrong):
    said = said_clearly(ended, about=("run.json", "checkpoints/state"))
    assert said.startswith(wrong) and bool(said) == bool(wrong)


@pytest.mark.parametrize("kind", [*BYTES, *JSON])
def test_damage_changes_the_file_and_no_other(kind, folder):
    others = sorted(path for path in folder.rglob("*") if path.is_file())
    path = folder / "evaluation.json"
    kept = {other: other.read_bytes() for other in others if other != path}
    assert kind in fitting(path)
    assert damage(kind, path, random.Random(1), others)
    assert all(other.read_bytes() == content for other, content in kept.items())


def test_damage_that_cannot_be_done_says_so(folder):
    (folder / ".lock").write_text("")
    assert not damage("emptied", folder / ".lock", random.Random(0), [])
    assert not damage("another schema", folder / "run.json", random.Random(0), [])
    assert not set(JSON) & set(fitting(folder / "verdicts.npz"))


def test_opening_is_seen(folder):
    with watched(folder / "run.json") as opened:
        assert opened() is False
        (folder / "run.json").read_text()
        assert opened() is True
    with watched(folder / "nowhere") as opened:
        assert opened() is None
