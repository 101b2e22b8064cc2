"""Reports over runs made here from chosen counts."""

import json
import re

import pytest

from fairmix_jax import intervals, metrics, report
from fairmix_jax.errors import UsageError


def make_run(path, seed, mixing, correct, **changes):
    """A finished run with these class counts under attack."""
    path.mkdir(parents=True)
    config = {"seed": seed, "mixing": {"name": mixing}, "base": {"name": "pgd_at"}}
    evaluation = {
        "schema": 1,
        "dataset": "digits",
        "classes": ["a", "b"],
        "threat": {"norm": "linf", "epsilon": 0.2},
        "weights": "best",
        "attacks": {"pgd20": metrics.result([100, 100], correct, ["a", "b"], seconds=1.0)},
    } | changes
    provenance = {
        "argv": ["launch.py", "--config=<x>"], "processor": "p", "device": "d",
        "versions": {"jax": "1"}, "date": "2026-11-23", "commit": "abc",
    }  # fmt: skip
    for name, content in (("config", config), ("evaluation", evaluation), ("run", provenance)):
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def runs(tmp_path):
    for seed, (none, same) in enumerate([((80, 40), (78, 46)), ((82, 44), (80, 48))]):
        make_run(tmp_path / f"none{seed}", seed, "none", none)
        make_run(tmp_path / f"same{seed}", seed, "same_class", same)
    return tmp_path


def test_table_has_means_intervals_and_paired_differences(runs):
    report.write(runs, [runs], show=False)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (runs / "report" / "table.md").read_text().splitlines()
        if line.startswith("| pgd20")
    ]
    # average (60, 63): mean 61.5, t(0.975, 1) = 12.706 times sd 2.1213 / sqrt(2)
    assert rows[0] == [
        "pgd20",
        "mixing=none",
        "2",
        "61.5 ± 19.1",
        "42.0 ± 25.4",
        "39.0 ± 12.7",
    ]
    # worst class 46, 48 against 40, 44: differences 6, 4: mean 5, 12.706 * 1
    assert rows[2][:3] == ["pgd20", "difference", "2"] and rows[2][4] == "+5.0 ± 12.7"


def test_page_is_one_file_and_escapes_what_it_shows(runs):
    report.write(runs, [runs], show=False)
    page = (runs / "report" / "index.html").read_text()
    assert "--config=&lt;x&gt;" in page and "<x>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert (runs / "report" / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_single_run_shows_intervals_over_test_images(tmp_path):
    make_run(tmp_path / "one", 0, "none", (80, 40))
    report.write(tmp_path / "one", [tmp_path / "one"], show=False)
    table = (tmp_path / "one" / "report" / "table.md").read_text()
    low, high = intervals.worst_class([100, 100], [80, 40])[::2]
    assert f"40.0 [{100 * low:.1f}, {100 * high:.1f}]" in table


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dataset="mnist"), "dataset 'mnist'"),
        (dict(classes=["a", "c"]), "classes"),
        (dict(threat={"norm": "linf", "epsilon": 0.1}), "threat"),
        (dict(attacks={}), "different attacks"),
    ],
)
def test_runs_that_cannot_be_compared_are_not(changes, message, runs):
    make_run(runs / "other", 2, "none", (80, 40), **changes)
    with pytest.raises(UsageError, match=message):
        report.write(runs, [runs], show=False)


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(UsageError, match="there is no evaluated run"):
        report.write(tmp_path, [tmp_path], show=False)
