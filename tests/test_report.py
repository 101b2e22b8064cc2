"""Reports over runs made here from chosen counts."""

import html
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from fairmix_jax import report
from fairmix_jax.classwise import image_verdicts, intervals, metrics
from fairmix_jax.report import differences, packed, runs
from fairmix_jax.report.comparable import comparable
from fairmix_jax.runtime import json_files
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError

LABELS = np.repeat([0, 1], 100)


def make_result(correct, classes=("a", "b")):
    """A result in which the first so many images of each class are right."""
    right = np.concatenate([np.arange(100) < count for count in correct])
    result = metrics.result([100, 100], correct, classes, seconds=1.0)
    found = image_verdicts.Verdicts(np.where(right, LABELS, 1 - LABELS), np.full(200, 0.75), right)
    return (
        result
        | image_verdicts.details(LABELS, found, 2)
        | {"verdicts": image_verdicts.pack(LABELS, right, 2)}
    )


def make_detail():
    """What AutoAttack says of an evaluation in which its first member broke all but 20 images."""
    names = ("clean", "apgd-ce")
    numbers = ("seconds_by_attack", "forward_passes_per_image", "gradient_passes_per_image")
    return {name: dict.fromkeys(names, 1.0) for name in numbers} | {
        "broken_by": {"clean": [0, 0], "apgd-ce": [90, 90]}, "confusion": [[10, 90], [90, 10]],
        "curve": [["clean", 0.0, 200], ["apgd-ce", 1.0, 20]], "non_finite": 0, "notes": [],
    }  # fmt: skip


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
        "attacks": {"clean": make_result((90, 80)), "pgd20": make_result(correct)},
        "images_sha256": "0",
    } | changes
    provenance = {
        "argv": ["launch.py", "--config=<x>"], "processor": "p", "device": "d",
        "versions": {"jax": "1"}, "date": "2026-11-23", "commit": "abc",
    }  # fmt: skip
    for name, content in (("config", config), ("evaluation", evaluation), ("run", provenance)):
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def study(tmp_path):
    for seed, (none, same) in enumerate([((80, 40), (78, 46)), ((82, 44), (80, 48))]):
        make_run(tmp_path / f"none{seed}", seed, "none", none)
        make_run(tmp_path / f"same{seed}", seed, "same_class", same)
    return tmp_path


def table_rows(text, start):
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_headlines_have_means_intervals_boundary_errors_and_rho(study):
    report.write(study, [study], show=False)
    rows = table_rows((study / "report" / "table.md").read_text(), "| pgd20")
    average = metrics.over_seeds([100, 100], [[80, 40], [82, 44]], "average")
    worst = metrics.over_seeds([100, 100], [[80, 40], [82, 44]], "worst_class")
    low, middle, high = (f"{100 * value:.1f}" for value in worst)
    assert rows[0][:3] == ["pgd20", "mixing=none", "2"]
    assert rows[0][3].startswith("61.5 [") and f"{100 * average.low:.1f}" in rows[0][3]
    assert rows[0][4:6] == ["42.0 (b)", f"{middle} [{low}, {high}]"]
    # worst 2 of 2 classes is the average; gap 39; clean 85 less 61.5
    assert rows[0][6:8] == ["61.5", "39.0"] and rows[0][10] == "23.5"
    # worst class 47 against 42, average 63 against 61.5
    assert rows[1][11] == f"{5 / 42 + 1.5 / 61.5:+.2f}" and rows[0][11] == "–"


def outcome_of(folder):
    report.write(folder, [folder], show=False)
    return (folder / "report" / "table.md").read_text().split("\n\n")[0]


LEVELS = (
    "Under pgd20 'mixing=none' classifies 61.5 % of the test images correctly, and 42.0 % of its "
)


def test_the_outcome_is_said_in_words_first(study):
    said = outcome_of(study)
    assert said.startswith(
        f"{LEVELS}worst class, b. 'mixing=same_class' changes the worst class by "
    )
    assert re.search(
        r"by \+5\.0 points \[[-+.\d]+, [-+.\d]+\], which is not significant \(p = \d\.\d+\)\.$",
        said,
    )
    assert said in html.unescape((study / "report" / "index.html").read_text())


def test_the_outcome_counts_which_methods_are_better_and_worse(study):
    for seed, none in enumerate([(80, 40), (82, 44)]):
        better, worse = ((80, 80), (82, 84)), ((80, 5), (82, 9))
        make_run(study / f"better{seed}", seed, "better", better[seed])
        make_run(study / f"worse{seed}", seed, "worse", worse[seed])
        make_run(study / f"alike{seed}", seed, "alike", none)
    said = outcome_of(study).partition("worst class, b. ")[2]
    assert said == (
        "Of the 4 methods compared with it, 'mixing=better' has a significantly better worst "
        "class, and 'mixing=worse' has a significantly worse one."
    )


def test_the_outcome_of_one_seed_is_of_networks_and_of_one_method_has_no_comparison(tmp_path):
    make_run(tmp_path / "one", 0, "none", (80, 40))
    assert outcome_of(tmp_path).startswith("Under pgd20 the model classifies 60.0 % of the test")
    make_run(tmp_path / "two", 0, "same_class", (80, 45))
    assert outcome_of(tmp_path).endswith(
        ". This compares the trained networks of one seed; to compare the methods, train at least "
        "three."
    )
    text = (tmp_path / "report" / "table.md").read_text()
    assert "Where seeds is 1, the intervals do not cover what another seed would give." in text


def test_the_terminal_gets_four_columns_and_a_verdict_within_80_columns(study, monkeypatch):
    narrow = Console(width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(report, "console", narrow)
    report.write(study, [study])
    lines = narrow.export_text().splitlines()
    assert max(map(len, lines[:-2])) <= 80  # the last two are paths
    (row,) = (line for line in lines if "pgd20" in line and "mixing=none" in line and "│" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert len(cells) == 4 and cells[2].startswith("61.5 [") and cells[3] == "42.0 (b)"
    assert "not significant" in " ".join(lines)


def test_confidence_is_shown_class_by_class(study):
    """All are 75 % sure; class b is right in 40 and 44 of 100 images under attack."""
    report.write(study, [study], show=False)
    text = (study / "report" / "table.md").read_text().split("Mean confidence less")[1]
    rows = {row[0]: row[1:] for row in table_rows(text, "| ")}
    column = rows["class"].index("pgd20: mixing=none")
    assert rows["b"][column] == "+33.0" and rows["a"][column] == "-6.0"
    assert rows["ECE"][column] == "13.5"  # one bin: 75 less 61.5


def test_end_of_training_is_shown_of_runs_that_have_it(study):
    names = [f"val_{k}/{n}" for k in ("clean", "robust") for n in ("average", "worst_class", "gap")]
    lasts = [(0.8, 0.5, 0.4, 0.6, 0.2, 0.7), (0.9, 0.7, 0.3, 0.7, 0.1, 0.8)]
    for seed, last in enumerate(lasts):
        first = {"epoch": 2, "train/gap": 0.5} | dict.fromkeys(names, 0.3)
        lines = [first, {"epoch": 4} | dict(zip(names, last, strict=True)), {"epoch": 5}]
        (study / f"same{seed}" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report.write(study, [study], show=False)
    text = (study / "report" / "table.md").read_text().split("The end of training")[1]
    (row,) = table_rows(text, "| mixing")
    assert row == "mixing=same_class 2 4 – – – 85.0 60.0 35.0 65.0 15.0 75.0".split()


def test_differences_are_paired_by_seed_and_adjusted(study):
    report.write(study, [study], show=False)
    rows = table_rows((study / "report" / "table.md").read_text(), "| pgd20")[2:]
    (compared,) = comparable(runs.find(study))
    pairs = {pair.attack: pair for pair in differences.against_first(compared)}
    worst = pairs["pgd20"].differences["worst_class"]
    assert worst.interval.estimate == pytest.approx(0.05)  # 46, 48 less 40, 44: 6 and 4
    assert pairs["pgd20"].adjusted["worst_class"] >= worst.p_value
    assert rows[0][:3] == ["pgd20", "mixing=same_class", "2"] and rows[0][5].startswith("+5.0 [")


def test_data_drawn_at_random_are_compared_but_not_paired(study):
    """Runs of one method then have images of their own, as on the two Gaussians."""
    for number, path in enumerate(study.glob("*/evaluation.json")):
        path.write_text(path.read_text().replace('"0"', f'"{number}"'))
        config = path.with_name("config.json")
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"data": {"draw": content["seed"]}}))
    (compared,) = comparable(runs.find(study))
    assert [len(method.runs) for method in compared.methods] == [2, 2]
    assert differences.against_first(compared) == []


def test_two_runs_of_one_seed_are_refused(study):
    make_run(study / "z_copy", 0, "none", (80, 40))
    with pytest.raises(UsageError, match="are both seed=0 of mixing=none; report one"):
        report.write(study, [study], show=False)


def test_runs_evaluated_otherwise_are_methods_of_their_own(study):
    for number, path in enumerate(sorted(study.glob("none*/evaluation.json"))):
        evaluation = json.loads(path.read_text()) | {"settings": {"num_restarts": 1 + number}}
        path.write_text(json.dumps(evaluation))
    (compared,) = comparable(runs.find(study))
    assert [len(method.runs) for method in compared.methods] == [1, 1, 2]
    assert "evaluate.num_restarts=2" in compared.methods[1].label


def test_the_calibration_is_that_of_the_evaluation_not_of_the_config(tmp_path):
    """Which names it before it is done; a file's own is known to the evaluation only."""
    done = {"of_sha256": "0", "offsets": [0.1, -0.1], "name": "class_bias", "t": 0.5}
    make_run(tmp_path / "asked", 0, "none", (80, 40))
    make_run(tmp_path / "done", 0, "same_class", (80, 40), calibration=done)
    config = json.loads((tmp_path / "asked" / "config.json").read_text())
    config["calibration"] = {"name": "class_bias", "t": 1.0}
    (tmp_path / "asked" / "config.json").write_text(json.dumps(config))
    asked, did = runs.find(tmp_path)
    assert comparable([asked])[0].methods[0].label == "pgd_at"
    (method,) = comparable([did])[0].methods
    assert method.label == "pgd_at, mixing=same_class, calibration=class_bias"
    assert did.config["calibration.t"] == 0.5 and "calibration.offsets" not in did.config
    arms = {"plain": "calibration.name=none", "fitted": "calibration.name=class_bias"}
    assert [runs.arm(run.config, runs.arm_fields(arms)) for run in (asked, did)] == [*arms]
    arms = runs.arm_fields({"any": "base.name=pgd_at"})
    assert [runs.arm(run.config, arms) for run in (asked, did)] == ["any", "any class_bias"]
    packed.pack(tmp_path / "asked", tmp_path / "packed")
    assert runs.find(tmp_path / "packed")[0].config == asked.config


def test_a_copy_inside_of_a_run_is_not_in_the_runs_own_report(tmp_path):
    make_run(tmp_path / "run", 0, "none", (80, 40))
    make_run(tmp_path / "run" / "old", 0, "none", (80, 40))
    with pytest.raises(UsageError, match="are both seed=0"):
        comparable(runs.find(tmp_path / "run"))
    (own,) = runs.find(tmp_path / "run", alone=True)
    assert own.path == tmp_path / "run"


def test_where_runs_were_launched_makes_no_method(study):
    for number, path in enumerate(sorted(study.glob("none*/config.json"))):
        config = json.loads(path.read_text()) | {"launch": {"minutes": 60 + number}}
        path.write_text(json.dumps(config))
    (compared,) = comparable(runs.find(study))
    assert [len(method.runs) for method in compared.methods] == [2, 2]


def test_a_run_without_an_attack_leaves_the_others(study):
    path = study / "none1" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    del evaluation["attacks"]["pgd20"]
    path.write_text(json.dumps(evaluation))
    report.write(study, [study], show=False)
    rows = table_rows((study / "report" / "table.md").read_text(), "| pgd20")
    assert rows[0][2] == "1 of 2" and rows[0][3].startswith("60.0 [")
    assert rows[2][2] == "1"  # one pair is left


def test_grids_keep_their_order_and_so_their_baseline(study):
    states = {
        "members": {name: {"status": "done"} for name in ("same0", "same1", "none0", "none1")}
    }
    (study / "sweep.json").write_text(json.dumps(states))
    (compared,) = comparable(runs.find(study))
    assert [method.label for method in compared.methods] == ["mixing=same_class", "mixing=none"]


def test_main_attack_is_what_most_methods_have(study):
    detail = {"detail": make_detail()}
    attacks = {"clean": make_result((90, 80)), "autoattack": make_result((10, 10)) | detail}
    make_run(study / "z_cross", 0, "cross_class", (10, 10), attacks=attacks)
    (compared,) = comparable(runs.find(study))
    assert compared.main_attack == "pgd20"
    (only,) = comparable(runs.find(study / "z_cross"))
    assert only.main_attack == "autoattack"
    few = metrics.result([5, 5], [3, 2], ("a", "b"), seconds=1.0) | detail
    attacks |= {"autoattack": few, "pgd20": make_result((10, 10))}
    make_run(study / "of_subset", 0, "cross_class", (10, 10), attacks=attacks)
    (only,) = comparable(runs.find(study / "of_subset"))
    assert only.main_attack == "pgd20"  # of all images


def test_page_is_one_file_and_escapes_what_it_shows(study):
    report.write(study, [study], show=False)
    page = (study / "report" / "index.html").read_text()
    assert "--config=&lt;x&gt;" in page and "<x>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page.split("<script>")[0])
    assert (study / "report" / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_single_run_shows_intervals_over_test_images(tmp_path):
    make_run(tmp_path / "one", 0, "none", (80, 40))
    report.write(tmp_path / "one", [tmp_path / "one"], show=False)
    table = (tmp_path / "one" / "report" / "table.md").read_text()
    low, high = intervals.worst_class([100, 100], [80, 40])[::2]
    assert f"40.0 [{100 * low:.1f}, {100 * high:.1f}]" in table


@pytest.mark.parametrize(
    "changes",
    [
        dict(dataset="mnist"),
        dict(classes=["a", "c"]),
        dict(threat={"norm": "linf", "epsilon": 0.1}),
        dict(threat={"norm": "l2", "epsilon": 0.2}),
        dict(images_sha256="1"),
        dict(attacks={"pgd20": metrics.result([50, 50], [40, 20], ["a", "b"], seconds=1.0)}),
    ],
)
def test_runs_that_cannot_be_compared_stand_apart(changes, study):
    (before,) = comparable(runs.find(study))
    make_run(study / "z_other", 2, "none", (10, 10), **changes)
    first, other = comparable(runs.find(study))
    assert first.methods == before.methods and [len(m.runs) for m in other.methods] == [1]
    assert first.title != other.title
    report.write(study, [study], show=False)
    text = (study / "report" / "table.md").read_text()
    assert text.count("\n## ") + text.startswith("## ") == 2
    rows = table_rows(text, "| pgd20")
    assert [row[2] for row in rows] == ["2", "2", "2", "1"]
    assert rows[0][3].startswith("61.5")


def test_seeds_are_never_averaged_with_other_weights(study):
    make_run(study / "z_last", 0, "none", (10, 10), weights="last")
    (compared,) = comparable(runs.find(study))
    assert [method.label for method in compared.methods] == [
        "mixing=none, weights=best", "mixing=same_class, weights=best", "mixing=none, weights=last",
    ]  # fmt: skip


def test_missing_attacks_are_shown_as_missing(study):
    attacks = {"clean": make_result((90, 80)), "autoattack": make_result((10, 10))}
    make_run(study / "z_cross", 0, "cross_class", (10, 10), attacks=attacks)
    report.write(study, [study], show=False)
    text = (study / "report" / "table.md").read_text()
    missing = [row for row in table_rows(text, "| ") if "not evaluated" in row]
    assert [row[:2] for row in missing] == [
        ["pgd20", "mixing=cross_class"],
        ["autoattack", "mixing=none"],
        ["autoattack", "mixing=same_class"],
    ]
    assert all(set(row[3:]) == {"–"} for row in missing)


def test_arguments_of_a_member_tell_apart_only_its_own_methods(tmp_path):
    for number, base in enumerate(
        [{"name": "pgd_at"}, {"name": "trades", "beta": 6.0}, {"name": "trades", "beta": 1.0}]
    ):
        path = make_run(tmp_path / str(number), 0, "none", (80, 40))
        config = json.loads((path / "config.json").read_text()) | {"base": base}
        (path / "config.json").write_text(json.dumps(config))
    (compared,) = comparable(runs.find(tmp_path))
    assert [method.label for method in compared.methods] == [
        "base=pgd_at", "base=trades, base.beta=6.0", "base=trades, base.beta=1.0",
    ]  # fmt: skip


def test_a_method_without_rivals_is_labelled_by_its_members(tmp_path):
    make_run(tmp_path / "plain", 0, "none", (80, 40))
    make_run(tmp_path / "mixed", 0, "same_class", (80, 40))
    labels = [comparable([run])[0].methods[0].label for run in runs.find(tmp_path)]
    assert sorted(labels) == ["pgd_at", "pgd_at, mixing=same_class"]


def test_evaluations_without_verdicts_still_make_a_report(study):
    """Those of an earlier version: no differences, no confusion, the same headlines."""
    report.write(study, [study], show=False)
    new = table_rows((study / "report" / "table.md").read_text(), "| pgd20")[:2]
    for path in study.glob("*/evaluation.json"):
        evaluation = json.loads(path.read_text())
        for result in evaluation["attacks"].values():
            for field in ("verdicts", "confusion", "calibration"):
                del result[field]
        path.write_text(json.dumps(evaluation))
    report.write(study, [study], show=False)
    assert table_rows((study / "report" / "table.md").read_text(), "| pgd20") == new


def test_failed_members_are_listed(study):
    states = {"members": {"none0": {"status": "done"}, "x": {"status": "failed", "error": "<E>"}}}
    (study / "sweep.json").write_text(json.dumps(states))
    report.write(study, [study], show=False)
    assert "x: failed: &lt;E>" in (study / "report" / "table.md").read_text()
    assert "x</b>: failed: &lt;E&gt;" in (study / "report" / "index.html").read_text()


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(UsageError, match="there is no evaluated run"):
        report.write(tmp_path, [tmp_path], show=False)


def test_a_log_of_training_that_has_changed_is_said_to_have(tmp_path):
    """Cut short at a line's end, or another run's; not where it was only packed and unpacked."""
    make_run(tmp_path / "run", 0, "none", (80, 40))
    lines = [{"epoch": number, "loss": 1.0 / number} for number in (1, 2)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    provenance = {"argv": [], "state_sha256": "0", "metrics_sha256": json_files.digest_of(lines)}
    (tmp_path / "run" / "run.json").write_text(json.dumps(provenance))

    def said(changed):
        (tmp_path / "run" / "metrics.jsonl").write_text(changed)
        with console.capture() as told:
            runs.find(tmp_path / "run")
        return "is not as training left it" in " ".join(told.get().split())

    assert not said(text)
    assert said(text.splitlines(keepends=True)[0]) and said(text.replace("1.0", "2.0"))
    assert not said(text)
    packed.pack(tmp_path / "run", tmp_path / "packed")
    packed.unpack(tmp_path / "packed", tmp_path / "again")
    for folder in ("packed", "again"):
        with console.capture() as told:
            runs.find(tmp_path / folder)
        assert "training left it" not in told.get()


@pytest.mark.parametrize("what", ["folder", "dead link"])
def test_what_is_no_file_in_place_of_an_evaluation_is_said(what, study):
    """The other runs would make another report without a word."""
    path = study / "none1" / "evaluation.json"
    path.unlink()
    path.mkdir() if what == "folder" else path.symlink_to(study / "nowhere")
    with pytest.raises(UsageError, match=r"none1/evaluation.json is damaged: it is no file"):
        runs.find(study)


@pytest.mark.parametrize("images", [("0", "0", "0"), ("0", "1", "2")])
def test_each_draw_of_data_is_a_pair_of_its_own(images, tmp_path):
    """Pairs need the same images, so of draws that differ in them there are no differences."""
    ours, theirs = (60, 50, 40), (70, 40, 45)
    for draw in range(3):
        for name, right in (("none", ours[draw]), ("same_class", theirs[draw])):
            folder = tmp_path / f"{name}{draw}"
            changes = {"dataset": "gaussian", "images_sha256": images[draw]}
            make_run(folder, 0, name, (80, right), **changes)
            config = json.loads((folder / "config.json").read_text())
            config["data"] = {"name": "gaussian", "draw": draw}
            (folder / "config.json").write_text(json.dumps(config))
    (every,) = comparable(runs.find(tmp_path))
    rows = [row for row in differences.against_first(every) if row.attack == "pgd20"]
    if len({*images}) > 1:
        assert rows == []
        return
    (row,) = rows
    assert row.seeds == 3
    found = row.differences["worst_class"].interval.estimate
    assert found == pytest.approx(np.mean(np.subtract(theirs, ours)) / 100)
