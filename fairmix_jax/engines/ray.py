"""`--backend=ray`: trials of Ray Tune, one a member, on the nodes of a Ray cluster."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fairmix_jax.engines import Job, Launch, Member, OnChange, joined
from fairmix_jax.engines.processes import free_address
from fairmix_jax.errors import UsageError

_METRIC = "val_robust/worst_class"
_POLL_SECONDS = 0.5


def run(jobs: Sequence[Job], folder: Path, launch: Launch, on_change: OnChange) -> None:
    """Runs jobs as trials of Ray Tune and waits for them.

    Joins the cluster that `RAY_ADDRESS` names or that runs on this machine, or starts one of
    this machine alone. A trial whose worker or node is lost is tried again elsewhere, up to
    `launch.max_failures` times, and goes on at its last checkpoint. A job of several
    processes has a node for each as far as there are nodes. With
    `launch.asha_grace_epochs` members whose validation worst-class robustness is behind are
    stopped early, by ASHA (Li et al. 2020, arXiv 1810.05934).

    Args:
      jobs: what to run.
      folder: of the study; Tune keeps its own records in `ray` there.
      launch: what each is given.
      on_change: told what becomes of each job.

    Raises:
      UsageError: Ray is not installed, or its cluster cannot be reached.
    """
    if not jobs:
        return
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise UsageError(
            "--backend=ray needs Ray; install the extra: pip install -c constraints.txt -e "
            "'.[sweep]'"
        ) from error
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    handler, is_ours = signal.getsignal(signal.SIGTERM), not ray.is_initialized()
    if is_ours:
        try:
            ray.init(log_to_driver=False)
        except ConnectionError as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')!r} cannot be reached ({reason}); "
                "start the cluster, or unset it to run on this machine"
            ) from error
        signal.signal(signal.SIGTERM, handler)  # Ray's own would leave without a word
    bundle = {"CPU": launch.cpus} | ({"GPU": launch.gpus} if launch.gpus else {})
    bundles = [{}, *[bundle] * launch.num_processes] if launch.num_processes > 1 else [bundle]
    places = tune.PlacementGroupFactory(cast("Any", bundles), strategy="SPREAD")
    by_name = {job.name: job for job in jobs}
    trainable = tune.with_parameters(_trial, jobs=by_name, bundle=bundle, launch=launch)
    tuner = tune.Tuner(
        tune.with_resources(trainable, places),
        param_space={"member": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(jobs, launch), max_concurrent_trials=launch.max_running or None
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder.absolute()),
            failure_config=tune.FailureConfig(max_failures=launch.max_failures),
            callbacks=[_told(on_change)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        if is_ours:
            ray.shutdown()


def _scheduler(jobs: Sequence[Job], launch: Launch) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not launch.asha_grace_epochs:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        metric="worst_class",
        mode="max",
        grace_period=launch.asha_grace_epochs,
        reduction_factor=launch.asha_reduction,
        max_t=1 + max(job.total_epochs for job in jobs),  # it stops what reaches it
    )


def _told(on_change: OnChange) -> Any:
    """A callback of Tune that passes on what becomes of the trials."""
    from ray import tune

    class Told(tune.Callback):
        def on_trial_start(self, iteration, trials, trial, **info):
            on_change(trial.config["member"], {"status": "running"})

        def on_trial_complete(self, iteration, trials, trial, **info):
            last = trial.last_result
            early = {"status": "stopped", "error": f"by ASHA after epoch {last.get('epoch')}"}
            on_change(trial.config["member"], last.get("outcome", early))

        def on_trial_error(self, iteration, trials, trial, **info):
            lines = str(trial.get_error()).strip().splitlines() or ["its worker was lost"]
            on_change(trial.config["member"], {"status": "failed", "error": lines[-1]})

    return Told()


def _trial(
    parameters: Mapping[str, Any], *, jobs: Mapping[str, Job], bundle: Mapping[str, float],
    launch: Launch,
) -> None:  # fmt: skip
    """Runs one member, tells Tune how its validation goes, then what became of it."""
    from ray import tune

    job, worst_class, epoch = jobs[parameters["member"]], 0.0, 0
    processes = _Apart(job, bundle, launch) if launch.num_processes > 1 else _Here(job)
    is_compared = launch.asha_grace_epochs and job.with_training
    with processes:
        for line in _lines(job.path / "metrics.jsonl", processes):
            epoch, worst_class = line["epoch"], line.get(_METRIC, worst_class)
            if is_compared and epoch < job.total_epochs:
                tune.report({"epoch": epoch, "worst_class": worst_class})
        outcome = processes.outcome()
    tune.report({"epoch": epoch + 1, "worst_class": worst_class, "outcome": outcome})


def _lines(path: Path, processes: Any) -> Iterator[dict[str, Any]]:
    """The lines of a log, as they are written, until the processes end."""
    seen, is_running = 0, True
    while is_running:
        is_running = processes.is_running
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole[seen:]:
            yield json.loads(line)
        seen = len(whole)
        if is_running:
            time.sleep(_POLL_SECONDS)


class _Here(Member):
    """The only process of a member, in the trial's own place."""

    def __init__(self, job: Job):
        super().__init__(job, "--num_processes=1")


class _Apart:
    """The processes of a member, each in a place of its own."""

    def __init__(self, job: Job, bundle: Mapping[str, float], launch: Launch):
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        number, self._ray = launch.num_processes, ray
        group: Any = ray.util.get_current_placement_group()
        self._places: list[Any] = [
            ray.remote(_Place)
            .options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, n),
            )
            .remote()
            for n in range(number)
        ]
        address = ray.get(self._places[0].address.remote())
        self._waiting = [
            each.run.remote(job, f"--coordinator={address}", f"--num_processes={number}", n)
            for n, each in enumerate(self._places)
        ]

    def __enter__(self) -> "_Apart":
        return self

    def __exit__(self, *_) -> None:
        for place in self._places:
            self._ray.kill(place)

    @property
    def is_running(self) -> bool:
        return not self._ray.wait([self._waiting[0]], timeout=0)[0]

    def outcome(self) -> dict[str, Any]:
        return joined(self._ray.get(self._waiting))


class _Place:
    """An actor that runs one process of several."""

    def address(self) -> str:
        import ray

        return free_address(ray.util.get_node_ip_address())

    def run(self, job: Job, coordinator: str, num_processes: str, number: int) -> dict[str, Any]:
        flags = (coordinator, num_processes, f"--process_id={number}")
        with Member(job, *flags, number=number) as member:
            return member.outcome()
