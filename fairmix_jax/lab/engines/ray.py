"""`--backend=ray`: trials of Ray Tune, one a run, on the nodes of a Ray cluster."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import ray
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Place

from fairmix_jax.lab.engines import OnChange, RunProcess, RunRequest, combined, lines
from fairmix_jax.lab.engines.local_processes import free_address
from fairmix_jax.lab.schema import Launch
from fairmix_jax.runtime.errors import refused

_METRIC = "val_robust/worst_class"


def run(runs: Sequence[RunRequest], folder: Path, launch: Launch, on_change: OnChange) -> None:
    """Does the runs as trials of Ray Tune and waits for them.

    Joins the cluster that `RAY_ADDRESS` names or that runs on this machine, or starts one of
    this machine alone. A trial whose worker or node is lost goes on elsewhere at its last
    checkpoint. A run of several processes has a node for each as far as there are nodes. ASHA (Li
    et al. 2020, arXiv 1810.05934) judges runs by their validation worst-class robustness. Tune's
    records are in `folder/ray`. Raises a `UsageError` if Ray is not reached.
    """
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    number, gpus = launch.num_processes, {"GPU": launch.gpus} if launch.gpus else {}
    bundle: Any = {"CPU": launch.cpus} | gpus
    bundles = [{}, *[bundle] * number] if number > 1 else [bundle]
    places = tune.PlacementGroupFactory(bundles, strategy="SPREAD")
    by_name = {run.name: run for run in runs}
    scheduler = tune.schedulers.FIFOScheduler()
    if launch.asha_grace_epochs:
        scheduler = tune.schedulers.ASHAScheduler(
            time_attr="epoch", metric="worst_class", mode="max",
            grace_period=launch.asha_grace_epochs, reduction_factor=launch.asha_reduction,
            max_t=1 + max(run.total_epochs for run in runs),  # it stops what reaches it
        )  # fmt: skip
    run_config = tune.RunConfig(
        name="ray", storage_path=str(folder.absolute()), callbacks=[_Told(on_change)], verbose=0,
        failure_config=tune.FailureConfig(max_failures=launch.max_failures),
    )  # fmt: skip
    tune_config = tune.TuneConfig(
        scheduler=scheduler, max_concurrent_trials=launch.max_running or None
    )
    with _joined():
        trainable = tune.with_parameters(_trial, runs=by_name, bundle=bundle, launch=launch)
        tune.Tuner(
            tune.with_resources(trainable, places), tune_config=tune_config, run_config=run_config,
            param_space={"run": tune.grid_search(list(by_name))},
        ).fit()  # fmt: skip


def _joined() -> Any:
    """Joins Ray's cluster, or starts one; the context that it returns leaves it at its end.

    A process that is in one stays there.
    """
    if ray.is_initialized():
        return nullcontext()
    handler = signal.getsignal(signal.SIGTERM)
    what = f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')!r} cannot be reached"
    with refused(what, "start the cluster, or unset it to run on this machine"):
        cluster = ray.init(log_to_driver=False)
    signal.signal(signal.SIGTERM, handler)  # Ray's own would leave without a word
    return cluster


class _Told(tune.Callback):
    """Passes on what becomes of the trials."""

    def __init__(self, on_change: OnChange):
        self._on_change = on_change

    def on_trial_start(self, iteration, trials, trial, **info):
        self._on_change(trial.config["run"], {"status": "running"})

    def on_trial_complete(self, iteration, trials, trial, **info):
        last = trial.last_result
        early = {"status": "stopped", "error": f"by ASHA after epoch {last.get('epoch')}"}
        self._on_change(trial.config["run"], last.get("outcome", early))

    def on_trial_error(self, iteration, trials, trial, **info):
        text = str(trial.get_error() or "").strip().splitlines() or ["its worker was lost"]
        self._on_change(trial.config["run"], {"status": "failed", "error": text[-1]})


def _trial(
    parameters: Mapping[str, Any], *, runs: Mapping[str, RunRequest],
    bundle: Mapping[str, float], launch: Launch,
) -> None:  # fmt: skip
    """Does one run, tells Tune how its validation goes, then what became of it."""
    run, worst_class, epoch = runs[parameters["run"]], 0.0, 0
    is_compared = launch.asha_grace_epochs and run.with_training
    if launch.num_processes == 1:
        started = RunProcess(run, "--num_processes=1")
    else:
        started = _ProcessesApart(run, bundle, launch.num_processes)
    with started as processes:
        for line in lines(run.path / "metrics.jsonl", processes):
            epoch, worst_class = line["epoch"], line.get(_METRIC, worst_class)
            if is_compared and epoch < run.total_epochs:
                tune.report({"epoch": epoch, "worst_class": worst_class})
        outcome = processes.outcome()
    tune.report({"epoch": epoch + 1, "worst_class": worst_class, "outcome": outcome})


class _ProcessesApart(AbstractContextManager):
    """The processes of a run, each with an actor and resources of its own."""

    def __init__(self, run: RunRequest, bundle: Mapping[str, float], number: int):
        group = cast("Any", ray.util.get_current_placement_group())
        places = [Place(group, n) for n in range(number)]
        find = ray.remote(num_cpus=0)(lambda: free_address(ray.util.get_node_ip_address()))
        address = ray.get(find.options(scheduling_strategy=places[0]).remote())
        actor: Any = ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0))(RunProcess)
        flags = (f"--coordinator={address}", f"--num_processes={number}")
        self._actors: list[Any] = [
            actor.options(scheduling_strategy=place).remote(
                run, *flags, f"--process_id={n}", number=n
            )
            for n, place in enumerate(places)
        ]
        self._waiting = [actor.outcome.remote() for actor in self._actors]

    def __exit__(self, *_) -> None:
        for actor in self._actors:
            ray.kill(actor)

    @property
    def is_running(self) -> bool:
        return not ray.wait([self._waiting[0]], timeout=0)[0]

    def outcome(self) -> dict[str, Any]:
        return combined(ray.get(self._waiting))
