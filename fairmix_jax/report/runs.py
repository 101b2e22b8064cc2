"""Finished runs, and which of them may be compared."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax import comparison, verdicts
from fairmix_jax.classwise import UNION
from fairmix_jax.config import flatten
from fairmix_jax.errors import UsageError

_NOT_A_METHOD = (
    "seed", "sweep", "report", "data.dir", "data.draw", "checkpoint.", "evaluate.", "benchmark.",
)  # fmt: skip


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
      runs: at least one.
    """

    label: str
    runs: list[Run]

    def results(self, attack: str) -> list[Mapping[str, Any]]:
        """Each run's result under an attack; empty where any of them lacks it."""
        found = [run.evaluation["attacks"].get(attack) for run in self.runs]
        return [] if None in found else found

    def class_accuracies(self, attack: str) -> np.ndarray:
        """`[runs, K]`; NaN for classes without images."""
        return np.array(
            [
                np.where(total > 0, correct / np.maximum(total, 1), np.nan)
                for total, correct in (
                    (np.asarray(r["class_total"]), np.asarray(r["class_correct"]))
                    for r in self.results(attack)
                )
            ]
        )

    def verdicts(self, attack: str) -> comparison.ClassVerdicts | None:
        """For each class `[runs, n]` bool; `None` where they are not stored of the same images."""
        results = self.results(attack)
        images = {run.evaluation.get("images_sha256") for run in self.runs}
        if not results or len(images) > 1 or not all("verdicts" in r for r in results):
            return None
        unpacked = [verdicts.unpack(r["verdicts"], r["class_total"]) for r in results]
        return [np.stack(rows) for rows in zip(*unpacked, strict=True)]

    @property
    def seeds(self) -> list[int]:
        """Of the runs, in their order."""
        return [run.config["seed"] for run in self.runs]


class Comparable(NamedTuple):
    """Methods whose numbers may stand in one table: same data, classes and threat.

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
        names = dict.fromkeys(
            name
            for group in self.groups
            for run in group.runs
            for name in run.evaluation["attacks"]
        )
        return sorted(names, key=lambda name: name == UNION)


def find(path: Path) -> list[Run]:
    """Returns the evaluated runs in a folder or anywhere below it.

    Raises:
      UsageError: there is none.
    """
    found = sorted(path.rglob("evaluation.json"))
    if not found:
        raise UsageError(f"there is no evaluated run in {str(path)!r}; train one there first")
    return [
        Run(
            file.parent,
            dict(flatten(json.loads((file.parent / "config.json").read_text()))),
            json.loads(file.read_text()),
            json.loads((file.parent / "run.json").read_text()),
        )
        for file in found
    ]


def failures(paths: Sequence[Path]) -> dict[str, str]:
    """Returns the members of grids in these folders that failed, with their errors."""
    found = {}
    for path in dict.fromkeys(paths):
        file = path / "sweep.json"
        if file.is_file():
            for name, state in json.loads(file.read_text())["members"].items():
                if state["status"] == "failed":
                    found[name] = state["error"]
    return found


def comparable(runs: Sequence[Run]) -> list[Comparable]:
    """Returns the runs in sets that may be compared, each grouped by method.

    Runs of different data, classes, norm, radius or numbers of test images are never in
    one set: their numbers mean different things.
    """
    sets: dict[str, list[Run]] = {}
    for run in runs:
        sets.setdefault(json.dumps(_identity(run.evaluation)), []).append(run)
    titles = _titles([members[0].evaluation for members in sets.values()])
    return [
        Comparable(title, members[0].evaluation["classes"], _grouped(members))
        for title, members in zip(titles, sets.values(), strict=True)
    ]


def _identity(evaluation: Mapping[str, Any]) -> list[Any]:
    totals = [result["class_total"] for result in evaluation["attacks"].values()]
    return [evaluation["dataset"], evaluation["classes"], evaluation["threat"], totals[:1]]


def _titles(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells sets apart: data, threat and images, numbered where that is not enough."""
    titles = []
    for evaluation in evaluations:
        threat, results = evaluation["threat"], evaluation["attacks"].values()
        total = next((sum(result["class_total"]) for result in results), 0)
        titles.append(
            f"{evaluation['dataset']}, {threat['norm']} radius {threat['epsilon']:.4g}, "
            f"{total:,} test images"
        )
    return [
        title if titles.count(title) == 1 else f"{title} ({titles[: number + 1].count(title)})"
        for number, title in enumerate(titles)
    ]


def _grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups runs by everything but the seed, labelled by what tells the groups apart."""
    methods = [
        {k: v for k, v in run.config.items() if not k.startswith(_NOT_A_METHOD)}
        | {"weights": run.evaluation["weights"]}
        for run in runs
    ]
    own = [method for run, method in zip(runs, methods, strict=True) if not _name(run)]
    groups: dict[str, list[Run]] = {}
    for run, method in zip(runs, methods, strict=True):
        label = _name(run) or _label(method, own) or run.config["base.name"]
        groups.setdefault(label, []).append(run)
    return [Group(label, members) for label, members in groups.items()]


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


def _name(run: Run) -> str:
    """What a model not trained here is called; empty for a run."""
    return run.evaluation.get("method", "")
