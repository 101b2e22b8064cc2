"""`--backend=slurm`: an array of jobs, one a member, through submitit."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairmix_jax.engines import Job, Launch, Member, OnChange, joined
from fairmix_jax.errors import UsageError

_POLL_SECONDS = 1.0
_ANY_NUMBER = 10**6


def run(jobs: Sequence[Job], folder: Path, launch: Launch, on_change: OnChange) -> None:
    """Runs jobs as a Slurm array and waits for them; cancels them if it is interrupted.

    Two minutes before its time is up, and when it is preempted with `send_user_signal`, a job
    saves, stops and is queued again, to go on at that step. Where there is no Slurm submitit
    runs the jobs as processes of this machine, `max_running` or one at a time.

    Args:
      jobs: what to run.
      folder: of the study; submitit keeps its own records in `slurm` there.
      launch: what each is given.
      on_change: told what becomes of each job.

    Raises:
      UsageError: submitit is not installed, the processes do not divide among nodes or are
        several without Slurm, or Slurm refuses the jobs.
    """
    if not jobs:
        return
    executor = _executor(folder / "slurm", launch)
    at_a_time = len(jobs) if executor.cluster == "slurm" else launch.max_running or 1
    queue, waiting, shown = list(jobs), dict[str, Any](), dict[str, str]()
    try:
        while queue or waiting:
            if chosen := queue[: at_a_time - len(waiting)]:
                waiting |= _submitted(executor, chosen, launch)
                queue = queue[len(chosen) :]
            for name, handle in list(waiting.items()):
                if handle.done():
                    on_change(name, _outcome(handle))
                    del waiting[name]
                elif (state := _state(handle)) != shown.get(name):
                    shown[name] = state
                    on_change(name, {"status": state, "slurm_job": handle.job_id})
            time.sleep(_POLL_SECONDS if waiting else 0)
    finally:
        for handle in waiting.values():
            handle.cancel(check=False)


class Call:
    """What submitit pickles and calls on a node."""

    def __init__(self, job: Job, num_processes: int):
        """Takes the job and the number of its processes."""
        self._job, self._num_processes = job, num_processes
        self._member: Member | None = None

    def __call__(self) -> dict[str, Any]:
        """Runs the member, or this task's process of it if it has several."""
        import submitit

        environment = submitit.JobEnvironment()
        environment.paths.result_pickle.unlink(missing_ok=True)  # of before it was queued again
        flags = ["--num_processes=1"] if self._num_processes == 1 else []
        number = environment.global_rank
        self._member = Member(self._job, *flags, number=number)
        try:
            return self._member.outcome()
        except InterruptedError as error:
            if number:  # the first process is queueing the job again, which ends this one
                time.sleep(120)
            return {"status": "failed", "error": f"{error}; see log.txt in its folder"}

    def checkpoint(self, *_: Any) -> Any:
        """Called by submitit when the job is about to end: saves, and asks to be run again."""
        import submitit

        if self._member:
            self._member.stop()
        return submitit.helpers.DelayedSubmission(Call(self._job, self._num_processes))


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
    try:
        executor = submitit.AutoExecutor(
            folder=folder.absolute(),
            cluster=launch.submitit or None,
            slurm_max_num_timeout=_ANY_NUMBER,
            local_max_num_timeout=_ANY_NUMBER,
        )
    except RuntimeError as error:
        raise UsageError(
            f"launch.submitit={launch.submitit!r}: {error}; submit where sbatch is found, or give "
            "launch.submitit=local"
        ) from error
    if executor.cluster != "slurm" and launch.num_processes > 1:
        raise UsageError(
            f"launch.num_processes={launch.num_processes} needs Slurm, which is not found; "
            "use --backend=processes, or launch.num_processes=1"
        )
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


def _submitted(executor: Any, jobs: Sequence[Job], launch: Launch) -> dict[str, Any]:
    try:
        with executor.batch():
            handles = [executor.submit(Call(job, launch.num_processes)) for job in jobs]
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"--backend=slurm: the jobs are refused ({reason}); see config.launch"
        ) from error
    return {job.name: handle for job, handle in zip(jobs, handles, strict=True)}


def _state(handle: Any) -> str:
    return "running" if handle.state.upper() == "RUNNING" else "waiting"


def _outcome(handle: Any) -> dict[str, Any]:
    try:
        return joined(handle.results())
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        reason = lines[0] if lines else type(error).__name__
        return {"status": "failed", "error": f"{reason}; submitit's logs: {handle.paths.stderr}"}
