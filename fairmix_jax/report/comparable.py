"""Sorts runs into sets that may be compared, and the runs of a set into methods."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.classwise import image_verdicts, metrics, paired
from fairmix_jax.classwise.attack_names import UNION
from fairmix_jax.data import COMMON_FIELDS
from fairmix_jax.report.runs import Arms, Run, arm, arm_fields
from fairmix_jax.runtime.errors import UsageError

_NOT_A_METHOD = (
    "seed", "num_devices", "sweep", "report", "data.dir", "data.draw", "checkpoint.", "evaluate.",
    "benchmark.", "compile.", "launch.", "study.", "audit.",
)  # fmt: skip
_AXES = ("rule", "mixing", "averaging", "calibration")
_EVALUATED_WITH = ("step_size", "num_restarts", "search_dtype", "search_precision")


class Method(NamedTuple):
    """Runs that differ in nothing but the seed; results, accuracies and verdicts under `attack`."""

    label: str  # what tells the method apart from the others in its set
    runs: list[Run]  # each of another seed
    attack: str = ""  # all are evaluated under it, maybe `"clean"`; empty where any run counts

    def under(self, attack: str) -> "Method":
        """The method with the runs that were evaluated under an attack, possibly none."""
        runs = [run for run in self.runs if attack in run.evaluation["attacks"]]
        return Method(self.label, runs, attack)

    @property
    def draws(self) -> list[tuple[int, int | None]]:
        """The seeds of the runs, each with that of its data where they are drawn at random."""
        return [(run.config["seed"], run.config.get("data.draw")) for run in self.runs]

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """The entry of `evaluation.json` for the attack, one for each run."""
        return [run.evaluation["attacks"][self.attack] for run in self.runs]

    @property
    def accuracies(self) -> np.ndarray:
        """`[runs, K]`; NaN for classes without images."""
        counts = [[result["class_correct"], result["class_total"]] for result in self.results]
        correct, total = np.array(counts).swapaxes(0, 1)
        return correct / np.where(total > 0, total, np.nan)

    @property
    def is_balanced(self) -> bool:
        """Whether all runs were tested on equally many images of each class."""
        return all(metrics.is_balanced(result["class_total"]) for result in self.results)

    @property
    def verdicts(self) -> paired.ClassVerdicts | None:
        """The verdicts of each class, `[runs, n]` bool; `None` if they are not stored."""
        if not self.results or not all("verdicts" in result for result in self.results):
            return None
        unpacked = [image_verdicts.unpack(r["verdicts"], r["class_total"]) for r in self.results]
        return [np.stack(rows) for rows in zip(*unpacked, strict=True)]


class Comparable(NamedTuple):
    """Methods whose numbers may stand in one table: same data, images, classes and threat."""

    title: str  # which they are, in words
    classes: list[str]  # `K` names
    methods: list[Method]  # at least one; the first is the baseline

    @property
    def attacks(self) -> list[str]:
        """All attacks of any run, the union last."""
        runs = (run for method in self.methods for run in method.runs)
        names = dict.fromkeys(name for run in runs for name in run.evaluation["attacks"])
        return sorted(names, key=lambda name: name == UNION)

    @property
    def attacked(self) -> list[Method]:
        """The methods under each attack, attack by attack, where there are results."""
        every = [method.under(attack) for attack in self.attacks for method in self.methods]
        return [method for method in every if method.runs]

    @property
    def with_confidence(self) -> list[Method]:
        """Those of them whose confidence is known, in every run."""
        return [m for m in self.attacked if all("calibration" in r for r in m.results)]

    @property
    def main_attack(self) -> str:
        """The attack that charts show first: most methods and images have it; ensembles first."""

        def rank(name: str) -> tuple[bool, int, int, bool, int]:
            results = [r for m in self.methods for r in m.under(name).results]
            is_ensemble = any("detail" in result for result in results)
            kind = name.partition("@")[0]
            steps = int("".join(filter(str.isdigit, kind)) or 0)
            images = sum(results[0]["class_total"])
            return kind != "clean", len(results), images, is_ensemble, steps

        return max((name for name in self.attacks if name != UNION), key=rank)


def comparable(runs: Sequence[Run], arms: Mapping[str, str] | None = None) -> list[Comparable]:
    """Returns the runs in sets that may be compared, each grouped by method.

    Runs of different data, classes, norm, radius or test images are never in one set: their
    numbers mean different things. (Where the data are drawn at random, `data.draw`, their
    images may differ.)

    Args:
      runs: in the order of their methods, the baseline first.
      arms: names of methods, each with the fields that make it, as in `config.study.arms`; a
        run has the name of the one that says most about it, and runs of none are left out.

    Raises a `UsageError` if a method has two runs of one seed, no run is of an arm, or runs differ
    in a field that no arm sets.
    """
    fields = arm_fields(arms or {})
    if fields:
        runs = [run for run in runs if run.foreign_name or arm(run.config, fields)]
        _require_arms(runs, fields)
    sets, found = defaultdict(list), []
    for run in runs:
        sets[json.dumps(_identity(run))].append(run)
    titles = [_title(members[0].evaluation) for members in sets.values()]
    for number, members in enumerate(sets.values()):
        title, earlier = titles[number], titles[:number]
        title += f" ({1 + earlier.count(title)})" if titles.count(title) > 1 else ""
        classes = members[0].evaluation["classes"]
        found.append(Comparable(title, classes, _methods(members, fields)))
    return found


def _identity(run: Run) -> list[Any]:
    """Returns what runs of one set have in common."""
    evaluation, config = run.evaluation, run.config
    shared = ("data.name", "data.draw", *(f"data.{field}" for field in COMMON_FIELDS))
    arguments = {k: v for k, v in config.items() if k.startswith("data.") and k not in shared}
    images = None if "data.draw" in config else evaluation.get("images_sha256")
    return [
        *(evaluation[field] for field in ("dataset", "classes", "threat")),
        _class_total(evaluation), images, sorted(arguments.items()),
    ]  # fmt: skip


def _class_total(evaluation: Mapping[str, Any]) -> list[int]:
    """Images of each class; some attacks may have seen a subset only."""
    totals = (result["class_total"] for result in evaluation["attacks"].values())
    return max(totals, key=sum, default=[])


def _title(evaluation: Mapping[str, Any]) -> str:
    threat, total = evaluation["threat"], sum(_class_total(evaluation))
    radius = f"{threat['norm']} radius {threat['epsilon']:.4g}"
    return f"{evaluation['dataset']}, {radius}, {total:,} test images"


def _methods(runs: Sequence[Run], arms: Arms) -> list[Method]:
    """Runs that differ in the seed only, labelled by arm, or by what tells methods apart."""
    trained = [method_fields(run) for run in runs if not run.foreign_name]
    judged = [_evaluated_with(run) for run in runs]
    methods: dict[str, dict[Any, Run]] = defaultdict(dict)
    for run in runs:
        if run.foreign_name:
            differing = _label(_evaluated_with(run), judged)
            label = f"{run.foreign_name} (foreign{differing and ', '}{differing})"
        else:
            told_apart = arm(run.config, arms) or _label(method_fields(run), trained)
            label = told_apart or _members_of(run)
        seed, draw = run.config["seed"], run.config.get("data.draw")
        other = methods[label].setdefault((seed, draw), run)
        if other is not run:
            both = f"{other.path} and {run.path} are both {seed=} of {label}"
            raise UsageError(f"{both}; report one of them")
    return [Method(label, list(members.values())) for label, members in methods.items()]


def _members_of(run: Run) -> str:
    """What a method with no rival is made of, e.g. `pgd_at, rule=dafa, mixing=same_class`."""
    names = {axis: run.config.get(f"{axis}.name", "none") for axis in _AXES}
    parts = [f"{axis}={name}" for axis, name in names.items() if name != "none"]
    return ", ".join([run.config.get("base.name", run.path.name), *parts])


def method_fields(run: Run) -> dict[str, Any]:
    """Returns the fields that define a method: the run's config, and how it was evaluated."""
    own = {k: v for k, v in run.config.items() if not k.startswith(_NOT_A_METHOD)}
    return own | _evaluated_with(run) | {"weights": run.evaluation["weights"]}


def _evaluated_with(run: Run) -> dict[str, Any]:
    settings = {"search_precision": "default"} | run.evaluation.get("settings", {})  # as it was
    return {f"evaluate.{k}": settings[k] for k in _EVALUATED_WITH if k in settings}


def _member(settings: Mapping[str, Any], field: str) -> Any:
    """The member that an argument such as `base.beta` is of, which others need not have."""
    axis, _, argument = field.rpartition(".")
    return None if argument == "name" else settings.get(f"{axis}.name")


def _label(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The fields in which a method differs from others, those with the same member."""

    def differs(field: str) -> bool:
        rivals = [o for o in others if _member(o, field) == _member(settings, field)]
        return any(rival.get(field) != settings[field] for rival in rivals)

    chosen = sorted(filter(differs, settings), key=lambda f: (not f.endswith(".name"), f))
    return ", ".join(f"{f.removesuffix('.name')}={settings[f]}" for f in chosen)


def _require_arms(runs: Sequence[Run], arms: Arms) -> None:
    """The arms are what the runs differ in, and nothing else, among runs with the same members."""
    if not runs:
        raise UsageError(f"no run is one of study.arms: {', '.join(arms)}; report others without")
    chosen = {field for fields in arms.values() for field in fields}
    known: dict[tuple[str, Any], tuple[Any, Run]] = {}
    for run in runs:
        settings = {} if run.foreign_name else method_fields(run)
        for field, value in settings.items():
            first, other = known.setdefault((field, _member(settings, field)), (value, run))
            if first != value and field not in chosen:
                differing = f"{other.path} has {field}={first}, {run.path} has {value}"
                remedy = "report runs that differ in their arms only"
                raise UsageError(f"{differing}, and no arm of the study sets it; {remedy}")
