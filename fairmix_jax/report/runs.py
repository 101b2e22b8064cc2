"""Finished runs, and which of them may be compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax import grid, paired, verdicts
from fairmix_jax.config import flatten
from fairmix_jax.data import COMMON_FIELDS
from fairmix_jax.errors import UsageError
from fairmix_jax.suite import UNION

_NOT_A_METHOD = (
    "seed", "num_devices", "sweep", "report", "data.dir", "data.draw", "checkpoint.", "evaluate.",
    "benchmark.", "compile.", "study.",
)  # fmt: skip
_EVALUATED_WITH = ("step_size", "num_restarts", "search_dtype")


class Run(NamedTuple):
    """A finished run.

    Attributes:
      path: its workdir.
      config: flat, `{"attack.epsilon": ...}`.
      evaluation: content of `evaluation.json`.
      provenance: content of `run.json`.
    """

    path: Path
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    provenance: Mapping[str, Any]


class Group(NamedTuple):
    """Runs of one method: they differ in nothing but the seed.

    Attributes:
      label: what tells the method apart from the others in its set.
      runs: at least one, each of another seed.
    """

    label: str
    runs: list[Run]

    def under(self, attack: str) -> "Group":
        """The runs that were evaluated under an attack, possibly none."""
        return Group(self.label, [r for r in self.runs if attack in r.evaluation["attacks"]])

    def of_seeds(self, seeds: Sequence[int]) -> "Group":
        """The runs of these seeds, in their order."""
        return Group(self.label, [self.runs[self.seeds.index(seed)] for seed in seeds])

    def results(self, attack: str) -> list[Mapping[str, Any]]:
        """The results under an attack of the runs that have it."""
        return [run.evaluation["attacks"][attack] for run in self.under(attack).runs]

    def class_accuracies(self, attack: str) -> np.ndarray:
        """`[runs, K]` of those runs; NaN for classes without images."""
        results = self.results(attack)
        total, correct = (
            np.array([result[f"class_{name}"] for result in results])
            for name in ("total", "correct")
        )
        return np.where(total > 0, correct / np.maximum(total, 1), np.nan)

    def verdicts(self, attack: str) -> paired.ClassVerdicts | None:
        """For each class `[runs, n]` bool; `None` where they are not stored of the same images."""
        results = self.results(attack)
        images = {run.evaluation.get("images_sha256") for run in self.under(attack).runs}
        if len(images) != 1 or not all("verdicts" in result for result in results):
            return None
        unpacked = [verdicts.unpack(r["verdicts"], r["class_total"]) for r in results]
        return [np.stack(rows) for rows in zip(*unpacked, strict=True)]

    @property
    def seeds(self) -> list[int]:
        """Of the runs, in their order."""
        return [run.config["seed"] for run in self.runs]


class Comparable(NamedTuple):
    """Methods whose numbers may stand in one table: same data, images, classes and threat.

    Attributes:
      title: which they are, in words.
      classes: `K` names.
      groups: the methods; the first is the baseline.
    """

    title: str
    classes: list[str]
    groups: list[Group]

    @property
    def attacks(self) -> list[str]:
        """All attacks of any run, the union last."""
        every = (run.evaluation["attacks"] for group in self.groups for run in group.runs)
        names = dict.fromkeys(name for attacks in every for name in attacks)
        return sorted(names, key=lambda name: name == UNION)

    @property
    def main_attack(self) -> str:
        """What charts show first: what most methods have, of all images, ensembles first."""

        def rank(name: str) -> tuple[bool, int, int, bool, int]:
            results = [result for group in self.groups for result in group.results(name)]
            images = sum(results[0]["class_total"])
            is_ensemble = any("detail" in result for result in results)
            kind, _, _ = name.partition("@")
            steps = int("".join(filter(str.isdigit, kind)) or 0)
            return kind != "clean", len(results), images, is_ensemble, steps

        return max((name for name in self.attacks if name != UNION), key=rank)


def find(path: Path) -> list[Run]:
    """Returns the evaluated runs in a folder or anywhere below it, those of grids in their order.

    Raises:
      UsageError: there is none.
    """
    found = list(path.rglob("evaluation.json"))
    if not found:
        raise UsageError(f"there is no evaluated run in {str(path)!r}; train one there first")
    order = {
        file.parent / name: number
        for file in path.rglob("sweep.json")
        for number, name in enumerate(_read(file)["members"])
    }
    found.sort(key=lambda file: (order.get(file.parent, -1), str(file)))
    return [
        Run(
            file.parent,
            dict(flatten(_read(file.with_name("config.json")))),
            _read(file),
            _read(file.with_name("run.json")),
        )
        for file in found
    ]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def unfinished(paths: Sequence[Path]) -> dict[str, str]:
    """Returns the members of grids in these folders that are not done: how they stand, and why."""
    found = {}
    for path in dict.fromkeys(paths):
        for name, state in _read(path / "sweep.json").get("members", {}).items():
            if state["status"] != "done":
                found[str(path / name)] = f"{state['status']}: {state.get('error', 'not done')}"
    return found


def study_of(directory: Path) -> dict[str, Any]:
    """Returns `config.study` of the study that has this folder, empty if there is none."""
    return _read(directory / "config.json").get("study", {})


def comparable(
    runs: Sequence[Run], arms: Mapping[str, str] = MappingProxyType({})
) -> list[Comparable]:
    """Returns the runs in sets that may be compared, each grouped by method.

    Runs of different data, classes, norm, radius or test images are never in one set: their
    numbers mean different things. (Where the data are drawn at random, `data.draw`, their
    images may differ.)

    Args:
      runs: in the order of their methods, the baseline first.
      arms: names of methods, each with the fields that make it, as in `config.study.arms`; a
        run has the name of the one that says most about it, and runs of none are left out.

    Raises:
      UsageError: a method has two runs of one seed, no run is of an arm, or runs differ in a
        field that no arm sets.
    """
    changes = {name: json.loads(json.dumps(grid.single(text))) for name, text in arms.items()}
    if changes:
        runs = [run for run in runs if _name(run) or _arm(run, changes)]
        _require_arms(runs, changes)
    sets: dict[str, list[Run]] = {}
    for run in runs:
        sets.setdefault(json.dumps(_identity(run)), []).append(run)
    titles = _titles([members[0].evaluation for members in sets.values()])
    return [
        Comparable(title, members[0].evaluation["classes"], _grouped(members, changes))
        for title, members in zip(titles, sets.values(), strict=True)
    ]


def _identity(run: Run) -> list[Any]:
    evaluation, config = run.evaluation, run.config
    shared = ("data.name", "data.draw", *(f"data.{field}" for field in COMMON_FIELDS))
    arguments = {k: v for k, v in config.items() if k.startswith("data.") and k not in shared}
    totals = _class_total(evaluation)
    images = None if "data.draw" in config else evaluation.get("images_sha256")
    return [
        evaluation["dataset"], evaluation["classes"], evaluation["threat"], totals, images,
        sorted(arguments.items()),
    ]  # fmt: skip


def _class_total(evaluation: Mapping[str, Any]) -> list[int]:
    """Images of each class; some attacks may have seen a subset only."""
    totals = (result["class_total"] for result in evaluation["attacks"].values())
    return max(totals, key=sum, default=[])


def _titles(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells sets apart: data, threat and images, numbered where that is not enough."""
    titles = []
    for evaluation in evaluations:
        threat, total = evaluation["threat"], sum(_class_total(evaluation))
        titles.append(
            f"{evaluation['dataset']}, {threat['norm']} radius {threat['epsilon']:.4g}, "
            f"{total:,} test images"
        )
    return [
        title if titles.count(title) == 1 else f"{title} ({titles[: number + 1].count(title)})"
        for number, title in enumerate(titles)
    ]


def _grouped(runs: Sequence[Run], arms: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Groups runs by everything but the seed, labelled by arm, or what tells the groups apart."""
    methods = [_method(run) for run in runs]
    own = [method for run, method in zip(runs, methods, strict=True) if not _name(run)]
    groups: dict[str, list[Run]] = {}
    for run, method in zip(runs, methods, strict=True):
        named = f"{_name(run)} (foreign)" if _name(run) else _arm(run, arms)
        label = named or _label(method, own)
        groups.setdefault(label or run.config["base.name"], []).append(run)
    for label, members in groups.items():
        seen: dict[Any, Run] = {}
        for run in members:
            other = seen.setdefault((run.config["seed"], run.config.get("data.draw")), run)
            if other is not run:
                raise UsageError(
                    f"{other.path} and {run.path} are both seed={run.config['seed']} of {label}; "
                    "report one of them"
                )
    return [Group(label, members) for label, members in groups.items()]


def _method(run: Run) -> dict[str, Any]:
    """What makes a run's numbers those of a method: its config, and how it was evaluated."""
    settings = run.evaluation.get("settings", {})
    return (
        {k: v for k, v in run.config.items() if not k.startswith(_NOT_A_METHOD)}
        | {f"evaluate.{k}": settings[k] for k in _EVALUATED_WITH if k in settings}
        | {"weights": run.evaluation["weights"]}
    )


def _label(method: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The fields in which a method differs from others.

    The arguments of a member, such as `base.beta`, count only among methods with that
    member.
    """

    def differs(field: str) -> bool:
        name = f"{field.rpartition('.')[0]}.name"
        rivals = [o for o in others if field == name or o.get(name) == method.get(name)]
        return any(o.get(field) != method.get(field) for o in rivals)

    chosen = sorted(filter(differs, method), key=lambda f: (not f.endswith(".name"), f))
    return ", ".join(f"{f.removesuffix('.name')}={method[f]}" for f in chosen)


def _arm(run: Run, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Of the arms whose fields are all the run's, that with the most; empty if there is none."""
    own = [
        name
        for name, changes in arms.items()
        if all(run.config.get(field) == value for field, value in changes.items())
    ]
    return max(own, key=lambda name: len(arms[name]), default="")


def _require_arms(runs: Sequence[Run], arms: Mapping[str, Mapping[str, Any]]) -> None:
    """The arms are what the runs differ in, and nothing else.

    Arguments of a member, such as `base.beta`, need only agree among runs with that member.
    """
    if not runs:
        raise UsageError(f"no run is one of study.arms: {', '.join(arms)}; report others without")
    chosen = {field for changes in arms.values() for field in changes}
    known: dict[tuple[str, Any], tuple[Any, Run]] = {}
    for run in runs:
        method = {} if _name(run) else _method(run)
        for field, value in method.items():
            axis, _, argument = field.rpartition(".")
            member = method.get(f"{axis}.name") if argument != "name" else None
            first, other = known.setdefault((field, member), (value, run))
            if first != value and field not in chosen:
                raise UsageError(
                    f"{other.path} has {field}={first}, {run.path} has {value}, and no arm of "
                    "the study sets it; report runs that differ in their arms only"
                )


def _name(run: Run) -> str:
    """What a model not trained here is called; empty for a run."""
    return run.evaluation.get("method", "")
