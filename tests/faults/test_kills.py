"""A run or a sweep is killed at random moments; the same command then ends in the same results."""

import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
from conftest import ROOT

from faults.bench import ATTACKED, HERE, LIMIT, RUN, SWEEP, differing, environment, final

COMMANDS = {"tiny": RUN, "run": ATTACKED, "sweep": SWEEP}
SHORT = 2
PHASES = {  # by the beginning of the last line that was printed
    "": "start", "[": "start", "compiling": "compile", "compiled": "train", "resuming": "train",
    "epoch": "train", "final state": "evaluate", "clean": "evaluate", "pgd3: 20": "evaluate",
    "pgd3: average": "AutoAttack", "autoattack": "AutoAttack", "square": "AutoAttack",
    "autoattack: average": "report", "square: average": "report",
}  # fmt: skip


class Kill(NamedTuple):
    """A signal, and when: a part of the time that a run takes, or -1 for while it saves."""

    signal: signal.Signals
    moment: float


def plan(count, seed):
    """Returns cases, each a name of a command and the kills that it suffers one after another.

    One moment lies in each of `count` equal parts of the time; every fifth kill waits for a save.
    """
    rng = random.Random(seed)
    moments = [(number + rng.random()) / count for number in range(count)]
    rng.shuffle(moments)
    kills = []
    for number, moment in enumerate(moments):
        how = rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (70, 15, 15))[0]
        kills.append(Kill(signal.SIGKILL, -1) if number % 5 == 3 else Kill(how, moment))
    cases, sizes = [], [1, 2, 1, 3]
    while kills:
        size = sizes[len(cases) % 4] if count > SHORT else 1
        name = "tiny" if count <= SHORT else "sweep" if len(cases) % 3 == 2 else "run"
        cases.append((name, kills[:size]))
        kills = kills[size:]
    return cases


def pytest_generate_tests(metafunc):
    if "kills" not in metafunc.fixturenames:
        return
    seed, count = (metafunc.config.getoption(name) for name in ("faults_seed", "kills"))
    cases = [pytest.param(*case, id=f"short-{n}") for n, case in enumerate(plan(SHORT, 0))]
    for number, (name, kills) in enumerate(plan(count, seed)):
        mark, own = pytest.mark.faults, f"{number}-{name}"
        cases.append(pytest.param(name, kills, id=own, marks=mark))
    metafunc.parametrize(("name", "kills"), cases)


class Process:
    """A real process, whose outputs go to files; a context manager that leaves none behind."""

    def __init__(self, name, folder, log):
        self._folder, self._out, self._err = folder, log / "out.txt", log / "err.txt"
        arguments = [*COMMANDS[name], f"--workdir={folder}"]
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "saving_often.py"), *arguments],
                stdout=out, stderr=err, cwd=ROOT, env=environment(),
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    def ended(self):
        """Waits for the end; returns the status and what was written to stderr."""
        return self._process.wait(timeout=LIMIT), self._err.read_text()

    def killed(self, kill, duration, passed):
        """Sends a signal at its moment, or after so many saves; returns whether it came in time."""
        deadline = time.monotonic() + max(0.0, kill.moment) * duration
        was_saving = False
        while self._process.poll() is None:
            if kill.moment >= 0 and time.monotonic() >= deadline:
                break
            is_saving = kill.moment < 0 and any(_unfinished(self._folder))
            passed -= is_saving and not was_saving
            if is_saving and passed < 0:
                break
            was_saving = is_saving
            time.sleep(0.001)
        self._process.send_signal(kill.signal)
        return self._process.poll() is None

    def phase(self):
        """Returns what it was doing last, judging by what it left and printed."""
        if any(_unfinished(self._folder)):
            return "save"
        lines = [line for line in self._out.read_text().splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        fitting = [start for start in PHASES if last.startswith(start)]
        found = PHASES[max(fitting, key=len)]
        return "report" if last and max(fitting, key=len) == "" else found


def _unfinished(folder):
    """Yields files and folders that are being written."""
    try:
        yield from folder.rglob("*.part")
        yield from folder.rglob("[0-9]*.part")
    except OSError:  # they come and go
        return


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns results and duration of a command that is left alone, once compiled."""
    known = {}

    def result(name):
        if name not in known:
            for _ in range(2):
                folder = tmp_path_factory.mktemp("undisturbed")
                start = time.monotonic()
                with Process(name, folder / "run", folder) as process:
                    assert process.ended() == (0, "")
                known[name] = final(folder / "run"), time.monotonic() - start
        return known[name]

    return result


def test_killed_runs_end_in_the_same_results(name, kills, undisturbed, tmp_path, record_property):
    expected, duration = undisturbed(name)
    parts, saves = [1.0] * len(kills), random.Random(str(kills)).randrange(6)
    for attempt in range(8):
        folder = tmp_path / f"{attempt}" / "run"
        phases, wrong = disturbed(name, kills, folder, duration, parts, saves)
        if len(phases) == len(kills):
            break
        parts[len(phases)] /= 2  # the end came before the signal: a resumed run is shorter
        saves //= 2
    else:
        pytest.fail("no run was long enough to be killed")
    with Process(name, folder, tmp_path) as process:
        status, said = process.ended()
    if status != 0 or "Traceback" in said:
        wrong.append(f"run again: status {status}: {said}")
    elif names := differing(expected, final(folder)):
        wrong.append(f"silently different: {', '.join(names)}")
    for kill, phase in zip(kills, phases, strict=True):
        how, row = "failed" if wrong else "the same", "sweep" if name == "sweep" else phase
        record_property("fault", ("kills", how, row))
        print(f"{name}: {kill.signal.name}: {phase}: {how}")
    assert not wrong, "\n".join(wrong)


def disturbed(name, kills, folder, duration, parts, saves):
    """Starts a command again and again, to be killed each time.

    Returns the phases that were hit, fewer than kills if one came too late, and what was wrong
    with how the command ended: a signal that can be answered gets one line and status 75.
    """
    phases, wrong = [], []
    for kill, part in zip(kills, parts, strict=True):
        with Process(name, folder, folder.parents[1]) as process:
            own = kill if kill.moment < 0 else kill._replace(moment=kill.moment * part)
            is_in_time = process.killed(own, duration, saves)
            status, said = process.ended()
            if not is_in_time or status == 0:
                break
            phases.append(process.phase())
        if kill.signal == signal.SIGKILL:
            is_right = status == -signal.SIGKILL
        else:  # while it imports, Python itself answers
            line = said.strip().splitlines()[-1:]
            is_line = bool(line) and line[0].endswith("run the same command to go on")
            is_right = status == 75 and is_line and "Traceback" not in said
            is_right |= phases[-1] == "start"
        if not is_right:
            wrong.append(f"{kill.signal.name} in {phases[-1]}: status {status}: {said}")
    return phases, wrong
