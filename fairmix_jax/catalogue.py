"""docs/methods.md, made from what the members say of themselves.

Command: `python -m fairmix_jax.catalogue > docs/methods.md`, in the source tree.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairmix_jax import awp, mixing, plugins
from fairmix_jax.tables import Table, markdown
from fairmix_jax.types import VALIDATION, Rule, Source

_ROOT = Path(__file__).parents[1]
_COST = _ROOT / "results" / "rule_cost.json"

_INTRODUCTION = """\
# Methods

A defence is **base x rule x mixing x averaging**, and adversarial weight perturbation around
it; any combination is a line of config. This page is generated from the code
(`python -m fairmix_jax.catalogue`), and a test compares the two. Each member's file says what
it computes, where paper and official code disagree, and which one it follows; each
`configs/cifar10_*.py` has a recipe, the published one where there is one, and the published
numbers that we could read. All code here is written from descriptions; the licence named is
that of the original.
"""


def text() -> str:
    """Returns the whole page."""
    measured = json.loads(_COST.read_text())
    parts = [_INTRODUCTION, markdown(_bases(measured)), markdown(_rules(measured))]
    parts += [markdown(_averaging()), markdown(_mixing()), _awp(measured), _provenance(measured)]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _bases(measured: dict[str, Any]) -> Table:
    caption = (
        "## Bases (`base.name`)\n\nThe training loss and the attack before it. Time is that of a "
        "training step relative to TRADES."
    )
    rows = []
    for name in plugins.names("bases"):
        own = "rule.name=none" if name == "trades" else f"base.name={name}"
        time = _ratio(measured, own)
        rows.append([_code(name), _summary("bases", name), time, *_origin("bases", name)])
    return Table(caption, ("base", "what", "time", "config", "source", "original"), rows)


def _rules(measured: dict[str, Any]) -> Table:
    caption = (
        "## Rules (`rule.name`)\n\nFrom class statistics to knobs per class. Cost is the extra "
        "time of a training step against the same base without the rule, median and quartiles; "
        "rules "
        "that read `clean`, `robust` or `base` also validate the current weights, which is free "
        "unless weights are averaged (`base`: one more pass)."
    )
    rows = []
    for name in plugins.names("rules"):
        rule = plugins.load("rules", name)(10)
        rows.append([
            _code(name), _summary("rules", name), _knobs(rule), ", ".join(rule.reads) or "-",
            _when(rule, name), _cost(measured, name), *_origin("rules", name),
        ])  # fmt: skip
    header = ("rule", "what", "sets", "reads", "when", "cost", "config", "source", "original")
    return Table(caption, header, rows)


def _averaging() -> Table:
    rows = [
        [_code(name), _summary("averaging", name), *_origin("averaging", name)[1:]]
        for name in plugins.names("averaging")
    ]
    caption = "## Averaging (`averaging.name`)\n\nWhich weights are validated and evaluated."
    return Table(caption, ("averaging", "what", "source", "original"), rows)


def _mixing() -> Table:
    rows = [
        [_code(name), what, _configs(name), source.paper]
        for name, (what, source) in mixing.MEMBERS.items()
    ]
    caption = "## Mixing (`mixing.name`)\n\nWhat is mixed before, or after, the attack."
    return Table(caption, ("mixing", "what", "config", "source"), rows)


def _awp(measured: dict[str, Any]) -> str:
    name = "awp.gamma=0.005"
    return (
        f"## Adversarial weight perturbation (`awp.gamma`)\n\nAround any of these: "
        f"{_first_line(awp)} Time of a TRADES step with it: {_ratio(measured, name)}. "
        f"{_source_text(awp.SOURCE)}. Configs: {_configs('awp')}, {_configs('trades_awp')}."
    )


def _provenance(measured: dict[str, Any]) -> str:
    made = measured["provenance"]
    return (
        f"Times: `{' '.join(['python launch.py', *made['argv'][1:]])}`; {made['processor']}; jax "
        f"{made['versions']['jax']}; {made['date'][:10]}; {measured['rounds']} rounds of "
        f"{measured['steps']} steps, each between two of the reference, batches of "
        f"{measured['batch_size']}; the reference against itself: "
        f"{_percent(measured['members']['rule.name=none']['ratio'])}."
    )


def _when(rule: Rule, name: str) -> str:
    reads = set(rule.reads)
    parts = ["every batch"] if "batch" in reads or rule.targets else []
    parts += ["epochs"] if "train" in reads else []
    parts += ["validations"] if reads & VALIDATION else []
    if "warmup_epochs" in plugins.parameters("rules", name):
        parts[-1] += " after a warm-up"
    if rule.finish is not Rule._field_defaults["finish"]:
        parts += ["after training"]
    return ", ".join(parts) or "-"


def _knobs(rule: Rule) -> str:
    parts = [*rule.sets]
    parts += ["attack targets"] if rule.targets else []
    return ", ".join(parts) or "-"


def _cost(measured: dict[str, Any], name: str) -> str:
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


def _ratio(measured: dict[str, Any], key: str) -> str:
    if key not in measured["members"]:
        return "not measured"
    return f"{measured['members'][key]['ratio']['median']:.2f}"


def _origin(axis: str, name: str) -> Sequence[str]:
    source = plugins.source(axis, name)
    return [_configs(name), source.paper, _original(source)]


def _original(source: Source) -> str:
    return source.code if source.licence == "-" else f"{source.code}, {source.licence}"


def _source_text(source: Source) -> str:
    return f"{source.paper}; original {_original(source)}"


def _configs(name: str) -> str:
    path = _ROOT / "configs" / f"cifar10_{name}.py"
    return f"[cifar10_{name}](../configs/{path.name})" if path.exists() else "-"


def _summary(axis: str, name: str) -> str:
    return _first_line(importlib.import_module(f"fairmix_jax.{axis}.{name}"))


def _first_line(module: Any) -> str:
    return module.__doc__.splitlines()[0]


def _code(name: str) -> str:
    return f"`{name}`"


if __name__ == "__main__":
    print(text(), end="")
