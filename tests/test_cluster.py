"""Several processes on 127.0.0.1: the same results, one step to stop at, no hanging."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file

from fairmix_jax.attacks import report
from fairmix_jax.attacks.verdict_state import OtherEvaluation
from fairmix_jax.lab.engines import local_processes
from fairmix_jax.runtime import processes
from fairmix_jax.runtime.errors import Interrupted, UsageError
from fairmix_jax.types import Weights

RUN = [
    "--config=configs/digits.py:smoke", "--config.model.width=8", "--config.batch_size=40",
    "--config.attack.num_steps=2", "--config.validation.num_steps=2", "--config.total_epochs=4",
    "--config.data.num_train=230", "--config.checkpoint.every_epochs=1",
    "--config.mixing.name=same_class", "--config.mixing.num_groups=4",
    "--config.model.norm=batch:4", "--config.rule.name=fairmix_adaptive",
    "--config.attack.norm=l2", "--config.attack.epsilon=1.0", "--config.attack.step_size=0.4",
    "--config.evaluate.attacks=clean,pgd5,apgd-ce", "--config.evaluate.num_examples=61",
    "--config.evaluate.batch_size=32", "--config.evaluate.masking=False",
]  # fmt: skip
TWO = ["--backend=processes", "--num_processes=2"]


def start(workdir, *arguments, devices=2, config=RUN):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, "launch.py", *config, f"--workdir={workdir}", *arguments], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def wait_for_epoch(process, workdir, number=1):
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
    while not (path.exists() and len(path.read_text().splitlines()) >= number):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[1])
        time.sleep(0.02)


def curve(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], [line["train/class_0"] for line in lines]


def verdicts(workdir):
    attacks = json.loads((workdir / "evaluation.json").read_text())["attacks"]
    return {name: result["verdicts"] for name, result in attacks.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(workdir, devices=1))
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes of two devices each: the folder and what was printed."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    return workdir, finish(start(workdir, *TWO, "--config.evaluate.attacks=clean"))


def test_two_processes_train_what_one_device_trains(alone, together):
    """Sums over the batch are taken in another order, which rounds otherwise.

    Under the L2 norm no sign of a gradient near zero can flip, so the two stay close; under
    L-inf one image of 800 was seen to flip one, which moves the loss of its epoch by 5e-4.
    """
    workdir, output = together
    np.testing.assert_allclose(curve(workdir)[0], curve(alone)[0], rtol=1e-4)
    ours, theirs = (load_file(path / "model.safetensors") for path in (workdir, alone))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-3 * max(1, np.abs(value).max()))
    assert "4 devices, 2 processes, 10 images of a batch on each" in output
    assert output.count("epoch 4/4") == 1, "only the main process speaks"
    assert json.loads((workdir / "run.json").read_text())["processes"] == 2


def test_two_processes_judge_every_image_as_one_device_does(alone, tmp_path):
    """Given the folder only, whose config each reads before it knows of the other."""
    shutil.copytree(alone, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    finish(start(tmp_path / "run", *TWO, "--mode=evaluate", config=()))
    assert verdicts(tmp_path / "run") == verdicts(alone)
    for name in ("clean", "pgd5", "apgd-ce"):
        ours, theirs = (
            np.load(path / "attacks" / name / "verdicts.npz") for path in (tmp_path / "run", alone)
        )
        assert ours["row"].tolist() == theirs["row"].tolist()
        np.testing.assert_array_equal(ours["prediction"], theirs["prediction"])


def test_one_told_to_stop_stops_both_and_one_process_goes_on(alone, tmp_path):
    process = start(tmp_path, *TWO)
    wait_for_epoch(process, tmp_path)
    os.kill(children(process)[1], signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    steps = re.findall(r"process (\d) of 2: .*saved at step (\d+) of 20", error)
    assert sorted(number for number, _ in steps) == ["0", "1"]
    assert len({step for _, step in steps}) == 1
    output = finish(start(tmp_path, "--config.evaluate.attacks=clean"))
    assert f"resuming at step {steps[0][1]} of 20" in output
    np.testing.assert_allclose(curve(tmp_path)[0], curve(alone)[0], rtol=1e-4)
    np.testing.assert_allclose(curve(tmp_path)[1], curve(alone)[1], atol=0.05)


@pytest.mark.parametrize("number", [0, 1])
def test_one_killed_ends_the_other_within_a_minute(number, alone, tmp_path):
    """The two start from the weights of another run, which only the main process reads."""
    quick = ["--config.base.name=standard", "--config.mixing.name=none"]
    quick += [f"--config.hot_start.workdir={alone}", "--config.hot_start.weights=last"]
    process = start(tmp_path, *TWO, *quick, "--config.total_epochs=4000")
    wait_for_epoch(process, tmp_path)
    victims = children(process)
    os.kill(victims[number], signal.SIGKILL)
    begin = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - begin < 60
    last = error.splitlines()[-1]
    assert f"process {number} of 2 ended with SIGKILL, and so did the others" in last
    assert "another process is gone" in error or "JAX distributed service" in error, error


def test_alone_nothing_is_sent():
    assert processes.is_main() and processes.from_each(lambda: 3) == [3]
    assert processes.from_main(lambda: "here") == "here"
    assert processes.share(5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="not here"):
        processes.from_main(lambda: int("not here"))


class Odd(Exception):
    """Can be written, but not read back: `__init__` wants more than the message."""

    def __init__(self, message, more):
        super().__init__(f"{message}, {more}")


def fail(error):
    raise error


def test_what_is_raised_elsewhere_is_raised_here():
    for error in (UsageError("batch_size=0"), Interrupted("SIGTERM"), ValueError("x"), OSError(2)):
        data = processes.outcome(lambda error=error: fail(error))
        with pytest.raises(type(error), match=str(error)) as raised:
            processes.opened(data)
        assert raised.value.is_agreed and "in process 0" in raised.value.__notes__[0]
    other = processes.outcome(lambda: fail(OtherEvaluation("another")))
    with pytest.raises(OtherEvaluation, match="another"):
        processes.opened(other)
    for odd in (Odd("one", "two"), KeyError("one, two"), subprocess.TimeoutExpired("one, two", 3)):
        with pytest.raises(RuntimeError, match=rf"{type(odd).__name__}: .*one, two"):
            processes.opened(processes.outcome(lambda odd=odd: fail(odd)))


def test_processes_exchange_the_same_values(rng):
    sent = {
        "plain": [None, True, 3, 0.1, "é\n", float("inf")], "single": np.float32(2.5),
        "nested": ({7: [()]}, (1, "b")), "weights": Weights({"a": np.ones(2)}, {}),
        "arrays": [rng.random((2, 3)), np.zeros((0, 4), np.int8), np.asarray(True)],
        "more": [jnp.ones(3, jnp.bfloat16), np.arange(4, dtype=np.uint32)[::2], np.zeros((), int)],
        "report": part(rng, 3, [(0, 0, 3)]),
    }  # fmt: skip
    received = processes.opened(processes.outcome(lambda: sent))
    assert list(received) == list(sent)
    chex.assert_trees_all_equal_structs(received, sent)
    for ours, theirs in zip(jax.tree.leaves(received), jax.tree.leaves(sent), strict=True):
        if hasattr(theirs, "dtype"):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize(
    "named", [["os", "system", ["true"]], ["builtins", "eval", ["1"]], ["subprocess", "Popen", []]]
)
def test_what_processes_exchange_is_no_program(named):
    """Nothing is pickled, and no name in the bytes is called but those of our own types."""
    for name in ("processes", "messages"):
        assert "pickle" not in (ROOT / "fairmix_jax" / "runtime" / f"{name}.py").read_text()
    for text in ([{"named": named}, None], [None, [*named[:2], "x", ""]]):
        with pytest.raises(TypeError, match="cannot be sent from one process to others"):
            processes.opened(msgpack_serialize(text))
    for value in (lambda: None, {1, 2}, Path("x"), np.asarray([None])):
        with pytest.raises((TypeError, ValueError), match=r"cannot be sent|serialize|not supp"):
            processes.opened(processes.outcome(lambda value=value: value))


def test_shares_are_put_back_in_order():
    whole = {"a": np.arange(7), "b": np.arange(14.0).reshape(7, 2)}
    parts = [{name: value[n::3] for name, value in whole.items()} for n in range(3)]
    for name, value in processes.dealt(parts).items():
        np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(coordinator="127.0.0.1:1"), "go together"),
        (dict(num_processes=2), "go together"),
        (dict(coordinator="127.0.0.1:1", num_processes=2, process_id=2), "process_id=2 must be"),
    ],
)
def test_half_a_cluster_is_a_mistake(arguments, message):
    with pytest.raises(UsageError, match=message):
        processes.join(**arguments)


@pytest.mark.parametrize("coordinator", ["nowhere", "host:", "host:port", "a b:1", "http://h:1"])
def test_an_address_that_is_none_is_refused_at_once(coordinator):
    with pytest.raises(UsageError, match=r"coordinator=.* is not understood; give host:port"):
        processes.join(coordinator=coordinator, num_processes=2, process_id=1)


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_says_whom_it_waits_for_and_ends_in_a_line(number):
    """JAX would wait for minutes without a word, then abort the process with a dump."""
    address = local_processes.free_address("127.0.0.1")
    source = (
        "from fairmix_jax.runtime import processes; processes.JOIN_SECONDS = 1.5;"
        f"processes.join({address!r}, 2, {number})"
    )
    command = [sys.executable, "-c", source]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert f"process {number} of 2 waits up to 1.5 s for" in result.stdout
    assert address in result.stdout and result.stdout.count("\n") == 1
    assert "has waited 1.5 s for" in result.stderr and address in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_one_process_is_no_cluster(monkeypatch):
    processes.join(num_processes=1)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    processes.join()
    with pytest.raises(UsageError, match="num_processes=1 with --backend=processes"):
        local_processes.run([], 1)


def test_reports_of_shares_are_one_report(rng):
    """The curve of two: survivors of both whenever those of one become fewer."""
    parts = [part(rng, 3, [(0, 0, 3), (1, 2, 1)]), part(rng, 2, [(0, 0, 2), (1, 1, 2), (1, 5, 0)])]
    whole = report.merged(parts, 5)
    assert whole.labels.tolist() == [parts[n % 2].labels[n // 2] for n in range(5)]
    assert whole.forward_passes.shape == (2, 5)
    np.testing.assert_array_equal(whole.forward_passes[:, 1::2], parts[1].forward_passes)
    assert whole.curve.tolist() == [[0, 0, 5], [1, 1, 5], [1, 2, 3], [1, 5, 1]]
    assert whole.seconds == (0.0, 7.0) and whole.unconfirmed == 2


def part(rng, number, curve):
    return report.AttackReport(
        robust=rng.random(number) < 0.5, adversarial=rng.random((number, 2, 2, 1)),
        broken_by=np.zeros(number, np.int8), attacks=("clean", "pgd"),
        labels=rng.integers(0, 3, number), predictions=np.zeros(number, np.int32),
        non_finite=np.zeros(number, bool), unconfirmed=1,
        forward_passes=rng.integers(0, 9, (2, number)),
        gradient_passes=np.zeros((2, number), np.int32), seconds=(0.0, 9.0 - number),
        compile_seconds=1.0, curve=np.asarray(curve, float), num_classes=3,
        notes=(),
    )  # fmt: skip
