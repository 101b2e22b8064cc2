"""The tables and the figure of a throughput benchmark, and the exponents of its cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairmix_jax.benchmark.peers import SEPARATOR
from fairmix_jax.tables import MISSING, Table

_QUANTITIES = ("steps", "images", "parameters")


class Point(NamedTuple):
    """The cost of a PGD attack: seconds of a batch and what they should be proportional to."""

    steps: float
    images: float
    parameters: float
    seconds: float


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns a table of our own timings, one of the peers', and one of the exponents."""
    found = [_own(result)]
    if rows := [row for facts in result["members"].values() for row in _peer_rows(facts)]:
        header = ("network", "what", "who", "ms", "ms of ours", "ours is faster by", "from", "to")
        caption = "The same weights, images and cores: how many times as fast ours is"
        found.append(Table(caption, header, rows))
    if fitted := result.get("exponents"):
        rows = [
            [name, f"{fit['exponent']:.3f}", f"{fit['from']:,.0f}", f"{fit['to']:,.0f}"]
            for name, fit in fitted.items()
        ]
        caption = "PGD: seconds grow with this power of a quantity, the others held"
        found.append(Table(caption, ("quantity", "exponent", "from", "to"), rows))
    return found


def label(facts: Mapping[str, Any]) -> str:
    """Returns the name of a member: network, depth, width, batch, data type unless float32."""
    model = facts["model"]
    sizes = [str(model[name]) for name in ("depth", "width") if name in model]
    dtype = "" if facts["dtype"] == "float32" else f", {facts['dtype']}"
    return f"{'-'.join([model['name'], *sizes])}, {facts['batch_size']}{dtype}"


def _own(result: Mapping[str, Any]) -> Table:
    rows = []
    for facts in result["members"].values():
        member = label(facts)
        for name, timing in facts["timings"].items():
            if SEPARATOR in name:
                continue
            seconds = timing["seconds"]
            spread = f"{1e3 * seconds['low']:.1f} to {1e3 * seconds['high']:.1f}"
            rows.append([
                member, name, f"{1e3 * seconds['median']:.1f}", spread,
                f"{timing['images_per_second']:.0f}",
                _number(timing.get("image_steps_per_second"), 1, 0),
                _number(timing.get("flops_per_second"), 1e-9, 0),
                _number(timing.get("share_of_peak"), 1, 2),
                _number(timing.get("efficiency", {}).get("median"), 1, 3),
                _number(timing.get("compile_seconds"), 1, 1),
                _number(timing.get("temporary_bytes"), 2**-20, 0),
            ])  # fmt: skip
    caption = (
        f"Seconds of a batch: median and quartiles of {result['rounds']} rounds; efficiency is "
        "the share of the time that its own passes would take alone"
    )
    header = (
        "network", "what", "ms", "quartiles", "images/s", "image-steps/s", "GFLOP/s",
        "of matrix product", "efficiency", "compile s", "temporary MiB",
    )  # fmt: skip
    return Table(caption, header, rows)


def _number(value: float | None, factor: float, digits: int) -> str:
    return MISSING if value is None else f"{factor * value:.{digits}f}"


def _peer_rows(facts: Mapping[str, Any]) -> Iterator[list[str]]:
    member, timings = label(facts), facts["timings"]
    for name, timing in timings.items():
        kind, separator, who = name.partition(SEPARATOR)
        if not separator or kind not in timings:
            continue
        ours = timings[kind]
        base = ours["ratio"]["median"]
        faster = [timing["ratio"][key] / base for key in ("median", "low", "high")]
        milliseconds = [1e3 * part["seconds"]["median"] for part in (timing, ours)]
        yield [
            member, kind, who, *(f"{value:.1f}" for value in milliseconds),
            *(f"{value:.2f}" for value in faster),
        ]  # fmt: skip


def exponents(members: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns how the cost of PGD grows with steps, images and parameters.

    For each quantity a line is fitted to the logarithms of those timings that agree with
    the first in the other two; quantities with fewer than three different values are left out.
    """
    points = [
        Point(timing["passes"]["gradient"], facts["batch_size"], facts["parameters"],
              timing["ratio"]["median"])
        for facts in members.values()
        for name, timing in facts["timings"].items()
        if name.startswith("pgd") and SEPARATOR not in name
    ]  # fmt: skip
    fitted = {}
    for name in _QUANTITIES:
        others = [other for other in _QUANTITIES if other != name]
        line = [
            point
            for point in points
            if all(getattr(point, other) == getattr(points[0], other) for other in others)
        ]
        values = [getattr(point, name) for point in line]
        if len(set(values)) > 2:
            slope = np.polyfit(np.log(values), np.log([point.seconds for point in line]), 1)[0]
            fitted[name] = {"exponent": float(slope), "from": min(values), "to": max(values)}
    return fitted


def figure_rows(result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Returns rows for `output.draw`: each contender's efficiency, or a PGD attack's cost."""
    rows = []
    for facts in result["members"].values():
        member = label(facts)
        for name, timing in facts["timings"].items():
            if "efficiency" in timing and "exponents" not in result:
                rows.append({"member": member, "what": name} | timing["efficiency"])
            elif "exponents" in result and name.startswith("pgd"):
                rows.append({
                    "member": member, "seconds": timing["seconds"]["median"],
                    "steps": timing["passes"]["gradient"], "images": facts["batch_size"],
                    "parameters": facts["parameters"],
                })  # fmt: skip
    return rows
