"""XLA's compiler for TPUs that are not here: what it says of a program."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from fairmix_jax.collectives import Collective, collectives
from fairmix_jax.errors import UsageError


class DoesNotFit(Exception):
    """A program needs more memory than a chip has; the message is the compiler's."""


class Compiled(NamedTuple):
    """What the compiler says of a program; numbers are those of one chip.

    Attributes:
      seconds: to compile.
      arguments, temporaries: bytes in the chip's memory, and those it needs on the way.
      flops, bytes: operations, and bytes read and written, with loop bodies counted once,
        as the compiler does.
      found: its collectives.
    """

    seconds: float
    arguments: int
    temporaries: int
    flops: float
    bytes: float
    found: list[Collective]


def devices(topology: str) -> list[Any]:
    """Returns the chips of a topology such as `v5e:2x4`, to compile for.

    Raises:
      UsageError: it is empty or unknown, or libtpu is not installed.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing here touches a chip
    if not topology:
        raise UsageError("compile.topology is empty; name one, e.g. v5e:2x4, v5e:16x16, v5p:2x2x4")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if "libtpu" in reason or "not found" in reason.lower():
            raise UsageError(
                f"compile.topology={topology!r} needs XLA's compiler for TPUs ({reason}); "
                "install the extra: pip install -c constraints.txt -e '.[tpu]'"
            ) from error
        raise UsageError(
            f"compile.topology={topology!r} is not understood ({reason}); give e.g. v5e:2x4, "
            "v5e:16x16 or v5p:2x2x4"
        ) from error


def compiled(lower: Callable[[], Any]) -> Compiled:
    """Compiles what `lower` returns.

    Raises:
      DoesNotFit: the compiler says so.
    """
    start = time.perf_counter()
    try:
        program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(" ".join(str(error).split())[:300]) from error
    memory, cost = program.memory_analysis(), program.cost_analysis()
    return Compiled(
        round(time.perf_counter() - start, 1),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        float(cost.get("flops", 0.0)),
        float(cost.get("bytes accessed", 0.0)),
        collectives(program.as_text()),
    )
