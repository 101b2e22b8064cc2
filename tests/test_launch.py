"""The command line as a user meets it: real processes, exit statuses, files."""

import json
import os
import random
import re
import shutil
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
        timeout=1800,  # a study of the slow tests on a busy machine takes more than 600
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
    assert re.search(r"compiling the training step \.\.\.\ncompiled .* in [\d.]+ s", log)
    assert "\npgd20: 200 test images ...\npgd20: average" in log
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


def test_evaluate_mode_needs_only_the_workdir_and_adds_to_what_is_there(finished):
    """What a person does next works: the report, the same again, the run by its folder alone."""
    workdir, _ = finished
    before = (workdir / "evaluation.json").read_text()
    again = ["--mode=evaluate", f"--workdir={workdir}", "--config.evaluate.attacks=clean,pgd3"]
    result = launch(*again)
    assert result.returncode == 0, result.stderr
    assert "evaluation.json: clean, pgd20: kept" in " ".join(result.stdout.split())
    attacks = json.loads((workdir / "evaluation.json").read_text())["attacks"]
    assert list(attacks) == ["clean", "pgd20", "pgd3", "union"]
    earlier = json.loads(before)["attacks"]
    assert attacks["clean"] == earlier["clean"] and attacks["pgd20"] == earlier["pgd20"]
    assert "| pgd20 | " in (workdir / "report" / "table.md").read_text()
    result = launch(*TINY, f"--workdir={workdir}")  # what the run itself wants is there
    assert result.returncode == 0 and "test images ..." not in result.stdout
    after = json.loads((workdir / "evaluation.json").read_text())
    assert list(after["attacks"]) == list(attacks)
    (workdir / "evaluation.json").write_text(before)


def test_report_mode_compares_workdirs_here_whatever_the_backend(finished, tmp_path):
    result = launch("--mode=report", "--backend=ray", f"--workdir={tmp_path}", str(finished[0]))
    assert result.returncode == 0, result.stderr
    assert "--backend=ray is for runs; --mode=report is done here" in result.stdout
    assert (tmp_path / "report" / "index.html").exists()


def test_finished_run_is_not_repeated(finished):
    workdir, _ = finished
    result = launch(*TINY, f"--workdir={workdir}")
    assert result.returncode == 0 and "compiled" not in result.stdout
    assert "report:" in result.stdout


def test_damaged_and_deleted_files_of_the_exported_model_are_written_again(finished, tmp_path):
    """And best weights that are damaged as well are refused, in one line."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    exported = [workdir / name for name in ("model.safetensors", "model.json", "model_card.md")]
    before = exported[0].read_bytes()
    damaged = bytearray(before)
    damaged[-1] ^= 1
    exported[0].write_bytes(damaged)
    exported[2].unlink()
    assert launch(*TINY, f"--workdir={workdir}").returncode == 0
    assert exported[0].read_bytes() == before and exported[2].exists()
    (best,) = (workdir / "checkpoints" / "best").iterdir()
    for path in (best / "checkpoint.npz", *exported):
        path.unlink()
    result = launch(*TINY, f"--workdir={workdir}")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert f"best/{best.name}/checkpoint.npz' is damaged" in result.stderr
    shutil.rmtree(workdir / "checkpoints")  # the remedy that it names
    (workdir / "run.json").unlink()
    assert launch(*TINY, f"--workdir={workdir}").returncode == 0
    assert exported[0].read_bytes() == before and final_sha256(workdir) == final_sha256(finished[0])


@pytest.mark.parametrize("name", ["-a[b]* ?%41'ü日本\"\\{x}#.", "x" * 255])
def test_any_name_of_a_workdir_will_do(name, finished, tmp_path):
    """A run is interrupted there, goes on and is exported: the same bits as in a plain folder."""
    arguments = [*TINY, f"--workdir={tmp_path / name}"]
    process = start_and_wait_for_lines(arguments, tmp_path / name / "metrics.jsonl", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, 75)
    process.stderr.close()
    result = launch(*arguments)
    assert result.returncode == 0, result.stderr
    assert final_sha256(tmp_path / name) == final_sha256(finished[0])
    exported = [path / "model.safetensors" for path in (tmp_path / name, finished[0])]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    logits = [load_model(path.parent)[0](jnp.zeros((1, 8, 8, 1))) for path in exported]
    np.testing.assert_array_equal(*logits)
    result = launch("--mode=evaluate", f"--workdir={tmp_path / name}")
    assert result.returncode == 0, result.stderr


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
    long = [*TINY, "--config.total_epochs=20"]  # so many that no machine is done before the kill
    assert launch(*long, f"--workdir={tmp_path / 'whole'}").returncode == 0
    parts = [*long, f"--workdir={tmp_path / 'parts'}"]
    process = start_and_wait_for_lines(
        parts, tmp_path / "parts" / "metrics.jsonl", random.randint(1, 6)
    )
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert "state_sha256" not in json.loads((tmp_path / "parts" / "run.json").read_text())
    assert launch(*parts).returncode == 0
    assert final_sha256(tmp_path / "parts") == final_sha256(tmp_path / "whole")
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 21))


def test_a_killed_sweep_goes_on_and_a_broken_member_does_not_stop_the_others(tmp_path):
    """The sweep of `digits_study` in small, one of its members with an unknown base."""
    members = [f"base.name={base},seed={seed}" for base in ("pgd_at", "nope") for seed in (0, 1)]
    sweep = [
        *TINY, "--mode=sweep", f"--workdir={tmp_path}", "--config.total_epochs=15",
        "--config.sweep=base.name=pgd_at,nope seed=0,1",
    ]  # fmt: skip
    process = start_and_wait_for_lines(sweep, tmp_path / members[1] / "metrics.jsonl", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    first = (tmp_path / members[0] / "evaluation.json").stat().st_mtime_ns
    took = json.loads((tmp_path / "sweep.json").read_text())["members"][members[0]]["seconds"]

    result = launch(*sweep)
    assert result.returncode == 1 and "2 of 4 runs failed" in result.stderr
    assert "runs failed" in result.stderr.splitlines()[-1]
    assert "resuming at step" in result.stdout
    assert re.search(r"\[2/4\] .*, about \d+:\d\d for all that is left", result.stdout)
    assert (tmp_path / members[0] / "evaluation.json").stat().st_mtime_ns == first
    states = json.loads((tmp_path / "sweep.json").read_text())["members"]
    assert [states[name]["status"] for name in members] == ["done", "done", "failed", "failed"]
    assert states[members[0]]["seconds"] == took > 0  # not those of finding it done
    assert "base.name='nope' is unknown" in states[members[2]]["error"]
    assert "Traceback" in (tmp_path / members[2] / "error.txt").read_text()
    table = (tmp_path / "report" / "table.md").read_text()
    assert "base.name=nope,seed=0: failed: UsageError" in table
    assert "| pgd20 | pgd_at, averaging=ema | 2 |" in table

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


def test_a_mistake_leaves_nothing_and_the_corrected_command_runs(tmp_path):
    """What is known from the config and the data is said before training, in one line."""
    wrong = [*TINY, f"--workdir={tmp_path / 'new'}", "--config.evaluate.num_examples=3"]
    result = launch(*wrong)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "evaluate.num_examples=3: a subset of 3 examples" in result.stderr
    assert not list(tmp_path.iterdir()) and "compil" not in result.stdout
    result = launch("--mode=evaluate", *TINY, f"--workdir={tmp_path / 'new'}")
    assert result.returncode == 2 and not list(tmp_path.iterdir())


def test_workdir_of_another_config_is_refused_and_loses_nothing(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    result = launch(*TINY, "--config.attack.epsilon=0.3", f"--workdir={workdir}")
    assert result.returncode == 2
    assert "attack.epsilon=0.2, now 0.3" in result.stderr
    assert (workdir / "config.json").read_text() == before


@pytest.mark.parametrize(
    "config", ["cifar10.py:small-smoke", "fashion_mnist.py:smoke", "cifar10.py:smoke"]
)
def test_smoke_trains_on_real_images(config, tfds_dir, tmp_path):
    arguments = [f"--config=configs/{config}", f"--workdir={tmp_path}"]
    result = launch(*arguments, TFDS_DATA_DIR=tfds_dir)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    totals = evaluation["attacks"]["clean"]["class_total"]
    assert len(totals) == 10 and len(set(totals)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("configs/studies/study_*.py")))
def test_studies_run_to_their_report(name, tfds_dir, tmp_path):
    arguments = [
        "--mode=sweep",
        f"--config=configs/studies/{name}.py:smoke",
        f"--workdir={tmp_path}",
    ]
    result = launch(*arguments, TFDS_DATA_DIR=tfds_dir)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "report" / "table.md").read_text()
    tested = [row for row in table_rows(table) if row[-1] in ("holds", "fails", "open")]
    assert bool(tested) == (name not in ("study_cifar10", "study_tuning"))


def test_64_bits_are_refused_in_a_line(tmp_path):
    result = launch(*TINY, f"--workdir={tmp_path / 'run'}", JAX_ENABLE_X64="1")
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert result.stderr.count("\n") == 1 and "JAX_ENABLE_X64 is set" in result.stderr


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
    for marker, part in (("quickstart", text[2]), ("quickstart differences", text[4])):
        published = published_rows("docs/getting-started.md", f"<!-- result: {marker} -->")
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
