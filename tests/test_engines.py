"""Members of a study run elsewhere end as they do here; needs the extra `sweep`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from fairmix_jax.lab import engines, workdir
from fairmix_jax.lab.schema import Launch
from fairmix_jax.runtime.errors import UsageError


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}: pip install -e '.[sweep]'")


SWEEP = [
    "--config=configs/digits.py:smoke", "--config.model.width=8", "--config.batch_size=40",
    "--config.attack.num_steps=2", "--config.validation.num_steps=2", "--config.total_epochs=40",
    "--config.checkpoint.every_epochs=1", "--config.evaluate.attacks=clean,pgd5", "--mode=sweep",
]  # fmt: skip
GRID = "--config.sweep=base.name=pgd_at,standard seed=0,1"
HALF = "--config.sweep=base.name=pgd_at seed=0,1"
NAMES = [f"base.name={base},seed={seed}" for base in ("pgd_at", "standard") for seed in (0, 1)]
ENVIRONMENT = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "JAX_NUM_CPU_DEVICES": "1"}


def start(directory, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "launch.py", *SWEEP, f"--workdir={directory}", *arguments], cwd=ROOT,
        env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    output, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    return output


def evaluation(path):
    """`evaluation.json` without what differs from one run of a program to the next."""
    content = json.loads((path / "evaluation.json").read_text())
    del content["provenance"], content["checksum"]
    for result in content["attacks"].values():
        del result["seconds"]
    return content


def states(directory):
    return json.loads((directory / "sweep.json").read_text())["members"]


def processes(*words):
    """Numbers of the processes whose command line has all these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


def wait_for_epochs(process, path, number=4):
    deadline = time.monotonic() + 240
    while not (path.exists() and path.read_text().count("\n") >= number):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[1])
        time.sleep(0.02)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Half of the grid in one process."""
    directory = tmp_path_factory.mktemp("here") / "study"
    finish(start(directory, HALF))
    return directory


@needs("submitit")
def test_no_line_break_reaches_a_batch_script(tmp_path):
    """The partition, the other text in it, is checked with the config's fields."""
    from fairmix_jax.lab.engines import slurm

    with pytest.raises(UsageError, match=r"workdir='.*a\\nb' has a line break"):
        slurm._executor(tmp_path / "a\nb" / "slurm", Launch())
    assert not list(tmp_path.iterdir())


@needs("submitit")
def test_a_job_about_to_end_saves_and_is_queued_again(here, tmp_path):
    """Submitit's local executor; SIGUSR2 is what Slurm sends when the time is nearly up."""
    directory = tmp_path / "study"
    local = ["--backend=slurm", "--config.launch.submitit=local"]
    process = start(directory, *local, HALF)
    wait_for_epochs(process, directory / NAMES[1] / "metrics.jsonl")
    (member,) = processes("fairmix_jax.lab", str(directory / NAMES[1]))
    job = int(Path(f"/proc/{member}/stat").read_text().split(")")[1].split()[1])
    os.kill(job, signal.SIGUSR2)
    finish(process)
    log = (directory / NAMES[1] / "log.txt").read_text()
    assert "SIGTERM: saved at step" in log and "resuming at step" in log
    assert [states(directory)[name]["status"] for name in NAMES[:2]] == ["done", "done"]
    for name in NAMES[:2]:
        assert evaluation(directory / name) == evaluation(here / name)


@needs("ray")
@pytest.mark.slow
def test_a_cluster_of_two_nodes_survives_the_death_of_a_worker(here, tmp_path):
    from ray.cluster_utils import Cluster

    finish(start(here, GRID))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        directory = tmp_path / "study"
        process = start(directory, "--backend=ray", GRID, RAY_ADDRESS=cluster.address)
        wait_for_epochs(process, directory / NAMES[0] / "metrics.jsonl")
        (member,) = processes("fairmix_jax.lab", str(directory / NAMES[0]))
        worker = int(Path(f"/proc/{member}/stat").read_text().split(")")[1].split()[1])
        os.kill(worker, signal.SIGKILL)
        finish(process)
    finally:
        cluster.shutdown()
    assert "resuming at step" in (directory / NAMES[0] / "log.txt").read_text()
    for name in NAMES:
        assert states(directory)[name]["status"] == "done"
        assert evaluation(directory / name) == evaluation(here / name)
    assert not processes("fairmix_jax.lab", str(directory))


@needs("ray")
@pytest.mark.slow
def test_one_run_of_two_processes_has_two_nodes_and_slow_members_are_stopped(tmp_path):
    """One without any learning is behind; ASHA compares from the second epoch on."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray_address = {"RAY_ADDRESS": cluster.address}
        apart = ["--backend=ray", "--mode=train", "--config.launch.num_processes=2"]
        finish(start(tmp_path / "apart", *apart, **ray_address))
        early = [
            "--backend=ray", "--config.launch.asha_grace_epochs=2",
            "--config.launch.asha_reduction=2", "--config.launch.max_running=1",
            "--config.sweep=optim.learning_rate=0.05,0.0",
        ]  # fmt: skip
        finish(start(tmp_path / "study", *early, **ray_address))
    finally:
        cluster.shutdown()
    assert json.loads((tmp_path / "apart" / "run.json").read_text())["processes"] == 2
    assert "2 devices, 2 processes" in (tmp_path / "apart" / "log.txt").read_text()
    found = states(tmp_path / "study")
    assert found["optim.learning_rate=0.05"]["status"] == "done"
    assert found["optim.learning_rate=0.0"]["status"] == "stopped"
    assert not (tmp_path / "study" / "optim.learning_rate=0.0" / "evaluation.json").exists()
    assert "by ASHA after epoch" in (tmp_path / "study" / "report" / "table.md").read_text()


@pytest.mark.parametrize("backend, package", [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_is_named(backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{engines.__name__}.{backend}", raising=False)
    with pytest.raises(UsageError, match=f"{package}.*install the extra"):
        engines.load(backend)


def test_a_member_that_cannot_run_says_why_and_one_that_is_stopped_can_go_on(tmp_path):
    run = engines.request("one", tmp_path, with_training=True, total_epochs=1)
    with engines.RunProcess(run) as member:
        outcome = member.outcome()
    assert outcome["status"] == "failed" and "config.json" in outcome["error"]
    with engines.RunProcess(run) as member:
        member.stop()
        with pytest.raises(InterruptedError):
            member.outcome()
    done, failed = {"status": "done"}, {"status": "failed", "error": "x"}
    assert engines.combined([done, failed]) == failed and engines.combined([done, done]) == done


def test_a_log_is_read_as_it_is_written(tmp_path):
    """A line counts once it is whole; what is written before the end is not lost."""
    path = tmp_path / "metrics.jsonl"

    class Writer:
        texts = iter(['{"epoch": 1}\n{"epo', 'ch": 2}\n', '{"epoch": 3}\n'])

        @property
        def is_running(self):
            text = next(self.texts, None)
            if text:
                with path.open("a") as file:
                    file.write(text)
            return text is not None

    found = [line["epoch"] for line in engines.lines(path, Writer())]
    assert found == [1, 2, 3]


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        workdir.held(tmp_path),
        pytest.raises(UsageError, match="is in use by another run"),
        workdir.held(tmp_path, patience=0.0),
    ):
        pass
    with workdir.held(tmp_path, patience=0.0):
        pass
