"""The tables and the figure of a throughput benchmark, and the exponents of its cost."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import vl_convert

from fairmix_jax.lab.benchmark.peers import SEPARATOR
from fairmix_jax.runtime import templates
from fairmix_jax.runtime.json_files import write_bytes
from fairmix_jax.runtime.tables import MISSING, Table

_QUANTITIES = {"steps": "passes.gradient", "images": "batch_size", "parameters": "parameters"}
"""What the cost of PGD should be proportional to, and the column that says how much of it."""

_COLUMNS = {
    "ms": ("seconds.median", 1e3, 1),
    "quartiles": None,
    "images/s": ("images_per_second", 1, 0),
    "image-steps/s": ("image_steps_per_second", 1, 0),
    "GFLOP/s": ("flops_per_second", 1e-9, 0),
    "of matrix product": ("share_of_peak", 1, 2),
    "efficiency": ("efficiency.median", 1, 3),
    "compile s": ("compile_seconds", 1, 1),
    "temporary MiB": ("temporary_bytes", 2**-20, 0),
}
"""Heading -> column, what it is multiplied by, digits."""


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns a table of our own timings, one of the peers', and one of the exponents."""
    timings = _frame(result["members"])
    labels = {name: label(facts) for name, facts in result["members"].items()}
    timings["network"] = timings["member"].map(labels)
    ours, peers = timings[timings["who"] == ""], timings[timings["who"] != ""]
    low, high = (_texts(ours, f"seconds.{end}", 1e3, 1) for end in ("low", "high"))
    shown = ours[["network", "what"]].assign(**{
        heading: _texts(ours, *column) if column else low + " to " + high
        for heading, column in _COLUMNS.items()
    })  # fmt: skip
    caption = (
        f"Seconds of a batch: median and quartiles of {result['rounds']} rounds; efficiency is "
        "the share of the time that its own passes would take alone"
    )
    found = [Table(caption, tuple(shown), shown.to_numpy().tolist())]
    both = peers.merge(ours, on=["member", "what"], suffixes=("", " of ours"))
    if len(both):
        shown = both[["network", "what", "who"]].assign(**{
            "ms": _texts(both, "seconds.median", 1e3, 1),
            "ms of ours": _texts(both, "seconds.median of ours", 1e3, 1),
        })  # fmt: skip
        for heading, end in (("ours is faster by", "median"), ("from", "low"), ("to", "high")):
            both["faster"] = both[f"ratio.{end}"] / both["ratio.median of ours"]
            shown[heading] = _texts(both, "faster", 1, 2)
        caption = "The same weights, images and cores: how many times as fast ours is"
        found.append(Table(caption, tuple(shown), shown.to_numpy().tolist()))
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


def _frame(members: Mapping[str, Any]) -> pd.DataFrame:
    """One row a timing: its member, what is done, who does it (ours: empty), all that is known."""
    rows = []
    for member, facts in members.items():
        sizes = {name: facts[name] for name in ("batch_size", "parameters")}
        for name, timing in facts["timings"].items():
            what, _, who = name.partition(SEPARATOR)
            rows.append({"member": member, "what": what, "who": who} | sizes | timing)
    return pd.json_normalize(rows)


def _texts(frame: pd.DataFrame, column: str, factor: float, digits: int) -> pd.Series:
    if column not in frame:
        return pd.Series(MISSING, frame.index)
    return frame[column].map(lambda x: MISSING if pd.isna(x) else f"{factor * x:.{digits}f}")


def _costs(members: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each quantity, and the timings of our PGD that agree with the first in the other two."""
    timings = _frame(members)
    pgd = timings[timings["what"].str.startswith("pgd") & (timings["who"] == "")]
    for name, column in _QUANTITIES.items() if len(pgd) else ():
        others = [other for other in _QUANTITIES.values() if other != column]
        line = pgd[(pgd[others] == pgd[others].iloc[0]).all(axis=1)]
        yield name, line.assign(amount=line[column])


def exponents(members: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns how the cost of PGD grows with steps, images and parameters.

    For each quantity a line is fitted to the logarithms of those timings that agree with
    the first in the other two; quantities with fewer than three different values are left out.
    """
    fitted = {}
    for name, line in _costs(members):
        if line["amount"].nunique() > 2:
            slope = np.polyfit(np.log(line["amount"]), np.log(line["ratio.median"]), 1)[0]
            low, high = int(line["amount"].min()), int(line["amount"].max())
            fitted[name] = {"exponent": float(slope), "from": low, "to": high}
    return fitted


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Draws efficiencies as points with quartiles, or costs on logarithmic axes."""
    if "exponents" in result:
        kind = "cost"
        rows = [
            {"quantity": name, "amount": amount, "seconds": seconds}
            for name, line in _costs(result["members"])
            for amount, seconds in zip(line["amount"], line["seconds.median"], strict=True)
        ]
    else:
        kind = "efficiencies"
        rows = [
            {"member": label(facts), "what": name} | timing["efficiency"]
            for facts in result["members"].values()
            for name, timing in facts["timings"].items()
            if "efficiency" in timing
        ]
    if rows:
        spec = json.loads(templates.read("fairmix_jax.lab.benchmark", "figures.json"))[kind]
        spec |= {"data": {"values": rows}, "background": "white"}
        write_bytes(path, vl_convert.vegalite_to_png(spec, scale=1.5))
