"""The report as one HTML file that needs nothing else, no network and no server."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import vl_convert

from fairmix_jax.config import flatten
from fairmix_jax.report import charts
from fairmix_jax.report.runs import Comparable, Group, Run
from fairmix_jax.tables import Table

_MAX_EXAMPLE_BYTES = 2_000_000
_NUMBERS = (
    "attack",
    "method",
    "class",
    "pushed into",
    "finding",
    "verdict",
    "reason",
    "most in class",
)


class Panel(NamedTuple):
    """A comparable set as the page shows it.

    Attributes:
      runs: the set.
      tables: its tables, the headlines first.
      ensembles: tables of AutoAttack and its kind.
      rows: those of its charts and examples, by section.
    """

    runs: Comparable
    tables: Sequence[Table]
    ensembles: Sequence[Table]
    rows: Mapping[str, list[dict[str, Any]]]


def write(path: Path, panels: Sequence[Panel], failures: Mapping[str, str]) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      panels: at least one.
      failures: runs that failed, with their errors.
    """
    files = resources.files("fairmix_jax.report")
    template = Template((files / "page.html").read_text())
    data = {"panels": [_data(panel) for panel in panels]}
    path.write_text(
        template.substitute(
            style=(files / "page.css").read_text(),
            summary=_summary(panels, failures),
            tables="".join(_tables(n, panel.runs, panel.tables) for n, panel in enumerate(panels)),
            ensembles="".join(
                _tables(n, panel.runs, panel.ensembles) for n, panel in enumerate(panels)
            ),
            provenance="".join(_provenance(number, panel) for number, panel in enumerate(panels)),
            data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
            library=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
                "</script", "<\\/script"
            ),
            script=(files / "page.js").read_text(),
        )
    )


def _data(panel: Panel) -> dict[str, Any]:
    methods = [group.label for group in panel.runs.groups]
    room, examples = _MAX_EXAMPLE_BYTES, []
    for entry in panel.rows["examples"]:
        room -= sum(
            len(i["clean"]) + len(i["change"]) + len(i["adversarial"]) for i in entry["images"]
        )
        examples += [entry] if room >= 0 else []
    return {
        "title": panel.runs.title,
        "methods": methods,
        "colours": charts.colours(len(methods)),
        "classes": panel.runs.classes,
        "attacks": panel.runs.attacks,
        "specs": charts.specs(methods, panel.runs.classes),
        "rows": dict(panel.rows) | {"examples": examples},
        "left_off": len(panel.rows["examples"]) - len(examples),
    }


def _summary(panels: Sequence[Panel], failures: Mapping[str, str]) -> str:
    runs = sum(len(group.runs) for panel in panels for group in panel.runs.groups)
    methods = sum(len(panel.runs.groups) for panel in panels)
    text = f"<p>{methods} method{'s' * (methods > 1)}, {runs} run{'s' * (runs > 1)}"
    if len(panels) > 1:
        text += (
            f" in {len(panels)} sets that differ in data, classes, radius or test images and "
            "are never averaged together"
        )
    text += ".</p>"
    if failures:
        items = "".join(
            f"<li><b>{html.escape(name)}</b>: {html.escape(error)}</li>"
            for name, error in failures.items()
        )
        text += f'<div class="failed" role="note"><h2>Failed runs</h2><ul>{items}</ul></div>'
    return text


def _tables(number: int, runs: Comparable, tables: Sequence[Table]) -> str:
    shown = "".join(_table(table) for table in tables)
    return (
        f'<section class="panel" data-set="{number}" aria-label="{html.escape(runs.title)}">'
        f"{shown}</section>"
    )


def _table(table: Table) -> str:
    """A table whose columns can be sorted and whose rows know their attack and method."""
    head = "".join(
        f'<th scope="col" class="{"text" if name in _NUMBERS else "number"}">'
        f'<button type="button">{html.escape(name)}</button></th>'
        for name in table.header
    )
    body = []
    for cells in table.rows:
        known = {
            key: cells[table.header.index(key)]
            for key in ("attack", "method")
            if key in table.header
        }
        marks = "".join(f' data-{key}="{html.escape(value)}"' for key, value in known.items())
        columns = [
            f'<td class="{"text" if name in _NUMBERS else "number"}">{html.escape(cell)}</td>'
            for name, cell in zip(table.header, cells, strict=True)
        ]
        columns[0] = columns[0].replace("<td", '<th scope="row"').replace("</td>", "</th>")
        body.append(f"<tr{marks}>{''.join(columns)}</tr>")
    caption = html.escape(table.caption)
    return (
        f'<p class="hint">{caption}</p><div class="wide" tabindex="0" role="region" '
        f'aria-label="{caption}"><table aria-label="{caption}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _provenance(number: int, panel: Panel) -> str:
    configs = [run.config for group in panel.runs.groups for run in group.runs]
    fields = sorted({field for config in configs for field in config})
    shared = [f for f in fields if all(c.get(f) == configs[0].get(f) for c in configs)]
    common = "".join(
        f"<dt>{html.escape(f)}</dt><dd>{html.escape(json.dumps(configs[0].get(f)))}</dd>"
        for f in shared
    )
    own = [field for field in fields if field not in shared]
    groups = "".join(_group(group, own) for group in panel.runs.groups)
    return (
        f'<section class="panel" data-set="{number}"><h3>{html.escape(panel.runs.title)}</h3>'
        f"{groups}<details><summary>Settings that all these runs share ({len(shared)})</summary>"
        f"<dl>{common}</dl></details></section>"
    )


def _group(group: Group, fields: Sequence[str]) -> str:
    runs = "".join(_run(run, fields) for run in group.runs)
    seeds = ", ".join(map(str, group.seeds))
    return (
        f"<details><summary><b>{html.escape(group.label)}</b>, seeds {html.escape(seeds)}"
        f"</summary>{runs}</details>"
    )


def _run(run: Run, fields: Sequence[str]) -> str:
    facts = dict(flatten(dict(run.provenance)))
    argv = facts.pop("argv", [])
    facts = {"workdir": str(run.path), **facts} | {
        field: run.config[field] for field in fields if field in run.config
    }
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<p><code>{html.escape(' '.join(argv))}</code></p><dl>{items}</dl>"
