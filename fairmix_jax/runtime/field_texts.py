"""Texts that give config fields values: `"mixing.name=none,same_class seed=0,1"`."""

import ast
import itertools
import os
import re
from collections import Counter
from typing import Any

from fairmix_jax.runtime.errors import UsageError

_MAX_NAME = 200
_TOGETHER = re.compile(r"""'[^']*'|"[^"]*"|\([^()]*\)|\[[^][]*\]""")


def expand(sweep: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns the runs of a sweep: their names and the fields they override.

    `"mixing.name=none,same_class seed=0,1"` has four runs, the last field varying fastest; the
    first is named `mixing.name=none,seed=0`. `"seed+data.draw=0,1"` gives two fields the same
    value; `"rule.weights=(1,2),(2,1)"` has two values; `"|"` separates parts that are run one after
    the other. An empty text has no runs. Values with spaces, commas or `|` stand in quotes or
    brackets.

    `/` in values becomes `_` in names. Where two names are then the same, it becomes `%2F`.

    Raises a `UsageError` if the text is not of that form, or a name is too long for a folder, or
    two runs still have the same one.
    """
    every: dict[str, dict[str, Any]] = {}
    for part in _split(sweep, r"\|") if sweep.strip() else ():
        for chosen in itertools.product(*map(_axis, filter(None, _split(part, r"\s+")))):
            every[",".join(f"{fields}={text}" for fields, text in chosen)] = {
                field: _literal(text) for fields, text in chosen for field in fields.split("+")
            }
    uses = Counter(text.replace("/", "_") for text in every)
    runs: dict[str, dict[str, Any]] = {}
    for text, changes in every.items():
        is_shared = uses[text.replace("/", "_")] > 1
        name = text.replace("/", "%2F" if is_shared else "_")
        if len(os.fsencode(name)) > _MAX_NAME:
            raise UsageError(
                f"sweep: the run {name!r} has a name of more than {_MAX_NAME} bytes; vary "
                "fewer fields, or give shorter values"
            )
        if name in runs:
            raise UsageError(f"sweep: two runs have the name {name!r}; give other values")
        runs[name] = changes
    return list(runs.items())


def _axis(part: str) -> list[tuple[str, str]]:
    fields, _, text = part.partition("=")
    values = _split(text, ",")
    if not (fields and all(values)):
        raise UsageError(f"sweep={part!r} is not understood; write field=value,value")
    return [(fields, value) for value in values]


def _split(text: str, separator: str) -> list[str]:
    """Splits at a separator outside of quotes and brackets."""
    masked = _TOGETHER.sub(lambda found: "x" * len(found[0]), text)
    cuts = [(0, 0), *(found.span() for found in re.finditer(separator, masked))]
    ends = [*(start for start, _ in cuts[1:]), len(text)]
    return [text[start:end] for (_, start), end in zip(cuts, ends, strict=True)]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def single(text: str) -> dict[str, Any]:
    """Returns the fields of a sweep of one run; if it has none or several, a `UsageError`."""
    runs = expand(text)
    if len(runs) != 1:
        raise UsageError(f"{text!r} makes {len(runs)} runs; give each field one value")
    return runs[0][1]
