"""The tables of `--mode=compile`, from the content of `compile.json`."""

from collections.abc import Mapping
from typing import Any

from fairmix_jax.lab.compile import cost_model
from fairmix_jax.runtime.tables import MISSING, Table

_MIB = 2**20


def programs(content: Mapping[str, Any]) -> Table:
    """Returns what each program needs of a chip."""
    chips, kind, rows = content["chips"], content["device_kind"], []
    chip = cost_model.CHIPS.get(kind)
    for name, program in content["programs"].items():
        found = program["found"]
        kinds = sorted({c["kind"] for c in found})
        needed = program["arguments"] + program["temporaries"]
        rows.append({
            "program": name,
            "arguments MiB": f"{program['arguments'] / _MIB:.1f}",
            "temporaries MiB": f"{program['temporaries'] / _MIB:.1f}",
            "of its memory": f"{needed / chip.memory:.1%}" if chip else MISSING,
            "GFLOP": f"{program['flops'] / 1e9:.2f}",
            "read and written MiB": f"{program['bytes'] / _MIB:.0f}",
            "collectives": f"{len(found)} {', '.join(kinds)}".strip(),
            "their MiB": f"{sum(c['num_bytes'] for c in found) / _MIB:.2f}",
            "in loops": str(sum(c["in_loop"] for c in found)),
            "compile s": f"{program['seconds']:.0f}",
        })  # fmt: skip
    caption = (
        f"{content['topology']}: {chips} x {kind}, batches of {content['batch_size']} "
        f"({content['batch_size'] // chips} a chip), evaluation of "
        f"{content['evaluate_batch_size']}; of one chip, loop bodies counted once"
    )
    if limit := content.get("largest_batch"):
        refused = limit["refused"]
        above = "no larger one was tried" if refused is None else f"one of {refused:,} does not"
        caption += f"; a training batch of {limit['fits']:,} fits, {above}"
    return Table(caption, list(rows[0]), [list(row.values()) for row in rows])


def model(content: Mapping[str, Any]) -> Table:
    """Returns what the cost model says of a PGD-AT step, beside the compiled program."""
    step, predicted = content["training_step"], content["predicted"]
    told = sum(c["num_bytes"] for c in content["programs"]["training step"]["found"])
    rows = []
    for name, formula, compiled in (
        ("GFLOP of a chip", predicted["flops"] / 1e9, step["flops"] / 1e9),
        ("MiB reduced", predicted["reduced_bytes"] / _MIB, told / _MIB),
    ):
        share = f"{formula / compiled:.3f}" if compiled else MISSING
        rows.append([name, f"{formula:.2f}", f"{compiled:.2f}", share])
    if chip := cost_model.CHIPS.get(content["device_kind"]):
        work = step["flops"], step["bytes"], predicted["reduced_bytes"]
        for number in (8, 64, 256, 1024, 4096):
            share = f"{cost_model.efficiency(*work, number, chip):.1%}"
            rows.append([f"efficiency on {number:,} chips", share, MISSING, MISSING])
    caption = (
        f"a whole step of PGD-AT, every attack step counted, on {content['device_kind']} with "
        f"{content['batch_size'] // content['chips']} images a chip: the cost model of "
        "docs/scaling/tpu_programs.md, and the compiled program"
    )
    return Table(caption, ["", "predicted", "compiled", "predicted / compiled"], rows)
