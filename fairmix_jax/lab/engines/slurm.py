"""`--backend=slurm`: an array of jobs, one a run, through submitit."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from fairmix_jax.lab.engines import OnChange, RunProcess, RunRequest, combined
from fairmix_jax.lab.schema import Launch
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError, refused

_POLL_SECONDS = 1.0
_ANY_NUMBER = 10**6


def run(runs: Sequence[RunRequest], folder: Path, launch: Launch, on_change: OnChange) -> None:
    """Does the runs as jobs of a Slurm array and waits; cancels them if it is interrupted.

    Two minutes before its time is up, and when it is preempted with `send_user_signal`, a job
    saves, stops and is queued again, to go on at that step. Without Slurm submitit runs the jobs
    as processes of this machine, `max_running` or one at a time. Its records are in `folder/slurm`.

    Raises:
      UsageError: the processes do not divide among nodes or are several without Slurm, or Slurm
        refuses the jobs.
    """
    executor = _executor(folder / "slurm", launch)
    if executor.cluster != "slurm":
        console.print("no Slurm here: the runs are processes of this machine")
    at_a_time = len(runs) if executor.cluster == "slurm" else launch.max_running or 1
    queue, waiting, shown = list(runs), dict[str, Any](), dict[str, str]()
    try:
        while queue or waiting:
            if chosen := queue[: at_a_time - len(waiting)]:
                waiting |= _submitted(executor, chosen, launch)
                queue = queue[len(chosen) :]
            for name, handle in list(waiting.items()):
                state = "running" if handle.state.upper() == "RUNNING" else "waiting"
                if handle.done():
                    on_change(name, _outcome(handle))
                    del waiting[name]
                elif state != shown.get(name):
                    shown[name] = state
                    on_change(name, {"status": state, "slurm_job": handle.job_id})
            time.sleep(_POLL_SECONDS if waiting else 0)
    finally:
        for handle in waiting.values():
            handle.cancel(check=False)


class _Task:
    """A callable that submitit pickles and calls on a node: a run, or this task's process of it."""

    _process: RunProcess | None = None

    def __call__(self, run: RunRequest, num_processes: int) -> dict[str, Any]:
        environment = submitit.JobEnvironment()
        environment.paths.result_pickle.unlink(missing_ok=True)  # of before it was queued again
        flags = ["--num_processes=1"] if num_processes == 1 else []
        number = environment.global_rank
        self._process = RunProcess(run, *flags, number=number)
        try:
            return self._process.outcome()
        except InterruptedError as error:
            if number:  # the first process is queueing the job again, which ends this one
                time.sleep(120)
            return {"status": "failed", "error": f"{error}; see log.txt in its folder"}

    def checkpoint(self, *arguments: Any) -> Any:
        """Called by submitit when the job is about to end: saves, and asks to be run again."""
        if self._process:
            self._process.stop()
        return submitit.helpers.DelayedSubmission(_Task(), *arguments)


def _executor(folder: Path, launch: Launch) -> Any:
    nodes, rest = divmod(launch.num_processes, launch.processes_per_node)
    if rest:
        raise UsageError(
            f"launch.num_processes={launch.num_processes} does not divide among nodes of "
            f"launch.processes_per_node={launch.processes_per_node}"
        )
    if not str(folder.absolute()).isprintable():  # it is written into the batch script
        raise UsageError(f"workdir={str(folder.parent)!r} has a line break or the like; rename it")
    remedy = "submit where sbatch is found, or give launch.submitit=local"
    with refused(f"launch.submitit={launch.submitit!r} cannot be used", remedy):
        executor = submitit.AutoExecutor(
            folder=folder.absolute(), cluster=launch.submitit or None,
            slurm_max_num_timeout=_ANY_NUMBER, local_max_num_timeout=_ANY_NUMBER,
        )  # fmt: skip
    if executor.cluster != "slurm" and launch.num_processes > 1:
        raise UsageError(
            f"launch.num_processes={launch.num_processes} needs Slurm, which is not found; "
            "use --backend=processes, or launch.num_processes=1"
        )
    per_node = launch.processes_per_node
    optional = {"gpus_per_node": launch.gpus * per_node, "slurm_partition": launch.partition}
    executor.update_parameters(
        name="fairmix", timeout_min=launch.minutes, nodes=nodes, tasks_per_node=per_node,
        cpus_per_task=launch.cpus, slurm_signal_delay_s=120,
        slurm_array_parallelism=launch.max_running or 256,
        **{name: value for name, value in optional.items() if value},
    )  # fmt: skip
    return executor


def _submitted(executor: Any, runs: Sequence[RunRequest], launch: Launch) -> dict[str, Any]:
    with refused("--backend=slurm: the jobs are refused", "see config.launch"), executor.batch():
        handles = [executor.submit(_Task(), run, launch.num_processes) for run in runs]
    return {run.name: handle for run, handle in zip(runs, handles, strict=True)}


def _outcome(handle: Any) -> dict[str, Any]:
    try:
        return combined(handle.results())
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        reason = lines[0] if lines else type(error).__name__
        return {"status": "failed", "error": f"{reason}; submitit's logs: {handle.paths.stderr}"}
