"""The command line's answers about itself: `--help`, `fields`, `configs` and `doctor`."""

import ast
import math
from collections.abc import Iterator, Sequence
from textwrap import fill

from fairmix_jax.lab import configs_folder
from fairmix_jax.lab.schema import Config
from fairmix_jax.runtime import declared, registry, templates
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.registry import AXES
from fairmix_jax.runtime.tables import Table, rich_table

MODES = {
    "train": "train, evaluate and report; run again in the same workdir it goes on",
    "evaluate": "attack what is trained further, or evaluate another model",
    "audit": "evaluate the models that follow, which were trained elsewhere",
    "sweep": "the same for every run of `config.sweep`, then compare them",
    "report": "compare the runs in the folders that follow",
    "benchmark": "time training steps and attacks",
    "compile": "compile for TPUs that need not be here, and say what they need",
}
BACKENDS = {
    "local": "in this process, one run after another",
    "processes": "in --num_processes joined processes of this machine",
    "ray": "on a Ray cluster, with what `config.launch` says for each run",
    "slurm": "on a Slurm cluster, likewise",
}
FLAGS = {
    "config": "PATH/NAME.py[:variant], or the bare NAME of one of ours, see `fairmix configs`.",
    "workdir": "Folder of the run; runs/NAME[-variant] unless given.",
    "mode": "What to do.",
    "backend": "Where runs happen.",
    "coordinator": "host:port of the first of several processes; empty to detect a cluster.",
    "num_processes": "How many there are; 0 to detect a cluster, 1 to run alone.",
    "process_id": "Which of them this is; -1 to detect.",
    "compilation_cache": "Folder of compiled programs that all runs share; empty for none.",
}
_HEADER = ("field", "default", "values", "meaning")


def answers(arguments: Sequence[str]) -> bool:
    """Prints what was asked for if it is about the command line itself, and says whether it was."""
    match arguments:
        case ["--help" | "-h" | "help"]:
            flags = {f"--{name}": text for name, text in FLAGS.items()}
            texts = {"modes": MODES, "flags": flags, "backends": BACKENDS}
            print(templates.render("fairmix_jax.lab", "help.j2", **texts), end="")
        case ["fields"]:
            for table in field_tables():
                console.print(rich_table(table))
        case ["configs"]:
            folder = configs_folder()
            for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
                tree = ast.parse(path.read_text())
                if any(getattr(node, "name", "") == "get_config" for node in tree.body):
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    head = (ast.get_docstring(tree) or "").splitlines()[0]
                    console.print(fill(f"  {name:<28} {head}", 80, subsequent_indent=" " * 31))
            console.print("--config=NAME takes one, --config=NAME:smoke tries it for a minute")
        case ["doctor"]:
            from fairmix_jax.lab import doctor

            doctor.main()
        case _:
            return False
    return True


def field_tables() -> Iterator[Table]:
    """Yields a table for each section, then one for each member with fields of its own."""
    sections: dict[str, list[list[str]]] = {}
    for field, _ in declared.fields(Config()):
        section = field.name.rpartition(".")[0]
        row = [field.name, _shown(field.default), _values(field), field.meaning]
        if field.name != "data.name":  # which is a member's, too
            sections.setdefault(section or "the run", []).append(row)
    for section, axis in AXES.items():
        names = ", ".join(f"`{name!r}`" for name in registry.names(axis))
        more = ", or a prepared data set or one of TFDS" if section == "data" else ""
        chosen = _shown(getattr(Config(), section).name)
        page = "extend" if section in ("data", "model") else "methods"
        row = [
            f"{section}.name",
            chosen,
            names + more,
            f"which {section} to use; see docs/{page}.md",
        ]
        sections.setdefault(section, []).insert(0, row)
    for section, rows in sections.items():
        yield Table(section, _HEADER, rows)
    for section, axis in AXES.items():
        for name in registry.names(axis):
            if known := registry.fields(axis, name).values():
                rows = [[field.name, _shown(field.default), _values(field)] for field in known]
                yield Table(f"{section}.name={name}", _HEADER[:3], rows)


def _shown(value: object) -> str:
    return f"`{value!r}`" if value is not None else "worked out"


def _values(field: declared.Field) -> str:
    if field.choices:
        return ", ".join(f"`{choice!r}`" for choice in field.choices)
    ends = {"from": field.low, "above": field.above, "to": field.high, "below": field.below}
    return " ".join(f"{word} {end:.10g}" for word, end in ends.items() if math.isfinite(end))
