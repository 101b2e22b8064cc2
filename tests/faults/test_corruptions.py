"""One file of a workdir is damaged; whatever reads it gets the sound result, or says so."""

import itertools
import random
import shutil
from functools import partial
from typing import NamedTuple

import pytest

from faults.bench import RUN, SWEEP, copied, differing, final, said_clearly
from faults.damage import damage, fitting, state_of
from faults.watch import watched

SHORT = 12
OWN = (".json", ".jsonl", ".npz", ".safetensors")  # read by us, not by Orbax
TOLD = (" lacks ", " is damaged", " is not as training left it")
COURSE = ("report/table.md", "report/training.png", "metrics.jsonl")
REPORT = (*COURSE, "report/classes.png", "report/tradeoff.png")
READ = {  # commands that are known to read a file: the check of this suite's own aim
    ("finished", "config.json"): {"again", "evaluate"},
    ("finished", "evaluation.json"): {"again", "report"},
    ("finished", "model.safetensors"): {"load"},
    ("training", "config.json"): {"again"},
    ("training", "metrics.jsonl"): {"again"},
    ("attacking", "under_way.npz"): {"again"},
    ("sweep", "sweep.json"): {"again", "report"},
}

ROWS = {
    "finished": "of a finished run", "training": "of a run killed in training",
    "attacking": "of a run killed in AutoAttack", "sweep": "of a sweep",
}  # fmt: skip


class Specimen(NamedTuple):
    """A workdir, and the flags of the commands that are given it, by their names."""

    name: str
    folder: object
    commands: dict


class Case(NamedTuple):
    specimen: Specimen
    file: object  # below the folder
    kinds: list  # of damage, the first that applies is done


def pytest_generate_tests(metafunc):
    if "number" in metafunc.fixturenames:
        long = metafunc.config.getoption("corruptions")
        cases = [pytest.param((SHORT, n), id=f"short-{n}") for n in range(SHORT)]
        mark = pytest.mark.faults
        cases += [pytest.param((long, n), id=f"{n}", marks=mark) for n in range(long)]
        metafunc.parametrize("number", cases)


@pytest.fixture(scope="module")
def specimen(server, finished, tmp_path_factory):
    """Makes a specimen by its name, each once."""
    again, others = {"again": RUN}, {"evaluate": ("--mode=evaluate",), "report": ("--mode=report",)}
    whole = Specimen("finished", finished, again | others | {"load": None})
    folder, made = tmp_path_factory.mktemp("specimens"), {"finished": whole}
    makers = {
        "training": (RUN, "checkpoints/state/15", again),
        "attacking": (RUN, "attacks/square/under_way.npz", again),
        "sweep": (SWEEP, "", {"again": SWEEP, "report": ("--mode=report",)}),
    }

    def make(name):
        if name not in made:
            flags, kill_at, commands = makers[name]
            path = folder / name
            kill_at = path / kill_at if kill_at else ""
            ended = server.launch(*flags, f"--workdir={path}", kill_at=kill_at)
            assert ended.status == (-9 if kill_at else 0), ended.err
            assert (path / "report").exists() != bool(kill_at)
            assert not kill_at or kill_at.exists()
            made[name] = Specimen(name, path, commands)
        return made[name]

    return make


@pytest.fixture(scope="module")
def sound(server, specimen, tmp_path_factory):
    """Returns what a command makes of a sound specimen; of one that is complete, no change."""
    known = {}

    def result(name, command):
        if (name, command) not in known:
            folder = copied(specimen(name).folder, tmp_path_factory.mktemp("sound") / "run")
            ended = run(server, specimen(name), command, folder)
            assert ended.status == 0, ended.err
            made = ended.out if command == "load" else final(folder)
            whole = final(specimen("sweep" if name == "sweep" else "finished").folder)
            assert command == "load" or not differing(whole, made)
            known[name, command] = made
        return known[name, command]

    return result


def run(server, specimen, command, folder):
    if command == "load":
        return server("load", str(folder))
    return server.launch(*specimen.commands[command], f"--workdir={folder}")


def plan(specimen, count, seed):
    """Returns `count` cases: every file of a run, finished and in training, if there is room.

    Then the files that are ours to read, also of a sweep and of AutoAttack under way, each with as
    many kinds of damage as there is room for. A few cases are drawn from all of these.
    """
    rng = random.Random(seed)
    names = ("finished", "training", "attacking") + (("sweep",) if count > SHORT else ())
    every, more = [], []
    for name in names:
        chosen = specimen(name)
        found = sorted(path for path in chosen.folder.rglob("*") if path.is_file())
        files = [path.relative_to(chosen.folder) for path in found]
        if name in ("finished", "training"):
            for file in files:
                kinds = fitting(file)
                every.append(Case(chosen, file, rng.sample(kinds, len(kinds))))
        own = [file for file in files if file.suffix in OWN and "checkpoints" not in file.parts]
        if name == "attacking":
            own = [file for file in own if file.name in ("under_way.npz", "run.json")]
        for file, kind in itertools.chain(*(zip([f] * 99, fitting(f), strict=False) for f in own)):
            more.append(Case(chosen, file, [kind, "deleted"]))
    rng.shuffle(every)
    rng.shuffle(more)
    if count < len(every):
        return list(itertools.chain(*zip(more, every, strict=False)))[:count]
    return (every + more)[:count]


@pytest.fixture(scope="module")
def cases(request, specimen):
    seed = request.config.getoption("faults_seed")
    return {SHORT: plan(specimen, SHORT, 0)}, partial(plan, specimen, seed=seed)


def test_a_damaged_file_changes_no_result_without_a_word(
    number, cases, server, sound, tmp_path, record_property, request
):
    count, index = number
    if count not in cases[0]:
        cases[0][count] = cases[1](count)
    case = cases[0][count][index]
    chosen, rng = case.specimen, random.Random(f"{request.config.getoption('faults_seed')} {index}")
    damaged = copied(chosen.folder, tmp_path / "damaged")
    others = sorted(p for p in damaged.rglob("*") if p.is_file())
    path = damaged / case.file
    kind = next(kind for kind in case.kinds if damage(kind, path, rng, others))
    failures, outcomes = [], []
    for command in chosen.commands:
        expected = sound(chosen.name, command)
        folder = copied(damaged, tmp_path / command)
        file = folder / case.file
        left = state_of(file)
        with watched(file) as opened:
            ended = run(server, chosen, command, folder)
            is_read = opened()
        known = READ.get((chosen.name, str(case.file)), ())
        assert is_read is not False or command not in known, f"{command} left {case.file} unread"
        wrong = verdict(command, ended, expected, folder, case.file, left)
        outcomes.append("failed" if wrong else "the same" if ended.status == 0 else "refused")
        seen = {True: "read", False: "not read", None: "unknown"}[is_read]
        said = f"{chosen.name}: {case.file}: {kind}: {command}, {seen}: {wrong or outcomes[-1]}"
        print(said)
        failures += [said] if wrong else []
        shutil.rmtree(folder)
    shutil.rmtree(damaged)
    worst = next(how for how in ("failed", "refused", "the same") if how in outcomes)
    record_property("fault", ("damaged files", worst, ROWS[chosen.name]))
    assert not failures, "\n".join(failures)


def verdict(command, ended, expected, folder, file, left):
    """Returns what is wrong with how a command met a damaged file; empty if nothing is.

    What it left of the file as it found it is no result of the command.
    """
    if ended.status != 0:
        parents = [str(parent) for parent in file.parents if len(parent.parts) > 1]
        missing = [str(folder)] if left in ("link", "nothing") else []
        return said_clearly(ended, about=[file.name, *parents, *missing])
    if command == "load":
        return "" if ended.out == expected else "silently other logits"
    found = final(folder)
    if state_of(folder / file) == left:
        expected = {name: value for name, value in expected.items() if name != str(file)}
        found.pop(str(file), None)
    names = differing(expected, found)
    lines = [line for line in ended.out.splitlines() if file.name in line]
    is_told = any(word in line for line in lines for word in TOLD)
    course = COURSE if file.name == "metrics.jsonl" else ()
    if (command, file.name, left) == ("report", "evaluation.json", "nothing"):
        course = REPORT  # of the runs that are left
    if is_told and all(name == str(file) or name.endswith(course) for name in names):
        return ""  # a log, a record or a run is lost, which is said; no model is another
    return f"silently different: {', '.join(names)}" if names else ""
