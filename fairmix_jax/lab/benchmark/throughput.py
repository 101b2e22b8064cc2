"""The speed of attacks and training steps, against the gradients they cannot avoid."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import vl_convert
from ml_collections import ConfigDict

from fairmix_jax.lab.benchmark import peers
from fairmix_jax.lab.benchmark import subject as ours
from fairmix_jax.lab.benchmark.timing import Timing, interleaved, quartiles
from fairmix_jax.lab.compile import cost_model
from fairmix_jax.runtime import templates
from fairmix_jax.runtime.console import console
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

_UNITS = (ours.FORWARD, ours.INPUT_GRADIENT, ours.PARAMETER_GRADIENT)  # of `Passes`, in its order


def measured(config: ConfigDict, configs: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """Times the attacks and training steps of each member of a config's grid; see `benchmark.run`.

    Every contender runs between two runs of the member's input gradient; with
    `benchmark.exponents` all members take turns and run between that of the first. Efficiency is
    the time of the passes that a contender cannot avoid over its own, see docs/performance.md.
    """
    rounds, subjects, timings = config.benchmark.rounds, {}, {}
    for name, member in configs.items():
        console.print(f"compiling {name}")
        with contextlib.ExitStack() as stack:  # compilation is timed, so it must happen
            before = jax.config.jax_enable_compilation_cache  # ty: ignore[missing-attribute]
            stack.callback(jax.config.update, "jax_enable_compilation_cache", before)
            jax.config.update("jax_enable_compilation_cache", False)
            subjects[name] = ours.subject_of(member)
        if config.benchmark.peers:
            subjects[name].contenders.update(peers.contenders(subjects[name]))
    for group in [[*subjects]] if config.benchmark.exponents else [[name] for name in subjects]:
        everything = {
            (member, name): contender.run
            for member in group
            for name, contender in subjects[member].contenders.items()
        }
        reference = subjects[group[0]].contenders[ours.INPUT_GRADIENT].run
        timings |= interleaved(everything, reference, rounds=rounds)
    members = {
        member: _facts(subject, {name: timings[member, name] for name in subject.contenders})
        for member, subject in subjects.items()
    }
    result = {
        "what": "seconds of a batch; ratio to an input gradient run just before and after",
        "rounds": rounds, "threads": os.cpu_count(), "members": members,
    }  # fmt: skip
    return result | ({"exponents": exponents(members)} if config.benchmark.exponents else {})


def _facts(subject: ours.Subject, timings: Mapping[str, Timing]) -> dict[str, Any]:
    size, card = len(subject.images), subject.task.model_card
    forward = partial(subject.task.model.apply, *subject.weights, train=False)
    operations = cost_model.operations_of(lambda x: forward(x)[0], subject.images[:1]).flops
    peak = 2 * ours.PEAK_SIZE**3 / float(np.median(timings[ours.MATRIX_PRODUCT].seconds))
    unit = [float(np.median(timings[name].ratio)) for name in _UNITS]
    facts = {}
    for name, contender in subject.contenders.items():
        timing, passes = timings[name], contender.passes
        seconds = float(np.median(timing.seconds))
        entry: dict[str, Any] = {"seconds": quartiles(timing.seconds)}
        entry |= {"ratio": quartiles(timing.ratio), "images_per_second": size / seconds}
        if any(passes):
            needed = sum(ratio * number for ratio, number in zip(unit, passes, strict=True))
            entry["passes"] = passes._asdict()
            entry["efficiency"] = quartiles(needed / timing.ratio)
            entry["image_steps_per_second"] = size * max(passes.gradient, passes.forward) / seconds
            done = passes.forward + 2 * passes.gradient + 3 * passes.parameter
            entry["flops_per_second"] = operations * size * done / seconds
            entry["share_of_peak"] = entry["flops_per_second"] / peak
        facts[name] = entry | contender.facts
    return {
        "model": card["model"], "image_shape": card["image_shape"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.weights.params)),
        "batch_size": size, "dtype": subject.config.evaluate.search_dtype,
        "peak_flops_per_second": peak, "timings": facts,
    }  # fmt: skip


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns a table of our own timings, one of the peers', and one of the exponents."""
    timings = _frame(result["members"])
    names = {name: _label(facts) for name, facts in result["members"].items()}
    timings["network"] = timings["member"].map(names)
    own, theirs = timings[timings["who"] == ""], timings[timings["who"] != ""]
    low, high = (_texts(own, f"seconds.{end}", 1e3, 1) for end in ("low", "high"))
    shown = own[["network", "what"]].assign(**{
        heading: _texts(own, *column) if column else low + " to " + high
        for heading, column in _COLUMNS.items()
    })  # fmt: skip
    caption = (
        f"Seconds of a batch: median and quartiles of {result['rounds']} rounds; efficiency is "
        "the share of the time that its own passes would take alone"
    )
    found = [Table(caption, tuple(shown), shown.to_numpy().tolist())]
    both = theirs.merge(own, on=["member", "what"], suffixes=("", " of ours"))
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


def _label(facts: Mapping[str, Any]) -> str:
    """The name of a member: network, depth, width, batch, data type unless float32."""
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
            what, _, who = name.partition(peers.SEPARATOR)
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
            {"member": _label(facts), "what": name} | timing["efficiency"]
            for facts in result["members"].values()
            for name, timing in facts["timings"].items()
            if "efficiency" in timing
        ]
    if rows:
        spec = json.loads(templates.read("fairmix_jax.lab.benchmark", "figures.json"))[kind]
        spec |= {"data": {"values": rows}, "background": "white"}
        write_bytes(path, vl_convert.vegalite_to_png(spec, scale=1.5))
