"""Writes docs/methods.md and docs/recipes.md from what the members and recipes say of themselves.

Command:  python -m tools.method_page
"""

import json
from pathlib import Path
from typing import Any

from fairmix_jax.lab.configs.cifar10_recipes import RECIPES
from fairmix_jax.methods import awp, mixing
from fairmix_jax.runtime import registry, templates
from fairmix_jax.types import VALIDATION, Source

_ROOT = Path(__file__).resolve().parents[1]


def pages() -> dict[str, str]:
    """Returns the text of each page, by its name in docs/; the templates lie beside this file."""
    measured = json.loads((_ROOT / "results" / "rule_cost.json").read_text())
    axes = ("bases", "rules", "averaging", "calibrations")
    bases, rules, averaging, calibrations = map(_members, axes)
    methods = templates.render(
        "tools", "methods.md.j2",
        bases=[facts | {"time": _time(measured, name)} for name, facts in bases.items()],
        rules=[facts | _rule(measured, name) for name, facts in rules.items()],
        averaging=averaging.values(), calibrations=calibrations.values(),
        mixing=[_facts(name, *said) for name, said in mixing.MEMBERS.items()],
        awp=_facts("awp", awp.__doc__, awp.SOURCE) | {"time": _time(measured, "awp")},
        measured=measured, config=_config, percent=_percent,
    )  # fmt: skip
    recipes = templates.render("tools", "recipes.md.j2", recipes=RECIPES)
    return {"methods.md": methods, "recipes.md": recipes}


def _members(axis: str) -> dict[str, dict[str, str]]:
    found = {}
    for name in registry.names(axis):
        module = registry.member(axis, name)
        source = getattr(module, "SOURCE", Source("not stated"))
        found[name] = _facts(name, module.__doc__, source)
    return found


def _facts(name: str, description: str | None, source: Source) -> dict[str, str]:
    """Of a description the first line."""
    what = (description or "").partition("\n")[0]
    licence = "" if source.licence == "-" else f", {source.licence}"
    return {
        "code": f"`{name}`", "what": what, "paper": source.paper,
        "original": source.code + licence, "config": _config(name),
    }  # fmt: skip


def _rule(measured: dict[str, Any], name: str) -> dict[str, str]:
    """What a rule reads, what it sets, when, and how long that takes."""
    rule = registry.load("rules", name)(10)
    sets = [*rule.sets, *(["attack targets"] if rule.targets else [])]
    when = ["every batch"] if "batch" in rule.reads or rule.targets else []
    when += ["epochs"] if "train" in rule.reads else []
    when += ["validations"] if VALIDATION & set(rule.reads) else []
    if "warmup_epochs" in registry.parameters("rules", name):
        when[-1] += " after a warm-up"
    columns = {"sets": sets, "reads": rule.reads, "when": when}
    texts = {column: ", ".join(found) or "-" for column, found in columns.items()}
    return texts | {"cost": _cost(measured, name)}


def _cost(measured: dict[str, Any], name: str) -> str:
    """Extra time of a rule's step, against the same base and mixing without it."""
    members = measured["members"]
    chosen = [key for key in members if f"rule.name={name}" in key.split(",")]
    if name == "none":
        return "-"
    if not chosen:
        return "not measured"
    _, _, mixed = chosen[0].partition(",")
    base = members[mixed]["ratio"]["median"] if mixed else 1.0
    return _percent({key: value / base for key, value in members[chosen[0]]["ratio"].items()})


def _percent(ratio: dict[str, float]) -> str:
    low, median, high = (100 * (ratio[key] - 1) for key in ("low", "median", "high"))
    return f"{median:+.1f} % ({low:+.1f} to {high:+.1f})"


def _time(measured: dict[str, Any], name: str) -> str:
    """A step's time relative to TRADES; that of a base, or of TRADES with `awp`."""
    special = {"trades": "rule.name=none", "awp": "awp.gamma=0.005"}
    key = special.get(name, f"base.name={name}")
    if key not in measured["members"]:
        return "not measured"
    return f"{measured['members'][key]['ratio']['median']:.2f}"


def _config(name: str) -> str:
    return f"[{name}](recipes.md#{name})" if name in RECIPES else "-"


if __name__ == "__main__":
    for name, text in pages().items():
        (_ROOT / "docs" / name).write_text(text)
