"""What plain data must look like, declared as plain data."""

import reprlib
from typing import Any

_TYPES = {"int": (int,), "number": (int, float), "text": (str,), "null": (type(None),)}


def misfit(value: Any, shape: Any, name: str = "", sizes: dict[str, Any] | None = None) -> str:
    """Returns in words where JSON data is not of a shape; empty where it is.

    A shape is `"any"`, a type such as `"int"` or `"number|null"`, a list with the shape of its
    entries, or a dictionary of shapes by name: `"name?"` for one that may be missing, `"*"` for all
    others, which without it may be anything. Lists `[shape, "K"]` with one letter have one length,
    dictionaries `{"*K": shape}` the same names.
    """
    sizes = {} if sizes is None else sizes
    kinds = shape.split("|") if isinstance(shape, str) else ()
    if shape == "any" or any(type(value) in _TYPES[kind] for kind in kinds):
        return ""
    if type(value) is not type(shape) or kinds:
        return f"{name or 'it'} is {reprlib.repr(value)}"
    if isinstance(shape, list):
        letter, extent = (*shape, "")[1], len(value)
        parts = [(f"{name}[{n}]", entry, shape[0], sizes) for n, entry in enumerate(value)]
    else:
        star = next((key for key in shape if key.startswith("*")), "*")
        letter, extent = star[1:], sorted(value)
        named = {key.removesuffix("?"): key for key in shape if key != star}
        if lacking := [n for n, key in named.items() if n == key and n not in value]:
            return f"{name or 'it'} lacks {lacking[0]!r}"
        inner = [(n, shape[key], sizes) for n, key in named.items() if n in value]
        inner += [(n, shape.get(star, "any"), dict(sizes)) for n in value if n not in named]
        parts = [(f"{name}.{n}".lstrip("."), value[n], *rest) for n, *rest in inner]
    if letter and sizes.setdefault(letter, extent) != extent:
        return f"{name} has {extent} entries, not {sizes[letter]}"
    return next(filter(None, (misfit(v, s, n, known) for n, v, s, known in parts)), "")
