"""`--backend=slurm`: an array of jobs, one a member, through submitit."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairmix_jax.engines import Job, Launch, Member, OnChange
from fairmix_jax.errors import UsageError

_POLL_SECONDS = 1.0


def run(jobs: Sequence[Job], folder: Path, launch: Launch, on_change: OnChange) -> None:
    """Runs jobs as a Slurm array and waits for them; cancels them if it is interrupted.

    Two minutes before its time is up, or when it is preempted, a job saves, stops and is
    queued again, to go on at that step. Where there is no Slurm submitit runs the jobs as
    processes of this machine.

    Args:
      jobs: what to run.
      folder: of the study; submitit keeps its own records in `slurm` there.
      launch: what each is given.
      on_change: told what becomes of each job.

    Raises:
      UsageError: submitit is not installed, or the processes do not divide among nodes.
    """
    if not jobs:
        return
    executor = _executor(folder / "slurm", launch)
    with executor.batch():
        submitted = [executor.submit(Call(job)) for job in jobs]
    waiting = dict(zip(jobs, submitted, strict=True))
    shown: dict[str, str] = {}
    try:
        while waiting:
            for job, handle in list(waiting.items()):
                if handle.done():
                    on_change(job.name, _outcome(handle))
                    del waiting[job]
                elif (state := _state(handle)) != shown.get(job.name):
                    shown[job.name] = state
                    on_change(job.name, {"status": state, "slurm_job": handle.job_id})
            time.sleep(_POLL_SECONDS if waiting else 0)
    except BaseException:
        for handle in waiting.values():
            handle.cancel()
        raise


class Call:
    """What submitit pickles and calls on a node."""

    def __init__(self, job: Job):
        """Takes the job."""
        self._job = job
        self._member: Member | None = None

    def __call__(self) -> dict[str, Any]:
        """Runs the member, this node's process of it if it has several."""
        import submitit

        number = submitit.JobEnvironment().global_rank
        self._member = Member(self._job, number=number)
        return self._member.outcome()

    def checkpoint(self, *_: Any) -> Any:
        """Called by submitit when the job is about to end: saves, and asks to be run again."""
        import submitit

        if self._member:
            self._member.stop()
        return submitit.helpers.DelayedSubmission(Call(self._job))


def _executor(folder: Path, launch: Launch) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "--backend=slurm needs submitit; install the extra: "
            "pip install -c constraints.txt -e '.[sweep]'"
        ) from error
    nodes, rest = divmod(launch.num_processes, launch.processes_per_node)
    if rest:
        raise UsageError(
            f"launch.num_processes={launch.num_processes} does not divide among nodes of "
            f"launch.processes_per_node={launch.processes_per_node}"
        )
    executor = submitit.AutoExecutor(folder=folder.absolute(), cluster=launch.submitit or None)
    options: dict[str, Any] = {
        "timeout_min": launch.minutes,
        "nodes": nodes,
        "tasks_per_node": launch.processes_per_node,
        "cpus_per_task": launch.cpus,
        "slurm_signal_delay_s": 120,
        "slurm_array_parallelism": launch.max_running or 256,
        "name": "fairmix",
    }
    if launch.gpus:
        options["gpus_per_node"] = launch.gpus * launch.processes_per_node
    if launch.partition:
        options["slurm_partition"] = launch.partition
    executor.update_parameters(**options)
    return executor


def _state(handle: Any) -> str:
    return "running" if handle.state.upper() == "RUNNING" else "waiting"


def _outcome(handle: Any) -> dict[str, Any]:
    from fairmix_jax import engines

    try:
        return engines.joined(handle.results())
    except Exception as error:
        lines = str(error).strip().splitlines()
        return {"status": "failed", "error": lines[-1] if lines else type(error).__name__}
