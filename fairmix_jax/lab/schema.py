"""The sections of a config that only the command line knows, beside those of a training run."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fairmix_jax.runtime.declared import declared
from fairmix_jax.training.settings import Settings
from fairmix_jax.types import Count, Natural


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """`--mode=benchmark`: steps of each run of the sweep in turns, or what is named here."""

    rounds: Count = declared(15, "number of rounds, each of which times everything once")
    steps: Count = declared(1, "number of training steps in each round")
    attacks: str = declared("", "attacks to time, e.g. `pgd20,apgd100,fab-t50,autoattack`")
    bases: str = declared("", "bases whose training steps to time, e.g. `standard,pgd_at,trades`")
    peers: bool = declared(False, "whether to time other installed libraries as well")
    exponents: bool = declared(False, "whether to fit growth of cost in steps, images, parameters")


@dataclasses.dataclass(frozen=True)
class Compile:
    """`--mode=compile`: for TPUs that need not be here."""

    topology: Annotated[
        str, ("pattern", r"(\w+:[0-9]+(x[0-9]+)*)?"), ("form", "a pod's name, e.g. v5e:2x4")
    ] = declared("", "TPU pod to compile for, e.g. `v5e:2x4`, `v5e:16x16`, `v5p:2x2x4`")
    largest_batch: bool = declared(True, "whether to look for the largest batch that fits")


@dataclasses.dataclass(frozen=True)
class Launch:
    """`--backend=ray|slurm`: what each run is given there."""

    num_processes: Count = declared(1, "number of processes that share a run")
    processes_per_node: Count = declared(1, "number of processes on each node, under Slurm")
    cpus: Count = declared(1, "number of CPU cores of each process")
    gpus: Natural = declared(0, "number of GPUs of each process")
    max_running: Natural = declared(0, "number of runs at a time; 0 for as many as fit")
    max_failures: Natural = declared(3, "how often a run may lose its worker, under Ray")
    asha_grace_epochs: Natural = declared(0, "epochs before ASHA stops runs under Ray; 0 for never")
    asha_reduction: int = declared(3, "ASHA keeps one in this many runs each time", low=2)
    minutes: int = declared(60, "minutes of a Slurm job, after which another goes on", low=3)
    partition: Annotated[
        str, ("pattern", r"[\w.,-]*"), ("form", "names with commas between them, e.g. gpu,short")
    ] = declared("", "Slurm partition of the jobs; empty for the cluster's default")
    submitit: Literal["", "slurm", "local"] = declared("", "submitit's executor; empty to detect")


@dataclasses.dataclass(frozen=True)
class Study:
    """The arms and predictions of a sweep, see `classwise.predictions`; its report answers."""

    arms: Mapping[str, str] = declared({}, "methods to compare: `{name: 'field=value ...'}`")
    predictions: tuple[str, ...] = declared((), "what to test, e.g. `P1: gap(pgd20): pairs < none`")
    easy_classes: tuple[str, ...] = declared((), "names of classes that are expected to do well")
    hard_classes: tuple[str, ...] = declared((), "names of classes that are expected to do badly")


@dataclasses.dataclass(frozen=True)
class Audit:
    """`--mode=audit`: models that were trained elsewhere, on one test set."""

    fit_fraction: float = declared(
        0.5, "part of the test images that fits a calibration and tests nothing", above=0, below=1
    )
    published: str = declared(
        "", "folder with RobustBench's `NAME.json` of models, to compare with"
    )


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Every field of a config."""

    report: Literal["classes", "gaussian"] = declared("classes", "subject of the report")
    sweep: str = declared("", "runs to make instead of one: `field=value,value field=value,value`")
    study: Study = Study()
    audit: Audit = Audit()
    benchmark: Benchmark = Benchmark()
    compile: Compile = Compile()
    launch: Launch = Launch()


def as_plain(settings: Any) -> dict[str, Any]:
    """Returns settings as nested dictionaries of their declared fields, and members' arguments."""
    plain = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            plain[field.name] = as_plain(value)
        elif field.name == "name" or "meaning" in field.metadata:
            plain[field.name] = dict(value) if isinstance(value, Mapping) else value
    return plain | dict(getattr(settings, "arguments", {}))
