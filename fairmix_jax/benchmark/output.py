"""Where a benchmark's results go: `benchmark.json`, tables, and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from fairmix_jax import workdir
from fairmix_jax.export import write_json
from fairmix_jax.progress import console
from fairmix_jax.tables import Table, markdown, rich_table


def write(directory: Path, result: dict[str, Any], tables: Sequence[Table]) -> None:
    """Writes `benchmark.json`, with its provenance, and `benchmark.md`, and prints the tables."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "benchmark.json", result | {"provenance": workdir.provenance()})
    text = "\n\n".join(markdown(table) for table in tables)
    (directory / "benchmark.md").write_text(text + "\n")
    for table in tables:
        console.print(rich_table(table))


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws efficiencies as points with quartiles, or costs on logarithmic axes."""
    if not rows:
        return
    panel = _costs() if "seconds" in rows[0] else _efficiencies()
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": list(rows)},
        "background": "white",
        **panel,
    }
    path.write_bytes(vl_convert.vegalite_to_png(spec, scale=1.5))


def _efficiencies() -> dict[str, Any]:
    what = {"field": "what", "type": "nominal", "title": None, "sort": None}
    x = {"field": "median", "type": "quantitative", "title": "share of the unavoidable"}
    colour = {"field": "member", "type": "nominal", "legend": {"orient": "bottom"}, "title": None}
    offset = {"field": "member"}
    return {
        "width": 480,
        "layer": [
            {"mark": "rule", "encoding": {"x": {"datum": 1}, "color": {"value": "#6b7280"}}},
            {"mark": "rule", "encoding": {
                "y": what, "yOffset": offset, "x": x | {"field": "low"}, "x2": {"field": "high"},
                "color": colour}},
            {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {
                "y": what, "yOffset": offset, "x": x, "color": colour}},
        ],
    }  # fmt: skip


def _costs() -> dict[str, Any]:
    """One panel for each quantity: the timings that differ from the first in it alone."""
    scale = {"type": "log", "nice": False, "padding": 12}
    seconds = {"field": "seconds", "type": "quantitative", "scale": scale}
    quantities = ("steps", "images", "parameters")

    def panel(quantity: str) -> dict[str, Any]:
        others = [other for other in quantities if other != quantity]
        first = [{"window": [{"op": "first_value", "field": name, "as": f"own_{name}"}],
                  "frame": [None, None]} for name in others]  # fmt: skip
        same = [{"filter": f"datum.{name} == datum.own_{name}"} for name in others]
        x = {"field": quantity, "type": "quantitative", "scale": scale}
        return {
            "width": 220, "height": 220, "transform": [*first, *same],
            "mark": {"type": "line", "point": True}, "encoding": {"x": x, "y": seconds},
        }  # fmt: skip

    return {"hconcat": [panel(quantity) for quantity in quantities]}
