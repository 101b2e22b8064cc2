"""Finished runs, and what lies in their workdirs."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.classwise import image_verdicts, metrics
from fairmix_jax.classwise.attack_names import UNION
from fairmix_jax.runtime import field_texts, json_files, registry
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.runtime.json_files import PACK, digest_of, flatten

Arms = Mapping[str, Mapping[str, Any]]
"""Methods by their names in a study, each with the config fields that make it."""


class Run(NamedTuple):
    """A finished run."""

    path: Path  # its workdir
    config: Mapping[str, Any]  # flat, `{"attack.epsilon": ...}`
    evaluation: Mapping[str, Any]  # content of `evaluation.json`
    provenance: Mapping[str, Any]  # content of `run.json`
    metrics: Sequence[Mapping[str, Any]] = ()  # lines of `metrics.jsonl`

    @property
    def foreign_name(self) -> str:
        """The name of a model that was not trained here; empty for one that was."""
        return self.evaluation.get("method", "")

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """The metrics of the epochs that ended in a validation."""
        fields = {"epoch", "val_robust/average", "val_robust/worst_class"}
        return [line for line in self.metrics if fields <= line.keys()]


def find(path: Path, *, alone: bool = False) -> list[Run]:
    """Returns the evaluated runs in a folder or anywhere below it, those of grids in their order.

    Of a folder `alone` nothing below it counts, such as a copy that lies beside a run's files.

    Links are followed. The path of a packed run is its name in the pack, below the folder of the
    study. Raises a `UsageError` if there is no run, or a file of one is damaged.
    """
    order: dict[Path, int] = {}
    found: dict[Path, Run] = {}
    for folder, names in itertools.islice(_folders(path), 1 if alone else None):
        if PACK in names:
            for number, line in enumerate(json_files.read_lines(folder / PACK), start=-1):
                if "evaluation" in line:
                    name = folder / line["name"]
                    if name in found:
                        raise UsageError(f"{folder / PACK} has {line['name']!r} twice")
                    found[name], order[name] = _run(name, line, folder / PACK), number
            continue
        held = content(folder) if names & {"sweep.json", "evaluation.json"} else {}
        members = held.get("sweep", {}).get("members", ())
        order |= {folder / name: number for number, name in enumerate(members)}
        if "evaluation" in held:
            found[folder] = _run(folder, held)
    if not found:
        raise UsageError(f"there is no evaluated run in {str(path)!r}; train one there first")
    return [found[f] for f in sorted(found, key=lambda f: (order.get(f, -1), str(f)))]


def _folders(path: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yields each folder from a path down once, whatever links lead there, and the names in it."""

    def refused(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise error

    seen = set()
    for folder, below, names in os.walk(path, followlinks=True, onerror=refused):
        place = os.path.realpath(folder)
        below[:] = [] if place in seen else sorted(below)
        if place not in seen:
            yield Path(folder), {*names, *below}  # a folder with the name of a file is damage
        seen.add(place)


def _run(folder: Path, held: Mapping[str, Any], pack: Path | None = None) -> Run:
    """A run of what its files hold, or its line of a pack, once the report can believe them."""
    wrong = "" if "config" in held else "it has no config.json beside it"
    if not _agrees(held["evaluation"]["attacks"]):
        wrong = "it has no attack, or numbers in it contradict each other"
    if wrong:
        where = f"{pack}: evaluation of {held['name']}" if pack else f"{folder}/evaluation.json"
        raise json_files.damaged(PACK if pack else "evaluation.json", where, wrong)
    provenance = json_files.plain(held.get("run", {}))
    lines = [{k: np.nan if v is None else v for k, v in m.items()} for m in held.get("metrics", ())]
    if "state_sha256" in provenance and not lines and not pack:
        told = "lacks the lines of a trained run; the report does without the course of training"
        console.print(f"{folder}/metrics.jsonl {told}", soft_wrap=True)
    elif provenance.get("metrics_sha256", own := digest_of(held.get("metrics", ()))) != own:
        told = "is not as training left it; the course of training in the report may be another's"
        console.print(f"{folder}/metrics.jsonl {told}", soft_wrap=True)
    return Run(folder, config_of(held), held["evaluation"], provenance, lines)


def config_of(held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flat config of a run, with the calibration that its evaluation was done with.

    `config.json` names it before it is done, and a stop in between leaves earlier numbers.
    """
    config = dict(flatten(registry.completed(json_files.plain(held["config"]))))
    evaluation = held.get("evaluation", {"method": ""})
    if "method" in evaluation:
        return config
    done = evaluation.get("calibration", {"name": "none"})
    is_known = done["name"] in registry.names("calibrations")
    chosen = registry.parameters("calibrations", done["name"]) if is_known else ()
    kept = {k: v for k, v in config.items() if not k.startswith("calibration.")}
    return kept | {f"calibration.{f}": done[f] for f in ("name", *chosen) if f in done}


def _agrees(attacks: Mapping[str, Any]) -> bool:
    """Whether there are attacks whose counts, averages and verdicts agree, checksum or not."""
    for result in attacks.values():
        total, correct = result["class_total"], result["class_correct"]
        try:
            average = metrics.summarize(total, correct)["average"]
            right = image_verdicts.unpack(result["verdicts"], total) if "verdicts" in result else ()
        except ValueError:
            return False
        is_average = abs(result.get("average", average) - average) < 1e-6
        if not is_average or (right and [int(v.sum()) for v in right] != correct):
            return False
    return bool(attacks.keys() - {UNION})


def content(folder: Path) -> dict[str, Any]:
    """Returns the plain data in the folder of a run or a study: `{"config": ..., "run": ...}`.

    Keys are the names of `json_files.FILES` without their endings; what is not there is left out.
    All has its checksum, if there is one. For a packed study it is the first line of the pack.
    Raises a `UsageError` if a file is damaged.
    """
    if (folder / PACK).is_file():
        return json_files.read_lines(folder / PACK)[0]
    found = {}
    for path in filter(os.path.lexists, (folder / kind for kind in json_files.FILES)):
        if not path.is_file():
            raise json_files.damaged(path.name, str(path), "it is no file")
        if path.suffix == ".jsonl":
            found[path.stem] = json_files.read_lines(path)
        else:
            found[path.stem] = json_files.parsed(path.read_bytes(), path.name, str(path))
    return found


def unfinished(paths: Sequence[Path]) -> dict[str, str]:
    """Returns the members of grids in these folders that are not done: how they stand, and why."""
    found = {}
    for path in {path.resolve(): path for path in paths}.values():
        lines = json_files.read_lines(path / PACK) if (path / PACK).is_file() else []
        done = {line["folder"] for line in lines if "evaluation" in line}
        done |= {file.parent.name for file in path.glob("*/evaluation.json")}
        for name, state in content(path).get("sweep", {}).get("members", {}).items():
            if state["status"] != "done":
                found[str(path / name)] = f"{state['status']}: {state.get('error', 'not done')}"
            elif name not in done:
                found[str(path / name)] = "done, but it lacks its evaluation.json"
    return found


def arm_fields(arms: Mapping[str, str]) -> Arms:
    """Returns the values that `config.study.arms` gives fields, as `config.json` has them."""
    return {name: json.loads(json.dumps(field_texts.single(text))) for name, text in arms.items()}


def arm(config: Mapping[str, Any], arms: Arms) -> str:
    """Returns of the arms whose fields are all in a flat config the one with the most, if any.

    Where no arm speaks of calibration, a calibrated run is none of them: the name says so.
    """
    own = [name for name in arms if all(config.get(f) == v for f, v in arms[name].items())]
    found = max(own, key=lambda name: len(arms[name]), default="")
    calibration = config.get("calibration.name", "none")
    is_meant = any("calibration.name" in fields for fields in arms.values())
    return found if is_meant or not found or calibration == "none" else f"{found} {calibration}"
