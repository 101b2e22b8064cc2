"""The tables of `--mode=compile`, from the content of `compile.json`."""

from collections.abc import Mapping
from typing import Any

from fairmix_jax import cost_model
from fairmix_jax.tables import Table

_MIB = 2**20
_NUMBERS_OF_CHIPS = (8, 64, 256, 1024, 4096)


def all_of(content: Mapping[str, Any]) -> list[Table]:
    """Returns the programs, then what the cost model says of a PGD-AT step."""
    programs = _programs(content)
    return [programs, _model(content)] if content["predicted"] else [programs]


def _programs(content: Mapping[str, Any]) -> Table:
    chips, kind, rows = content["chips"], content["device_kind"], []
    chip = cost_model.CHIPS.get(kind)
    for name, program in content["programs"].items():
        found = program["found"]
        kinds = sorted({c["kind"] for c in found})
        needed = program["arguments"] + program["temporaries"]
        rows.append([
            name, f"{program['arguments'] / _MIB:.1f}", f"{program['temporaries'] / _MIB:.1f}",
            f"{needed / chip.memory:.1%}" if chip else "–", f"{program['flops'] / 1e9:.2f}",
            f"{program['bytes'] / _MIB:.0f}", f"{len(found)} {', '.join(kinds)}".strip(),
            f"{sum(c['num_bytes'] for c in found) / _MIB:.2f}",
            str(sum(c["in_loop"] for c in found)), f"{program['seconds']:.0f}",
        ])  # fmt: skip
    caption = (
        f"{content['topology']}: {chips} x {kind}, batches of {content['batch_size']} "
        f"({content['batch_size'] // chips} a chip), evaluation of "
        f"{content['evaluate_batch_size']}; of one chip, loop bodies counted once"
    )
    if "largest_batch" in content:
        caption += f"; {_batch_limit(**content['largest_batch'])}"
    header = ["program", "arguments MiB", "temporaries MiB", "of its memory", "GFLOP",
              "read and written MiB", "collectives", "their MiB", "in loops",
              "compile s"]  # fmt: skip
    return Table(caption, header, rows)


def _batch_limit(fits: int, refused: int | None) -> str:
    above = "no larger one was tried" if refused is None else f"one of {refused:,} does not"
    return f"a training batch of {fits:,} fits, {above}"


def _model(content: Mapping[str, Any]) -> Table:
    step, predicted = content["training_step"], content["predicted"]
    found = content["programs"]["training step"]["found"]
    told = sum(c["num_bytes"] for c in found)
    rows = [
        _compared("GFLOP of a chip", predicted["flops"] / 1e9, step["flops"] / 1e9),
        _compared("MiB reduced", predicted["reduced_bytes"] / _MIB, told / _MIB),
    ]
    chip = cost_model.CHIPS.get(content["device_kind"])
    for number in _NUMBERS_OF_CHIPS:
        if chip is None:
            break
        share = cost_model.efficiency(
            step["flops"], step["bytes"], predicted["reduced_bytes"], number, chip
        )
        rows.append([f"efficiency on {number:,} chips", f"{share:.1%}", "–", "–"])
    caption = (
        f"a whole step of PGD-AT, every attack step counted, on {content['device_kind']} with "
        f"{content['batch_size'] // content['chips']} images a chip: the cost model of "
        "docs/scaling.md, and the compiled program"
    )
    return Table(caption, ["", "predicted", "compiled", "predicted / compiled"], rows)


def _compared(name: str, predicted: float, compiled: float) -> list[str]:
    ratio = f"{predicted / compiled:.3f}" if compiled else "–"
    return [name, f"{predicted:.2f}", f"{compiled:.2f}", ratio]
