"""What devices tell each other in a compiled program: read from its text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

_OPERATION = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+?\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=\{?(%[^,}\s]+)")
_BITS = {"pred": 8}


class Collective(NamedTuple):
    """One operation in which devices take part together.

    Attributes:
      kind: `"all-reduce"`, `"all-gather"`, ...
      num_bytes: of its results on one device.
      in_loop: whether it stands in the body or condition of a loop, or in what they call.
    """

    kind: str
    num_bytes: int
    in_loop: bool


def collectives(program: str) -> list[Collective]:
    """Returns the collectives of an optimised HLO program, in order of appearance.

    Args:
      program: `jax.jit(f).lower(...).compile().as_text()`.
    """
    computations = dict(_computations(program))
    looped = _reached(computations, _loops(program))
    return [
        Collective(match[2], _num_bytes(match[1]), name in looped)
        for name, text in computations.items()
        for match in _OPERATION.finditer(text)
    ]


def _computations(program: str) -> Iterator[tuple[str, str]]:
    for block in re.split(r"\n(?=(?:ENTRY )?%\S+ \(.*\{\n)", program):
        head = block.removeprefix("ENTRY ").split(" ", 1)[0]
        yield head, block


def _loops(program: str) -> set[str]:
    """The computations that `while` operations repeat."""
    lines = [line for line in program.splitlines() if re.search(r"\bwhile\(", line)]
    return {name for line in lines for name in re.findall(r"(?:body|condition)=(%[^,\s]+)", line)}


def _reached(computations: dict[str, str], start: set[str]) -> set[str]:
    reached, waiting = set(), list(start)
    while waiting:
        name = waiting.pop()
        if name not in reached and name in computations:
            reached.add(name)
            waiting += _CALLED.findall(computations[name])
    return reached


def _num_bytes(shapes: str) -> int:
    total = 0
    for kind, sizes in _ARRAY.findall(shapes):
        bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind))
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * bits // 8
    return total
