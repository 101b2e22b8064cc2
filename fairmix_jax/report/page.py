"""The report as one HTML file that needs nothing else, no network and no server."""

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import vl_convert

from fairmix_jax.config import flatten
from fairmix_jax.report import charts
from fairmix_jax.report.runs import Comparable, Group, Run
from fairmix_jax.tables import TEXT_COLUMNS, Table

_MAX_EXAMPLE_BYTES = 2_000_000


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


def write(path: Path, panels: Sequence[Panel], unfinished: Mapping[str, str]) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      panels: at least one.
      unfinished: members of grids that are not done, with how they stand.
    """
    files = resources.files("fairmix_jax.report")
    template = Template((files / "page.html").read_text(encoding="utf-8"))
    data = json.dumps({"panels": _data(panels)}, separators=(",", ":"))
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    page = template.substitute(
        style=(files / "page.css").read_text(encoding="utf-8"),
        summary=_summary(panels, unfinished),
        tables="".join(_tables(n, panel.runs, panel.tables) for n, panel in enumerate(panels)),
        ensembles="".join(
            _tables(n, panel.runs, panel.ensembles) for n, panel in enumerate(panels)
        ),
        provenance="".join(_provenance(n, panel.runs) for n, panel in enumerate(panels)),
        data=data.replace("<", "\\u003c"),
        library=library.replace("</script", "<\\/script"),
        script=(files / "page.js").read_text(encoding="utf-8"),
    )
    path.write_text(page, encoding="utf-8")


def _data(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """What the script reads; example images as long as there is room."""
    room, found = _MAX_EXAMPLE_BYTES, []
    for panel in panels:
        methods, examples = [group.label for group in panel.runs.groups], []
        for entry in panel.rows["examples"]:
            room -= len(json.dumps(entry))
            examples += [entry] if room >= 0 else []
        found.append({
            "title": panel.runs.title,
            "methods": methods,
            "colours": charts.colours(len(methods)),
            "classes": panel.runs.classes,
            "attacks": panel.runs.attacks,
            "main_attack": panel.runs.main_attack,
            "specs": charts.specs(methods, panel.runs.classes),
            "rows": dict(panel.rows) | {"examples": examples},
            "left_off": len(panel.rows["examples"]) - len(examples),
        })  # fmt: skip
    return found


def _summary(panels: Sequence[Panel], unfinished: Mapping[str, str]) -> str:
    runs = sum(len(group.runs) for panel in panels for group in panel.runs.groups)
    methods = sum(len(panel.runs.groups) for panel in panels)
    text = f"<p>{methods} method{'s' * (methods > 1)}, {runs} run{'s' * (runs > 1)}"
    if len(panels) > 1:
        text += (
            f" in {len(panels)} sets that differ in data, classes, radius or test images and "
            "are never averaged together"
        )
    text += ".</p>"
    if unfinished:
        items = "".join(
            f"<li><b>{html.escape(name)}</b>: {html.escape(error)}</li>"
            for name, error in unfinished.items()
        )
        head = "<h2>Members that are not done</h2>"
        text += f'<div class="failed" role="note">{head}<ul>{items}</ul></div>'
    return text


def _tables(number: int, runs: Comparable, tables: Sequence[Table]) -> str:
    links = {group.label: f"#runs-{number}-{n}" for n, group in enumerate(runs.groups)}
    shown = "".join(_table(table, links) for table in tables)
    return shown and (
        f'<section class="panel" data-set="{number}" aria-label="{html.escape(runs.title)}">'
        f"{shown}</section>"
    )


def _table(table: Table, links: Mapping[str, str]) -> str:
    """A table whose columns can be sorted; it, or its rows, know their attack and method."""
    kinds = ["text" if name in TEXT_COLUMNS else "number" for name in table.header]
    head = "".join(
        f'<th scope="col" class="{kind}"><button type="button">{html.escape(name)}</button></th>'
        for name, kind in zip(table.header, kinds, strict=True)
    )
    named = table.header.index("method") if "method" in table.header else 0

    def row(cells: Sequence[str]) -> str:
        known = {k: cells[table.header.index(k)] for k in ("attack", "method") if k in table.header}
        columns = []
        for number, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
            text = html.escape(cell)
            if number == named and cell in links:
                text = f'<a href="{links[cell]}">{text}</a>'
            tag = 'th scope="row"' if number == named else "td"
            columns.append(f'<{tag} class="{kind}">{text}</{tag[:2]}>')
        return f"<tr{_marks(**known)}>{''.join(columns)}</tr>"

    caption = html.escape(table.caption)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"'
        f"{_marks(attack=table.attack, method=table.method)}><table>"
        f"<caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(map(row, table.rows))}</tbody>"
        f"<tfoot>{''.join(map(row, table.footer))}</tfoot></table></div>"
    )


def _marks(**known: str) -> str:
    return "".join(f' data-{k}="{html.escape(value)}"' for k, value in known.items() if value)


def _provenance(number: int, runs: Comparable) -> str:
    own = [run.config for g in runs.groups for run in g.runs if "method" not in run.evaluation]
    fields = sorted({field for config in own for field in config})
    shared = [f for f in fields if all(c.get(f) == own[0].get(f) for c in own)]
    common = _facts({field: json.dumps(own[0].get(field)) for field in shared})
    varying = [field for field in fields if field not in shared]
    groups = "".join(
        _group(f"runs-{number}-{n}", group, varying) for n, group in enumerate(runs.groups)
    )
    return (
        f'<section class="panel" data-set="{number}"><h3>{html.escape(runs.title)}</h3>'
        f"{groups}<details><summary>Settings that all these runs share ({len(shared)})</summary>"
        f"{common}</details></section>"
    )


def _group(identifier: str, group: Group, fields: Sequence[str]) -> str:
    seeds = ", ".join(map(str, group.seeds))
    return (
        f'<details id="{identifier}"><summary><b>{html.escape(group.label)}</b>, seeds '
        f"{seeds}</summary>{''.join(_run(run, fields) for run in group.runs)}</details>"
    )


def _run(run: Run, fields: Sequence[str]) -> str:
    """Where a run lies, what tells it apart, and what trained and evaluated it."""
    own = {field: run.config[field] for field in fields if field in run.config}
    parts = [_facts({"workdir": run.path.resolve(), **own})]
    for what, facts in (
        ("Trained", run.provenance), ("Evaluated", run.evaluation.get("provenance", {})),
    ):  # fmt: skip
        plain = dict(flatten(dict(facts)))
        command = shlex.join(plain.pop("argv", []))
        parts.append(
            f"<p>{what}: <code>{html.escape(command)}</code></p>{_facts(plain)}"
            if plain
            else f"<p>{what}: not recorded.</p>"
        )
    parts.append(
        _facts({f"evaluate.{k}": v for k, v in run.evaluation.get("settings", {}).items()})
    )
    return "".join(parts)


def _facts(facts: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{items}</dl>"
