"""The charts of a report as Vega-Lite specifications without data, and their PNG files.

One specification draws both: the page fills in the rows that its filters choose, `png` those
it is given.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

_PALETTE = [
    "#0072B2", "#C2410C", "#00795A", "#A8327D", "#8A6100", "#111827", "#5B4BD6", "#0E7490",
    "#9F1239", "#4D7C0F", "#6B7280", "#7C2D12",
]  # fmt: skip
_PERCENT = {"format": ".0%", "tickMinStep": 0.01, "tickCount": 8}
_CONFIG = {
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "gridColor": "#e5e7eb",
             "titleFontWeight": "normal", "domainColor": "#9ca3af", "tickColor": "#9ca3af"},
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "labelLimit": 320},
    "view": {"stroke": None},
}  # fmt: skip


def specs(methods: Sequence[str], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the chart of each section, by its name.

    Args:
      methods: their labels; a method has the same colour in all charts.
      classes: `K` names, in their order.
    """
    scale = {"domain": list(methods), "range": colours(len(methods))}
    method = {"field": "method", "type": "nominal", "scale": scale, "legend": None}
    return {
        "tradeoff": _tradeoff(method),
        "classes": _classes(method, classes),
        "radius": _radius(classes),
        "confusion": _confusion(classes),
        "calibration": _calibration(method),
        "training": _training(method),
        "survivors": _survivors(method),
    }


def colours(number: int) -> list[str]:
    """Returns colours dark enough for thin lines on white, repeated beyond twelve."""
    return [_PALETTE[position % len(_PALETTE)] for position in range(number)]


def png(path: Path, spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws a chart into a file, with its legend.

    Args:
      path: of the PNG file.
      spec: one of `specs`.
      rows: its data.
      title: above it.
    """
    whole = copy.deepcopy(dict(spec))
    whole |= {"data": {"values": list(rows)}, "width": 720, "title": title, "background": "white"}
    for layer in whole.get("layer", [whole]):
        colour = layer.get("encoding", {}).get("color", {})
        if colour.get("field") == "method":
            colour["legend"] = {"orient": "bottom", "columns": 2, "title": None}
    path.write_bytes(vl_convert.vegalite_to_png(whole, scale=1.5))


def _chart(description: str, height: int, **content: Any) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description, "width": "container", "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"}, "config": _CONFIG, **content,
    }  # fmt: skip


def _share(field: str, title: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, "axis": _PERCENT, **more}


def _tradeoff(method: dict) -> dict[str, Any]:
    x = _share("average", "average accuracy", scale={"zero": False})
    y = _share("worst", "worst class, without bias", scale={"zero": False})
    tips = [
        {"field": "method"}, {"field": "average", "format": ".1%"},
        {"field": "worst", "format": ".1%", "title": "worst class"}, {"field": "seeds"},
    ]  # fmt: skip
    return _chart(
        "Average against worst class accuracy of each method with 95 % intervals; the dashed "
        "line joins the methods that no other in the report beats in both.",
        340,
        layer=[
            {"transform": [{"filter": "datum.front"}], "encoding": {"x": x, "y": y},
             "mark": {"type": "line", "strokeDash": [5, 4], "color": "#9ca3af"}},
            {"mark": "rule", "encoding": {"x": x | {"field": "average_low"}, "y": y,
                                          "x2": {"field": "average_high"}, "color": method}},
            {"mark": "rule", "encoding": {"y": y | {"field": "worst_low"}, "x": x,
                                          "y2": {"field": "worst_high"}, "color": method}},
            {"mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
             "encoding": {"x": x, "y": y, "color": method, "tooltip": tips,
                          "shape": {"field": "method", "type": "nominal", "legend": None,
                                    "scale": {"domain": method["scale"]["domain"]}}}},
            {"mark": {"type": "text", "align": "left", "dx": 9, "dy": -9, "limit": 180},
             "encoding": {"x": x, "y": y, "color": method,
                          "text": {"field": "method", "type": "nominal"}}},
        ],
    )  # fmt: skip


def _classes(method: dict, classes: Sequence[str]) -> dict[str, Any]:
    axis = {"labelAngle": 0 if len(classes) <= 10 else -60, "labelOverlap": False}
    x = {"field": "class", "type": "nominal", "title": None, "sort": list(classes), "axis": axis}
    y = _share("accuracy", "accuracy", scale={"domain": [0, 1]})
    place = {"x": x, "xOffset": {"field": "method", "sort": method["scale"]["domain"]}}
    tips = [
        {"field": "method"}, {"field": "class"}, {"field": "attack"},
        {"field": "accuracy", "format": ".1%"}, {"field": "low", "format": ".1%"},
        {"field": "high", "format": ".1%"},
    ]  # fmt: skip
    bars = place | {"y": y, "color": method, "tooltip": tips}
    return _chart(
        "Accuracy of each class: pale bars clean, full bars attacked, lines 95 % intervals.",
        300,
        layer=[
            {"transform": [{"filter": "datum.kind == 'clean'"}], "encoding": bars,
             "mark": {"type": "bar", "opacity": 0.3}},
            {"transform": [{"filter": "datum.kind == 'attack'"}], "encoding": bars, "mark": "bar"},
            {"transform": [{"filter": "datum.kind == 'attack'"}],
             "mark": {"type": "rule", "color": "#374151"},
             "encoding": place | {"y": y | {"field": "low"}, "y2": {"field": "high"}}},
        ],
    )  # fmt: skip


def _radius(classes: Sequence[str]) -> dict[str, Any]:
    x = {"field": "epsilon", "type": "quantitative", "title": "radius"}
    y = _share("accuracy", "robust accuracy", scale={"domain": [0, 1]})
    colour = {
        "field": "class", "type": "nominal", "sort": list(classes), "title": None,
        "scale": {"scheme": "tableau10" if len(classes) <= 10 else "tableau20"},
        "legend": {"orient": "bottom", "columns": 5} if len(classes) <= 20 else None,
    }  # fmt: skip
    tips = [{"field": "class"}, {"field": "epsilon", "format": ".4f"},
            {"field": "accuracy", "format": ".1%"}]  # fmt: skip
    return _chart(
        "Robust accuracy of each class over the radius of the attack; black is the average.",
        320,
        layer=[
            {"transform": [{"filter": "datum.class != 'average'"}],
             "mark": {"type": "line", "point": True},
             "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips}},
            {"transform": [{"filter": "datum.class == 'average'"}],
             "mark": {"type": "line", "color": "black", "strokeWidth": 3},
             "encoding": {"x": x, "y": y, "tooltip": tips}},
        ],
    )  # fmt: skip


def _confusion(classes: Sequence[str]) -> dict[str, Any]:
    axis = {"labelAngle": -45 if len(classes) > 4 else 0, "orient": "top"}
    place = {
        "x": {"field": "predicted", "type": "nominal", "sort": list(classes), "axis": axis,
              "title": "predicted class"},
        "y": {"field": "class", "type": "nominal", "sort": list(classes), "title": "true class"},
    }  # fmt: skip
    tips = [{"field": "class", "title": "true"}, {"field": "predicted"},
            {"field": "share", "format": ".1%"}]  # fmt: skip
    cells = {
        "mark": "rect",
        "encoding": place | {
            "tooltip": tips,
            "color": {"field": "share", "type": "quantitative", "legend": None,
                      "scale": {"scheme": "blues", "domain": [0, 1]}},
        },
    }  # fmt: skip
    texts = {
        "mark": {"type": "text", "fontSize": 11},
        "encoding": place | {
            "text": {"field": "share", "type": "quantitative", "format": ".0%"},
            "color": {"condition": {"test": "datum.share > 0.5", "value": "white"},
                      "value": "#111827"},
            "opacity": {"condition": {"test": "datum.share >= 0.005", "value": 1}, "value": 0},
        },
    }  # fmt: skip
    return _chart(
        "Share of the images of each true class (row) that is predicted as each class (column).",
        max(160, min(32 * len(classes) + 60, 640)),
        layer=[cells, texts] if len(classes) <= 20 else [cells],
    )


def _calibration(method: dict) -> dict[str, Any]:
    x = _share("confidence", "mean confidence", scale={"domain": [0, 1]})
    y = _share("accuracy", "accuracy", scale={"domain": [0, 1]})
    tips = [{"field": "method"}, {"field": "confidence", "format": ".1%"},
            {"field": "accuracy", "format": ".1%"}, {"field": "count"}]  # fmt: skip
    return _chart(
        "Accuracy over mean confidence in 15 bins; on the grey diagonal confidence is honest.",
        320,
        layer=[
            {"data": {"values": [{"confidence": 0, "accuracy": 0},
                                 {"confidence": 1, "accuracy": 1}]},
             "mark": {"type": "line", "color": "#9ca3af", "strokeDash": [5, 4]},
             "encoding": {"x": x, "y": y}},
            {"mark": {"type": "line", "point": True},
             "encoding": {"x": x, "y": y, "color": method, "tooltip": tips}},
        ],
    )  # fmt: skip


def _training(method: dict) -> dict[str, Any]:
    tips = [{"field": "method"}, {"field": "seed"}, {"field": "epoch"}, {"field": "statistic"},
            {"field": "accuracy", "format": ".1%"}]  # fmt: skip
    return _chart(
        "Accuracy under PGD on the validation set after each epoch, average and worst class.",
        320,
        mark={"type": "line", "strokeWidth": 1.5, "opacity": 0.85, "point": {"size": 14}},
        encoding={
            "x": {"field": "epoch", "type": "quantitative", "title": "epoch"},
            "y": _share("accuracy", "robust accuracy, validation", scale={"domain": [0, 1]}),
            "color": method,
            "strokeDash": {"field": "statistic", "type": "nominal",
                           "sort": ["average", "worst class"],
                           "legend": {"orient": "top", "title": None}},
            "detail": {"field": "seed"},
            "tooltip": tips,
        },
    )  # fmt: skip


def _survivors(method: dict) -> dict[str, Any]:
    tips = [{"field": "method"}, {"field": "attack"}, {"field": "seconds"}, {"field": "survivors"}]
    return _chart(
        "Images that are not broken yet while the attacks of an ensemble run one after another, "
        "in each method's first run.",
        260,
        mark={"type": "line", "interpolate": "step-after"},
        encoding={
            "x": {"field": "seconds", "type": "quantitative", "title": "seconds"},
            "y": {"field": "survivors", "type": "quantitative", "title": "images not broken"},
            "color": method,
            "strokeDash": {
                "field": "attack",
                "type": "nominal",
                "legend": {"orient": "top", "title": None},
            },
            "tooltip": tips,
        },
    )
