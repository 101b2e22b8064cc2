"""A study in one file, so that hundreds of folders become a few files with plain names.

`runs.jsonl` has a line of JSON for the study and one for each of its runs, in the order of the
sweep. A line has `name`, what the run is called here, such as `"pgd_at_k2/seed0"`; `folder`, where
it lay in the study's folder; and what its files held: `config`, `run`, `evaluation`, `metrics` (a
list of lines), `model`, and for the study itself `sweep`. What a run has not is left out. Weights,
checkpoints and images stay behind.

Reports read a packed study like its folders. Unpacked, it goes on where it was:

    python -m fairmix_jax.report.packed pack runs/STUDY results/STUDY
    python -m fairmix_jax.report.packed unpack results/STUDY runs/STUDY
"""

import argparse
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairmix_jax.report.runs import Arms, arm, arm_fields, config_of, content
from fairmix_jax.runtime import json_files
from fairmix_jax.runtime.errors import UsageError, exits_on_usage_error
from fairmix_jax.runtime.json_files import PACK


def pack(study: Path, target: Path) -> None:
    """Writes `target/runs.jsonl`, and the table and the pictures of the report to `target/report`.

    The study is the folder of a sweep or of a single run; the target is made if need be. Raises a
    `UsageError` if there is no run in `study`, `target` lies in it or has a pack with a run that is
    not in `study`, or a file is damaged.
    """
    own = content(study)
    if own and "config" not in own:
        raise json_files.damaged("config.json", f"{study}/config.json", "it is missing")
    members = list(own.get("sweep", {}).get("members", {}))
    folders = [name for name in members if (study / name / "config.json").is_file()]
    if not own or not (folders or "evaluation" in own):
        raise UsageError(f"there is no run in {str(study)!r}; give the folder of a study")
    if target.resolve().is_relative_to(study.resolve()):
        raise UsageError(f"target={str(target)!r} lies in the study; give a folder outside of it")
    packed = json_files.read_lines(target / PACK) if (target / PACK).is_file() else ()
    if lost := {line["folder"] for line in packed} - {"", *folders}:
        raise UsageError(
            f"{str(target / PACK)!r} has {min(lost)!r}, which {study} lacks; unpack it there first"
        )
    found = {folder: content(study / folder) for folder in folders}
    arms = arm_fields(own["config"].get("study", {}).get("arms", {}))
    names = {folder: _name(folder, config_of(held), arms) for folder, held in found.items()}
    if len({*names.values()}) < len(names):  # the sweep varies more than the arms say
        names = {folder: _name(folder, config_of(held), {}) for folder, held in found.items()}
    used, lines = Counter(), [{"name": "", "folder": ""} | own]
    for folder, name in names.items():
        used[name] += 1  # folders may differ in what names do not say
        number = f"-{used[name]}" if used[name] > 1 else ""
        lines.append({"name": name + number, "folder": folder} | found[folder])
    json_files.write_text(target / PACK, "".join(json_files.dumps(line) + "\n" for line in lines))
    _copy_report(study, target)


def unpack(packed: Path, target: Path) -> None:
    """Writes the folders of a packed study as they were, byte for byte, over files of the target.

    Raises a `UsageError` if there is no pack.
    """
    if not (packed / PACK).is_file():
        raise UsageError(f"there is no {packed / PACK}; give the folder of a packed study")
    for line in json_files.read_lines(packed / PACK):
        folder = target / line["folder"]
        if not folder.resolve().is_relative_to(target.resolve()):
            raise UsageError(f"{packed / PACK} names folder={line['folder']!r} outside of {target}")
        for name in json_files.FILES:
            held = line.get(Path(name).stem)
            if isinstance(held, list):
                lines = (json_files.dumps(entry) + "\n" for entry in held)
                json_files.write_text(folder / name, "".join(lines))
            elif held is not None:
                json_files.write_text(folder / name, json_files.dumps(held, indent=2) + "\n")
    _copy_report(packed, target)


def _copy_report(source: Path, target: Path) -> None:
    report = source / "report"
    for file in (*report.glob("table.md"), *report.glob("*.png")):
        json_files.write_bytes(target / "report" / file.name, file.read_bytes())


def _name(folder: str, known: Mapping[str, Any], arms: Arms) -> str:
    """The run's arm, or else the values in its folder's name, then its seed: `pgd_at_k2/seed0`.

    The values of `optim.learning_rate=0.1,mixing.name=none,seed=0` are `learning_rate0.1_none`.
    """
    varied = [part for part in folder.split(",") if not part.startswith("seed=")]
    values = [re.sub(r"^([^=]*\.name=|[^=]*\.)", "", part) for part in varied]
    method = arm(known, arms) or "_".join(values)
    plain = re.sub(r"[^\w.-]+", "_", method.replace("=", "")).strip("_")
    return f"{plain}/seed{known['seed']}" if plain else f"seed{known['seed']}"


@exits_on_usage_error("packed")
def main() -> None:
    """Runs the command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="python -m fairmix_jax.report.packed")
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path, help="folder of a study, or of a packed one")
    parser.add_argument("target", type=Path, help="folder to write")
    given = parser.parse_args()
    {"pack": pack, "unpack": unpack}[given.action](given.source, given.target)


if __name__ == "__main__":
    main()
