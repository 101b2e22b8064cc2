"""A report's panels as one HTML file, which needs no network and no server, and its charts as PNG.

`charts.json` has the charts in Vega-Lite's own language, without data; here they get what depends
on the methods and classes. One specification draws both: the page fills in the rows that its
filters choose, `draw` those that need no choice.
"""

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import vl_convert

from fairmix_jax.report.chart_rows import Row
from fairmix_jax.report.comparable import Comparable
from fairmix_jax.report.runs import Run
from fairmix_jax.runtime import templates
from fairmix_jax.runtime.json_files import flatten, write_bytes, write_text
from fairmix_jax.runtime.provenance import command
from fairmix_jax.runtime.tables import TEXT_COLUMNS, Table

_CHARTS = json.loads(templates.read("fairmix_jax.report", "charts.json"))
_DRAWN = ("classes", "tradeoff", "confidence", "training", "survivors")
_MAX_EXAMPLE_BYTES = 2_000_000


class Panel(NamedTuple):
    """A comparable set as the page shows it."""

    runs: Comparable
    outcome: str  # in words
    tables: Sequence[Table]  # the headlines first
    ensembles: Sequence[Table]  # of AutoAttack and its kind
    rows: Mapping[str, list[Row]]  # of charts and examples, by section


def write(path: Path, panels: Sequence[Panel], unfinished: Mapping[str, str]) -> None:
    """Writes the page of one panel or more, and of members of grids that are not done."""
    data = json.dumps({"panels": _data(panels)}, separators=(",", ":"))
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    page = templates.render(
        "fairmix_jax.report", "page.html",
        style=templates.read("fairmix_jax.report", "page.css"),
        script=templates.read("fairmix_jax.report", "page.js"),
        library=library.replace("</script", "<\\/script"), data=data.replace("<", "\\u003c"),
        panels=panels, settings=[_settings(panel.runs) for panel in panels],
        unfinished=unfinished, text_columns=TEXT_COLUMNS, provenance=_provenance,
    )  # fmt: skip
    write_text(path, page)


def draw(output: Path, panels: Sequence[Panel]) -> None:
    """Draws the charts that need no choice of one method, each under what it shows in words."""
    earlier = (*_DRAWN, "calibration")  # as 0.1 called the confidence
    for old in (file for name in earlier for file in output.glob(f"{name}*.png")):
        old.unlink()
    for number, panel in enumerate(panels):
        runs, attack, specs = panel.runs, panel.runs.main_attack, _specs(panel.runs)
        for name in _DRAWN:
            rows, title = panel.rows[name], runs.title
            if name not in ("training", "survivors"):
                title += f", {attack}"
                kinds = ({"clean": "clean"} if name == "classes" else {}) | {attack: "attack"}
                rows = [r | {"kind": kinds[r["attack"]]} for r in rows if r["attack"] in kinds]
            if rows:
                spec = specs[name]
                heading = {"text": title, "subtitle": textwrap.wrap(spec["description"], 110)}
                shown = {"data": {"values": rows}, "title": heading, "background": "white"}
                image = vl_convert.vegalite_to_png(spec | shown | {"width": 720}, scale=1.5)
                write_bytes(output / f"{name}{number + 1 if number else ''}.png", image)


def _data(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Returns what the page's script reads, with example images as long as there is room."""
    room, found = _MAX_EXAMPLE_BYTES, []
    for panel in panels:
        runs, examples = panel.runs, []
        methods = [method.label for method in runs.methods]
        for entry in panel.rows["examples"]:
            room -= len(json.dumps(entry))
            examples += [entry] if room >= 0 else []
        found.append({
            "title": runs.title, "methods": methods, "colours": _colours(len(methods)),
            "classes": runs.classes, "attacks": runs.attacks, "main_attack": runs.main_attack,
            "specs": _specs(runs),
            "rows": dict(panel.rows) | {"examples": examples},
            "left_off": len(panel.rows["examples"]) - len(examples),
        })  # fmt: skip
    return found


def _settings(runs: Comparable) -> tuple[dict[str, str], list[str]]:
    """The settings that all runs made here share, and the fields of the others."""
    own = [run.config for m in runs.methods for run in m.runs if not run.foreign_name]
    fields = sorted({field for config in own for field in config})
    shared = [f for f in fields if all(c.get(f) == own[0].get(f) for c in own)]
    differing = [field for field in fields if field not in shared]
    return {field: json.dumps(own[0].get(field)) for field in shared}, differing


def _provenance(run: Run) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns how a run was trained and evaluated: each step, its command and the other facts."""
    recorded = {"Trained": run.provenance, "Evaluated": run.evaluation.get("provenance", {})}
    plain = {what: dict(flatten(dict(facts))) for what, facts in recorded.items()}
    return [(what, command(facts.pop("argv", [])), facts) for what, facts in plain.items()]


def _specs(runs: Comparable) -> dict[str, dict[str, Any]]:
    """The chart of each section, by its name.

    A method has the same colour in all charts, and a legend says whose it is where there are
    several. The `description` of a chart says in words what it shows.
    """
    names, number = [method.label for method in runs.methods], len(runs.classes)
    ordered = {"sort": runs.classes}
    legend = {"orient": "bottom", "columns": 5} if number <= 20 else None
    of_methods = _CHARTS["legend"] if len(names) > 1 else None
    colours = {"domain": names, "range": _colours(len(names))}
    scheme = {"scheme": "tableau10" if number <= 10 else "tableau20"}
    below = {"labelAngle": 0 if number <= 10 else -60, "labelOverlap": False}
    above = {"labelAngle": -45 if number > 4 else 0, "orient": "top"}
    added: dict[tuple[str, str], dict[str, Any]] = {  # by channel and the field that it shows
        ("color", "method"): {"type": "nominal", "scale": colours, "legend": of_methods},
        ("shape", "method"): {"scale": {"domain": names}, "legend": of_methods},
        ("xOffset", "method"): {"sort": names},
        ("x", "class"): ordered | {"axis": below},
        ("x", "predicted"): ordered | {"axis": above},
        ("y", "class"): ordered,
        ("color", "class"): ordered | {"scale": scheme, "legend": legend},
    }
    sections = _completed(_CHARTS["sections"], added)
    sections["confusion"]["height"] = max(160, min(32 * number + 60, 640))
    if number > 20:
        del sections["confusion"]["layer"][1]  # the numbers, for which the cells are too small
    return {name: _CHARTS["all"] | section for name, section in sections.items()}


def _colours(number: int) -> list[str]:
    """Colours dark enough for thin lines on white, repeated beyond twelve."""
    return list(itertools.islice(itertools.cycle(_CHARTS["palette"]), number))


def _completed(spec: Any, added: Mapping[tuple[str, str], dict], channel: str = "") -> Any:
    """The specification with more properties for channels, by their names and fields."""
    if isinstance(spec, list):
        return [_completed(part, added) for part in spec]
    if not isinstance(spec, dict):
        return spec
    whole = {name: _completed(part, added, name) for name, part in spec.items()}
    return {**whole, **added.get((channel, whole.get("field", "")), {})}
