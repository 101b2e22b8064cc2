"""A study: one run, or the grid of runs that `config.sweep` describes."""

import json
import time
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fairmix_jax import cluster, engines, evaluate, grid, report, train, workdir
from fairmix_jax import config as config_lib
from fairmix_jax.errors import Interrupted, MembersFailed, UsageError
from fairmix_jax.experiment import build
from fairmix_jax.export import write_json
from fairmix_jax.progress import console


def run(
    config: ConfigDict,
    directory: Path,
    *,
    with_training: bool,
    engine: engines.Engine | None = None,
) -> None:
    """Trains (if so told), evaluates and reports a config, or each member of its grid.

    A single run has `directory` to itself; a grid has one folder a member in it, and the
    comparison of those that are done in `directory/report`. What is trained is not trained
    again, nor evaluated unless told so. A member that fails does not stop the others:
    `directory/sweep.json` lists it, its traceback is in `error.txt` in its folder, or in
    `log.txt` if it ran elsewhere, and running the grid again tries it again.

    Args:
      config: of the run or the grid.
      directory: see above.
      with_training: whether to train, or to evaluate what is trained.
      engine: runs the members elsewhere, see `engines`; one after another here if `None`.

    Raises:
      UsageError: the sweep or the single run is not a valid config.
      MembersFailed: some members of the grid failed; raised once the rest is done.
      Interrupted: an engine was stopped before its runs had ended.
    """
    if not config.sweep.strip():
        if engine is not None:
            workdir.claim(directory, config)
            _run_alone(config, directory, with_training, engine)
            return
        with workdir.held(directory):
            workdir.claim(directory, config)
            _run_member(config, directory, with_training=with_training)
            _report(config, directory, [directory])
        return
    members = grid.expand(config.sweep)
    for field in {field for _, changes in members for field in changes}:
        config_lib.get(config, field)
    for name, text in config.study.arms.items():
        try:
            grid.override(config, grid.single(text))
        except UsageError as error:
            raise UsageError(f"study.arms: {name!r}: {error}") from error
    with workdir.held(directory):
        workdir.claim(directory, config)
        board = _Board(directory / "sweep.json", [name for name, _ in members])
        if engine is None:
            for number, (name, changes) in enumerate(members, start=1):
                console.print(f"[{number}/{len(members)}] {name}", markup=False)
                board.set(name, {"status": "running"})
                path = directory / name
                board.set(name, _try_member(config, changes, path, with_training=with_training))
        else:
            jobs = _jobs(config, members, directory, board, with_training)
            engine(jobs, directory, engines.Launch(**config.launch), board.set)
            _require_ended(board.states.values())
        workdir.record(directory)
        done = [directory / name for name in board.names("done")]
        if done:
            _report(config, directory, done)
    if failed := board.names("failed"):
        raise MembersFailed(
            f"{len(failed)} of {len(members)} members failed: {failed[0]}: "
            f"{board.states[failed[0]]['error']} (all in {directory / 'sweep.json'})"
        )


class _Board:
    """What became of each member of a grid, and `sweep.json`, which says so.

    The seconds that a member took are kept until it takes others.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        before = (workdir.read_json(path) or {"members": {}})["members"]
        self.states = {name: before.get(name, {"status": "waiting"}) for name in names}
        self._path = path

    def set(self, name: str, state: dict[str, Any]) -> None:
        took = {k: v for k, v in self.states[name].items() if k == "seconds"}
        self.states[name] = took | state
        cluster.from_main(partial(write_json, self._path, {"members": self.states}))

    def names(self, status: str) -> list[str]:
        return [name for name, state in self.states.items() if state["status"] == status]


def _run_alone(
    config: ConfigDict, directory: Path, with_training: bool, engine: engines.Engine
) -> None:
    states: dict[str, dict[str, Any]] = {}
    job = engines.job(
        directory.absolute().name,
        directory,
        with_training=with_training,
        total_epochs=config.total_epochs,
    )
    engine([job], directory, engines.Launch(**config.launch), states.__setitem__)
    state = states.get(job.name, {"status": "waiting"})
    if state["status"] == "failed":
        raise MembersFailed(f"{state['error']} (see {directory / 'log.txt'})")
    _require_ended([state])


def _require_ended(states: Iterable[dict[str, Any]]) -> None:
    if left := [state for state in states if state["status"] in ("waiting", "running")]:
        raise Interrupted(f"{len(left)} runs have not ended")


def _jobs(
    config: ConfigDict,
    members: Sequence[tuple[str, dict[str, Any]]],
    directory: Path,
    board: _Board,
    with_training: bool,
) -> list[engines.Job]:
    """The members that are to run: not those that are done, failed to build or were stopped."""
    jobs = []
    for name, changes in members:
        path = directory / name
        try:
            member = grid.override(config, changes)
            workdir.claim(path, member)
        except UsageError as error:
            board.set(name, _failed(path, error))
            continue
        is_stopped = board.states[name]["status"] == "stopped" and config.launch.asha_grace_epochs
        if with_training and _is_done(member, path):
            board.set(name, {"status": "done"})
        elif not (with_training and is_stopped):
            epochs = member.total_epochs
            jobs.append(engines.job(name, path, with_training=with_training, total_epochs=epochs))
    return jobs


def _try_member(
    config: ConfigDict, changes: dict[str, Any], path: Path, *, with_training: bool
) -> dict[str, Any]:
    """Runs a member and returns its entry in `sweep.json`, without seconds if it was done."""
    start, was_done = time.monotonic(), False
    try:
        member = grid.override(config, changes)
        with workdir.held(path):
            workdir.claim(path, member)
            was_done = with_training and _is_done(member, path)
            _run_member(member, path, with_training=with_training)
            if config.report == "classes":
                cluster.from_main(partial(report.write, path, [path], show=False))
    except Exception as error:  # whatever it is, the other members are not to blame
        if not (cluster.is_agreed(error) or isinstance(error, (UsageError, FloatingPointError))):
            raise  # of this process only: the others are waiting for it in vain
        return cluster.from_main(partial(_failed, path, error))
    if cluster.is_main():
        (path / "error.txt").unlink(missing_ok=True)
    seconds = {} if was_done else {"seconds": round(time.monotonic() - start, 1)}
    return {"status": "done"} | seconds


def _failed(path: Path, error: Exception) -> dict[str, Any]:
    message = " ".join(f"{type(error).__name__}: {error}".split())
    console.print(f"failed: {message}", markup=False)
    path.mkdir(parents=True, exist_ok=True)
    (path / "error.txt").write_text("".join(traceback.format_exception(error)))
    return {"status": "failed", "error": message}


def _run_member(config: ConfigDict, directory: Path, *, with_training: bool) -> None:
    if with_training and _is_done(config, directory):
        return
    experiment = build(config)
    if with_training and not _is_trained(directory):
        workdir.record(directory)
        sha256 = train.fit(config, experiment, directory)
        workdir.record(directory, state_sha256=sha256)
        console.print(f"final state sha256 {sha256}")
    evaluate.run(config, experiment, directory)


def _report(config: ConfigDict, directory: Path, runs: list[Path]) -> None:
    if config.report == "gaussian":
        from fairmix_jax import gaussian_report  # which takes seconds to import

        cluster.from_main(partial(gaussian_report.write, directory, runs))
    else:
        cluster.from_main(partial(report.write, directory, runs))


def _is_trained(directory: Path) -> bool:
    return "state_sha256" in workdir.recorded(directory)


def _is_done(config: ConfigDict, directory: Path) -> bool:
    """Whether it is trained, and evaluated as this config has it."""
    settings = json.loads(json.dumps(config_lib.resolved(config)["evaluate"]))
    found = workdir.read_json(directory / "evaluation.json")
    is_evaluated = found is not None and found["settings"] == settings
    return is_evaluated and _is_trained(directory)
