"""The command line as a user meets it: real processes, exit statuses, files."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from fairmix_jax.data import digits
from fairmix_jax.export import load_model

TINY = [
    "--config=configs/digits.py:smoke",
    "--config.model.width=8",
    "--config.attack.num_steps=2",
    "--config.validation.num_steps=2",
    "--config.checkpoint.every_epochs=1",
    "--config.batch_size=40",
]


def command(*arguments):
    return [sys.executable, "launch.py", *arguments]


def launch(*arguments, **environment):
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=os.environ | {"TFDS_DATA_DIR": ""} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = launch(*TINY, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_workdir_holds_every_file_of_the_contract(finished):
    workdir, _ = finished
    for name in (
        "config.json", "run.json", "metrics.jsonl", "checkpoints", "evaluation.json",
        "model.safetensors", "model.json", "report/index.html", "report/table.md",
        "report/classes.png",
    ):  # fmt: skip
        assert (workdir / name).exists(), name
    assert list(workdir.glob("events.out.tfevents.*"))
    run = json.loads((workdir / "run.json").read_text())
    assert {"versions", "device", "argv", "commit", "date", "state_sha256"} <= set(run)


def test_evaluation_follows_the_contract(finished):
    evaluation = json.loads((finished[0] / "evaluation.json").read_text())
    assert evaluation["schema"] == 1 and evaluation["classes"] == list("0123456789")
    assert evaluation["threat"] == {"norm": "linf", "epsilon": 0.2}
    assert list(evaluation["attacks"]) == ["clean", "pgd20"]
    for result in evaluation["attacks"].values():
        assert result["class_total"] == [20] * 10
        assert all(0 <= c <= 20 for c in result["class_correct"])
        low, high = result["ci95"]["average"]
        assert 0 <= low <= result["average"] <= high <= 1


def test_log_is_readable_without_a_terminal(finished):
    _, log = finished
    assert re.search(r"compiled the training step in [\d.]+ s", log)
    assert re.search(r"epoch 2/2  loss [\d.]+  val clean .*robust .*images/s", log)
    assert "\x1b" not in log and "report:" in log


def test_tensorboard_reads_the_curves(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0]))
    events.Reload()
    assert len(events.Scalars("loss")) == 2


def test_exported_model_gives_the_reported_accuracy(finished):
    logits_fn, card = load_model(finished[0])
    evaluation = json.loads((finished[0] / "evaluation.json").read_text())
    test = digits.make().test
    images = jnp.asarray(test.images, jnp.float32) / 255
    correct = np.asarray(jnp.argmax(jax.jit(logits_fn)(images), axis=1) == test.labels)
    expected = evaluation["attacks"]["clean"]["class_correct"]
    first = [np.flatnonzero(test.labels == c)[:20] for c in range(10)]
    assert [int(correct[rows].sum()) for rows in first] == expected
    assert card["classes"] == list("0123456789")


def test_evaluate_mode_needs_only_the_workdir(finished):
    workdir, _ = finished
    before = (workdir / "evaluation.json").read_text()
    result = launch(
        "--mode=evaluate", f"--workdir={workdir}", "--config.evaluate.attacks=clean,pgd3"
    )
    assert result.returncode == 0, result.stderr
    attacks = json.loads((workdir / "evaluation.json").read_text())["attacks"]
    assert list(attacks) == ["clean", "pgd3"]
    assert (
        attacks["clean"]["class_correct"] == json.loads(before)["attacks"]["clean"]["class_correct"]
    )
    (workdir / "evaluation.json").write_text(before)


def test_report_mode_compares_workdirs(finished, tmp_path):
    result = launch("--mode=report", f"--workdir={tmp_path}", str(finished[0]))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report" / "index.html").exists()


def test_finished_run_is_not_repeated(finished):
    workdir, _ = finished
    result = launch(*TINY, f"--workdir={workdir}")
    assert result.returncode == 0 and "compiled" not in result.stdout
    assert "report:" in result.stdout


def start_and_wait_for_lines(arguments, path, lines):
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.time() + 240
    while not (path.exists() and len(path.read_text().splitlines()) >= lines):
        assert process.poll() is None and time.time() < deadline, process.stderr.read()
        time.sleep(0.02)
    return process


def final_sha256(workdir):
    return json.loads((workdir / "run.json").read_text())["state_sha256"]


def test_killed_at_a_random_moment_and_run_again_ends_in_the_same_state(tmp_path):
    long = [*TINY, "--config.total_epochs=12"]
    assert launch(*long, f"--workdir={tmp_path / 'whole'}").returncode == 0
    parts = [*long, f"--workdir={tmp_path / 'parts'}"]
    process = start_and_wait_for_lines(
        parts, tmp_path / "parts" / "metrics.jsonl", random.randint(1, 8)
    )
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert "state_sha256" not in json.loads((tmp_path / "parts" / "run.json").read_text())
    assert launch(*parts).returncode == 0
    assert final_sha256(tmp_path / "parts") == final_sha256(tmp_path / "whole")
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 13))


def test_a_killed_sweep_goes_on_and_a_broken_member_does_not_stop_the_others(tmp_path):
    """The sweep of `configs/digits_study.py` in small, one of its members with an unknown base."""
    members = [f"base.name={base},seed={seed}" for base in ("pgd_at", "nope") for seed in (0, 1)]
    sweep = [
        *TINY, "--mode=sweep", f"--workdir={tmp_path}", "--config.total_epochs=6",
        "--config.sweep=base.name=pgd_at,nope seed=0,1",
    ]  # fmt: skip
    process = start_and_wait_for_lines(sweep, tmp_path / members[1] / "metrics.jsonl", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    first = (tmp_path / members[0] / "evaluation.json").stat().st_mtime_ns
    took = json.loads((tmp_path / "sweep.json").read_text())["members"][members[0]]["seconds"]

    result = launch(*sweep)
    assert result.returncode == 1 and "2 of 4 members failed" in result.stderr
    assert "members failed" in result.stderr.splitlines()[-1]
    assert "resuming at step" in result.stdout
    assert (tmp_path / members[0] / "evaluation.json").stat().st_mtime_ns == first
    states = json.loads((tmp_path / "sweep.json").read_text())["members"]
    assert [states[name]["status"] for name in members] == ["done", "done", "failed", "failed"]
    assert states[members[0]]["seconds"] == took > 0  # not those of finding it done
    assert "base.name='nope' is unknown" in states[members[2]]["error"]
    assert "Traceback" in (tmp_path / members[2] / "error.txt").read_text()
    table = (tmp_path / "report" / "table.md").read_text()
    assert (
        "base.name=nope,seed=0: failed: UsageError" in table and "| pgd20 | pgd_at | 2 |" in table
    )

    for name in ("sweep", "nothing"):
        mistake = launch(*TINY, "--mode=sweep", f"--workdir={tmp_path / name}", *{
            "sweep": ["--config.sweep=base.xname=pgd_at"], "nothing": []}[name])  # fmt: skip
        assert mistake.returncode == 2 and not (tmp_path / name).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits_75(number, tmp_path):
    arguments = [*TINY, "--config.total_epochs=2000", f"--workdir={tmp_path}"]
    process = start_and_wait_for_lines(arguments, tmp_path / "metrics.jsonl", 1)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "run the same command to go on" in error and error.count("\n") == 1
    assert list((tmp_path / "checkpoints" / "state").glob("[0-9]*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.nosuch=1"], "nosuch"),
        (["--config.attack.nosuch=1"], "nosuch"),
        (["--config.data.name=nosuch", "--config.data.dir={tmp}"], "data.name='nosuch'"),
        (["--config.model.name=nosuch"], "model.name='nosuch' is unknown; choose one of linear"),
        (["--config.base.name=nosuch"], "base.name='nosuch' is unknown; choose one of"),
        (["--config.attack.epsilon=-0.1"], "attack.epsilon=-0.1"),
        (["--config.batch_size=4096"], "batch_size=4096"),
        (["--config.data.name=cifar10", "--config.data.dir={tmp}/none"], "does not exist"),
        (["--config.attack.num_steps=many"], "many"),
        (["--config.evaluate.attacks=cw"], "evaluate.attacks='cw'"),
        (["--config.sweep=nosuch=1"], "nosuch"),
        (["stray"], "stray"),
        (["--nosuch=1"], "nosuch"),
    ],
)
def test_mistakes_are_one_clear_line_and_status_2(arguments, message, tmp_path):
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    result = launch("--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("launch.py: ")


def test_missing_and_unknown_configs():
    for arguments, message in (
        ([], "--workdir is missing"),
        (["--config=configs/nosuch.py"], "nosuch.py"),
        (["--config=configs/digits.py:smok"], "smok"),
        (["--mode=evaluate", "--workdir=/nowhere"], "/nowhere"),
    ):
        result = launch(*arguments)
        assert result.returncode == 2, arguments
        assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_workdir_of_another_config_is_refused_and_loses_nothing(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    result = launch(*TINY, "--config.attack.epsilon=0.3", f"--workdir={workdir}")
    assert result.returncode == 2
    assert "attack.epsilon=0.2, now 0.3" in result.stderr
    assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize("name", ["cifar10_small", "fashion_mnist", "cifar10"])
def test_smoke_trains_on_real_images(name, tfds_dir, tmp_path):
    arguments = [f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path}"]
    result = launch(*arguments, TFDS_DATA_DIR=tfds_dir)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    totals = evaluation["attacks"]["clean"]["class_total"]
    assert len(totals) == 10 and len(set(totals)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "study_mixing",
        *(pytest.param(n, marks=pytest.mark.slow)
          for n in ("study_theory", "study_rate", "study_strength", "study_cifar10",
                    "study_tuning", "study_accelerator")),
    ],
)  # fmt: skip
def test_studies_run_to_their_report(name, tfds_dir, tmp_path):
    arguments = [f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path}", "--mode=sweep"]
    result = launch(*arguments, TFDS_DATA_DIR=tfds_dir)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "report" / "table.md").read_text()
    tested = [row for row in table_rows(table) if row[-1] in ("holds", "fails", "open")]
    assert bool(tested) == (name not in ("study_cifar10", "study_tuning"))


@pytest.mark.parametrize("name", ["quickstart", "synthetic"])
def test_smoke_without_data(name, tmp_path):
    result = launch(f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "report").glob("*.md")) and list((tmp_path / "report").glob("*.png"))


def table_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_published_theory_is_that_of_the_run(tmp_path):
    result = launch("--config=configs/synthetic.py", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    published = published_rows("docs/theory.md", "<!-- table: synthetic -->")
    found = table_rows((tmp_path / "report" / "theory.md").read_text())
    for ours, theirs in zip(published, found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            number = re.fullmatch(r"([-+\d.]+) ± [\d.]+", a)
            if number:
                assert float(number[1]) == pytest.approx(float(b.split()[0]), abs=0.01)
            else:
                assert a == b


@pytest.mark.slow
def test_published_numbers_are_those_of_the_run(tmp_path):
    """Up to what another processor's rounding can do to a trained model."""
    result = launch("--config=configs/quickstart.py", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "report" / "table.md").read_text().split("\n\n")
    for marker, part in (("quickstart", text[1]), ("quickstart differences", text[3])):
        published = published_rows("README.md", f"<!-- result: {marker} -->")
        found = table_rows(part)
        columns = [found[0].index(name) for name in dict.fromkeys(published[0])]
        unique = [published[0].index(name) for name in dict.fromkeys(published[0])]
        assert len(found) == len(published)
        for ours, theirs in zip(published[2:], found[2:], strict=True):
            for a, b in zip((ours[u] for u in unique), (theirs[c] for c in columns), strict=True):
                if number := re.match(r"([-+\d.]+) [\[(]", a):
                    assert float(number[1]) == pytest.approx(float(b.split()[0]), abs=6.0)


def published_rows(document, marker):
    return table_rows((ROOT / document).read_text().split(marker)[1].split("\n\n")[0])
