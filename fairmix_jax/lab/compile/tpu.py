"""XLA's compiler for TPUs that are not here: what it says of a program."""

import importlib.util
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from fairmix_jax.runtime.errors import UsageError, refused

_OPERATION = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_PRODUCT = re.compile(r" (?:convolution|dot)\((?:.*operand_precision=\{(\w+))?")
_ARRAY = re.compile(r"\b(pred|[a-z]+?\d+)\[([\d,]*)\]")
_REPEATED = re.compile(r"(?:body|condition)=(%[^,\s]+)")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?(%[^,}\s]+)")


class DoesNotFit(Exception):
    """A program needs more memory than a chip has; the message is the compiler's."""


class Collective(NamedTuple):
    """One operation in which devices take part together."""

    kind: str  # `"all-reduce"`, `"all-gather"`, ...
    num_bytes: int  # of its results on one device
    in_loop: bool  # whether it stands in the body or condition of a loop, or in what they call


def devices(topology: str) -> list[Any]:
    """Returns the chips of a topology such as `v5e:2x4`, to compile for.

    An empty or unknown one, or that libtpu is not installed, is a `UsageError`.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing here touches a chip
    if not topology:
        raise UsageError("compile.topology is empty; name one, e.g. v5e:2x4, v5e:16x16, v5p:2x2x4")
    remedy = "give e.g. v5e:2x4, v5e:16x16 or v5p:2x2x4"
    if importlib.util.find_spec("libtpu") is None:
        remedy = "install the extra `tpu`: pip install 'jax[tpu]'"
    with refused(f"compile.topology={topology!r} is not understood", remedy):
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def compiled(lower: Callable[[], Any]) -> dict[str, Any]:
    """Compiles what `lower` returns, or raises `DoesNotFit`.

    Returns the compiler's facts for one chip, with loop bodies counted once: `seconds` to compile,
    bytes of `arguments` and `temporaries` in its memory, `flops`, `bytes` read and written, what is
    `found` of collectives, and how many `products` of arrays have which precision.
    """
    start = time.perf_counter()
    try:
        program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(" ".join(str(error).split())[:300]) from error
    memory, cost = program.memory_analysis(), program.cost_analysis()
    text = program.as_text()
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "flops": float(cost.get("flops", 0.0)), "bytes": float(cost.get("bytes accessed", 0.0)),
        "found": [collective._asdict() for collective in collectives(text)],
        "products": Counter(precision or "default" for precision in _PRODUCT.findall(text)),
    }  # fmt: skip


def collectives(program: str) -> list[Collective]:
    """Returns the collectives of an optimised HLO program, in order of appearance.

    `program` is `jax.jit(f).lower(...).compile().as_text()`.
    """
    blocks = re.split(r"\n(?=(?:ENTRY )?%\S+ \(.*\{\n)", program)
    computations = {block.removeprefix("ENTRY ").split(" ", 1)[0]: block for block in blocks}
    loops = [line for line in program.splitlines() if re.search(r"\bwhile\(", line)]
    looped, waiting = set(), _REPEATED.findall("\n".join(loops))
    while waiting:
        name = waiting.pop()
        if name not in looped and name in computations:
            looped.add(name)
            waiting += _CALLED.findall(computations[name])
    return [
        Collective(match[2], _num_bytes(match[1]), name in looped)
        for name, text in computations.items()
        for match in _OPERATION.finditer(text)
    ]


def _num_bytes(shapes: str) -> int:
    total = 0
    for kind, sizes in _ARRAY.findall(shapes):
        bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total
