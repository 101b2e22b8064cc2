"""One run, or the sweep of runs that a config describes: trained, evaluated, reported."""

import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import data, report
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import engines, evaluate_run, preflight, shared_training, workdir
from fairmix_jax.lab.engines import Engine
from fairmix_jax.lab.schema import Config
from fairmix_jax.runtime import field_texts, processes
from fairmix_jax.runtime.console import console, duration
from fairmix_jax.runtime.errors import Interrupted, RunsFailed, UsageError
from fairmix_jax.runtime.json_files import digest_of, read_json, read_lines, write_json, write_text
from fairmix_jax.runtime.provenance import masked
from fairmix_jax.training import loop
from fairmix_jax.training.task import Task


def run(
    config: ConfigDict, directory: Path, *, with_training: bool, engine: Engine | None = None
) -> None:
    """Trains (if so told), evaluates and reports a config, or each run of its sweep.

    A single run has `directory` to itself; a sweep has one folder a run in it, and the comparison
    of those that are done in `directory/report`. What is trained is not trained again, nor
    evaluated unless told so. A run that fails does not stop the others: `directory/sweep.json`
    lists it, and its traceback is in `error.txt` in its folder, or in `log.txt` if an engine did
    it elsewhere. Starting the sweep again tries it again.

    Raises:
      UsageError: the sweep or the single run is not a valid config.
      RunsFailed: some runs of the sweep failed; raised once the rest is done.
      Interrupted: an engine was stopped before its runs had ended.
    """
    if config.sweep.strip():
        _sweep(config, directory, with_training, engine)
    elif engine is None:
        _do(config, directory, with_training)
    else:
        workdir.claim(directory, config)
        name = directory.absolute().name
        request = engines.request(name, directory, with_training, config.total_epochs)
        states = {name: {"status": "waiting"}}
        engine([request], directory, config_lib.settings(config).launch, states.__setitem__)
        if states[name]["status"] == "failed":
            raise RunsFailed(f"{states[name]['error']} (see {directory / 'log.txt'})")
        _require_ended(states)


def _sweep(config: ConfigDict, directory: Path, with_training: bool, engine: Engine | None) -> None:
    runs = field_texts.expand(config.sweep)
    load = None if engine else preflight.remembering()
    wrong = preflight.of_sweep(config, runs, directory, with_training, load)
    for name, error in wrong.items():  # said at once, while the others have hours to go
        console.print(f"{name} will fail: {error}")
    with workdir.held(directory):
        if with_training or read_json(directory / "config.json") is None:
            workdir.claim(directory, config)
        states = _do_runs(config, runs, directory, with_training, engine, load)
        workdir.record(directory)
        if done := [name for name, state in states.items() if state["status"] == "done"]:
            _report(config, directory, [directory / name for name in done])
    if failed := [name for name, state in states.items() if state["status"] == "failed"]:
        raise RunsFailed(
            f"{len(failed)} of {len(runs)} runs failed: {failed[0]}: "
            f"{states[failed[0]]['error']} (all in {directory / 'sweep.json'})"
        )


def _do_runs(
    config: ConfigDict, runs: Sequence[tuple[str, dict[str, Any]]], directory: Path,
    with_training: bool, engine: Engine | None, load: preflight.Load | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Does what is left of each run; returns what became of them, as `sweep.json` says it.

    The seconds that a run took are kept there until it takes others.
    """
    path = directory / "sweep.json"
    states, others = members(directory, [name for name, _ in runs])

    def on_change(name: str, state: dict[str, Any]) -> None:
        took = {k: v for k, v in states[name].items() if k == "seconds"}
        states[name] = took | state
        processes.from_main(partial(write_json, path, {"members": states | others}))

    requests = []
    for number, (name, changes) in enumerate(runs, start=1):
        folder = directory / name
        if engine is None:
            to_come = [n for n, _ in runs[number - 1 :]]
            if with_training:  # what is done is not done again
                to_come = [n for n in to_come if states[n]["status"] != "done"]
            console.print(f"[{number}/{len(runs)}] {name}{_time_left(states, len(to_come))}")
            on_change(name, {"status": "running"})
        with surviving(folder, partial(on_change, name)):
            own = config_lib.override(config, changes)
            if load is not None:
                ended = [directory / n for n in states if states[n]["status"] == "done"]
                if with_training:
                    shared_training.take_over(folder, own, ended)
                on_change(name, _do(own, folder, with_training, load, show=False))
                continue
            workdir.claim(folder, own)
            is_stopped = states[name]["status"] == "stopped" and config.launch.asha_grace_epochs
            if with_training and preflight.is_done(config_lib.settings(own), folder):
                on_change(name, {"status": "done"})
            elif not (with_training and is_stopped):
                requests.append(engines.request(name, folder, with_training, own.total_epochs))
    if engine and requests:
        engine(requests, directory, config_lib.settings(config).launch, on_change)
        _require_ended(states)
    return states


def members(directory: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The states in `sweep.json` of these members, `waiting` where it has none, and of others.

    The others are of an earlier command, and have results, which are part of the whole.
    """
    before = (read_json(directory / "sweep.json", is_remade=True) or {"members": {}})["members"]
    states = {name: before.get(name, {"status": "waiting"}) for name in names}
    others = {
        name: state for name, state in before.items()
        if name not in states and (directory / name / "evaluation.json").exists()
    }  # fmt: skip
    return states, others


@contextmanager
def surviving(folder: Path, on_failure: Callable[[dict[str, Any]], None]) -> Generator[None]:
    """Hands on the failure of a run as its entry in `sweep.json`, so that others go on.

    The traceback is in `error.txt` in its folder.
    """
    try:
        yield
    except Exception as error:  # whatever it is, the other runs are not to blame
        is_everywhere = isinstance(error, (UsageError, FloatingPointError))
        if not (is_everywhere or processes.is_agreed(error)):
            raise  # of this process only: the others are waiting for it in vain
        on_failure(processes.from_main(partial(_failed, folder, error)))


def _require_ended(states: Mapping[str, dict[str, Any]]) -> None:
    if left := [name for name in states if states[name]["status"] in ("waiting", "running")]:
        raise Interrupted(f"{len(left)} runs have not ended")


def _time_left(states: Mapping[str, Mapping[str, Any]], number: int) -> str:
    """Returns how long so many runs will take, judging by those that are done."""
    took = [state["seconds"] for state in states.values() if state.get("seconds")]
    if not (took and number):
        return ""
    return f", about {duration(sum(took) / len(took) * number)} for all that is left"


def _do(
    config: ConfigDict, path: Path, with_training: bool, load: preflight.Load = data.load,
    *, show: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Does a run and returns its entry in `sweep.json`, without seconds if it was done."""
    start = time.monotonic()
    task = preflight.task_of(config, path, with_training, load)
    with workdir.held(path):
        workdir.claim(path, config)
        if task is not None:
            _train_and_evaluate(config_lib.settings(config), task, path, with_training)
        _report(config, path, [path], show=show)
    if processes.is_main():
        (path / "error.txt").unlink(missing_ok=True)
    seconds = {"seconds": round(time.monotonic() - start, 1)} if task is not None else {}
    return {"status": "done"} | seconds


def _failed(path: Path, error: Exception) -> dict[str, Any]:
    message = masked(" ".join(f"{type(error).__name__}: {error}".split()))
    console.print(f"{path.name} failed: {message}")
    write_text(path / "error.txt", masked("".join(traceback.format_exception(error))))
    return {"status": "failed", "error": message}


def _train_and_evaluate(settings: Config, task: Task, directory: Path, with_training: bool) -> None:
    """Does what is left to do."""
    is_trained, which = preflight.is_trained(directory), settings.evaluate.weights
    if processes.from_main((directory / "checkpoints" / "state").exists):
        # The last state gives lost weights back; without it, as in an unpacked study, one would
        # train for hours what was trained already.
        is_trained = is_trained and evaluate_run.has_weights(directory, which, task)
    if with_training and not is_trained:
        workdir.record(directory)
        sha256 = loop.fit(settings, task, directory)
        workdir.record(
            directory,
            state_sha256=sha256,
            metrics_sha256=processes.from_main(partial(_log, directory)),
        )
        console.print(f"final state sha256 {sha256}")
    evaluate_run.run(settings, task, directory)


def _log(directory: Path) -> str:
    """The digest of the log of training, by which a report knows that it is whole."""
    path = directory / "metrics.jsonl"
    return digest_of(read_lines(path) if path.is_file() else ())


def _report(config: ConfigDict, directory: Path, runs: list[Path], *, show: bool = True) -> None:
    if config.report == "classes":
        processes.from_main(partial(report.write, directory, runs, show=show, alone=True))
    elif show:
        from fairmix_jax.report import gaussian  # which takes seconds to import

        processes.from_main(partial(gaussian.write, directory, runs, alone=True))
