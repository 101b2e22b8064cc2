"""Our files: written whole or not at all, and JSON with a checksum that is compared on reading.

The checksum is the field `"checksum"` of an object, the first 16 digits of the sha256 of the rest
as JSON with sorted names and default separators. Files without one, as earlier versions wrote them,
are read as well. JSON has neither NaN nor infinity: NaN is written as `null`, which is read as
`None`, and infinity as `1e999`, which is read as infinity. `kinds.json` has the shape of each file
and the remedy if it is damaged.
"""

import hashlib
import itertools
import json
import os
import re
import reprlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fairmix_jax.runtime import processes
from fairmix_jax.runtime.errors import Damaged, UsageError

KINDS = json.loads(Path(__file__).with_name("kinds.json").read_text())
FILES = tuple(KINDS)[:6]
"""The plain data in the folder of a run or a study."""

PACK = "runs.jsonl"
"""The file that holds them for a whole study, see `fairmix_jax.report.packed`."""

KINDS[PACK]["shape"] |= {f"{Path(name).stem}?": KINDS[name]["shape"] for name in FILES}
KINDS[PACK]["shape"]["metrics?"] = [KINDS["metrics.jsonl"]["shape"]]
_UNKNOWN = {"shape": {}, "remedy": "run the same command again, which makes it anew"}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|Infinity')
_NUMBERS = {"NaN": "null", "Infinity": "1e999"}
_TYPES = {"int": (int,), "number": (int, float), "text": (str,), "null": (type(None),)}


@contextmanager
def whole(path: Path, *, appends: bool = False, ending: str = "part") -> Generator[BinaryIO]:
    """Yields a file to write to, which takes the place of `path` in the end; makes its folder.

    So `path` is the old file or the new one, also after a full disk or a power failure; not if it
    `appends`. Until then its name has the `ending`. An `OSError` names `path` if it names nothing.
    """
    part = path if appends else path.with_name(f"{path.name}.{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if appends else "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        if not appends:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # without, its text would be lost
            error.filename = error.filename or str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all; what UTF-8 lacks is spelled out."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def dumps(content: Any, **options: Any) -> str:
    """Returns what `json.dumps` does, but always JSON."""
    text = json.dumps(content, **options)
    return _TOKEN.sub(lambda found: _NUMBERS.get(found[0], found[0]), text)


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object without its checksum."""
    return {name: value for name, value in content.items() if name != "checksum"}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object with its checksum, at the end."""
    rest = plain(content)
    text = dumps(json.loads(dumps(rest)), sort_keys=True)
    return rest | {"checksum": hashlib.sha256(text.encode()).hexdigest()[:16]}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object with its checksum; the file is the old one or the new one."""
    write_text(path, dumps(sealed(content), indent=2) + "\n")


def read_json(path: Path, *, is_remade: bool = False) -> Any:
    """Returns what `load` does, `None` if there is no file; of processes the main one reads.

    A damaged file that `is_remade` by the caller counts as missing, which is said.
    """

    def read() -> Any:
        try:
            return load(path) if path.exists() or path.is_symlink() else None
        except UsageError as error:
            if not is_remade:
                raise
            from fairmix_jax.runtime.console import console  # and rich, which attacks do without

            console.print(f"{error} (done now)", soft_wrap=True)

    return processes.from_main(read)


def load(path: Path, kind: str = "") -> dict[str, Any]:
    """Returns what `write_json` wrote; `kind` is the name that the file has in a workdir.

    Raises a `UsageError` if it is damaged, lacks what its readers need, or has another schema.
    """
    return plain(parsed(path.read_bytes(), kind or path.name, str(path)))


def digest_of(lines: Sequence[Any]) -> str:
    """Returns the sha256 of plain data, however it is laid out in a file."""
    return hashlib.sha256(json.dumps(list(lines), sort_keys=True).encode()).hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a JSON Lines file, with their checksums if they have them.

    A last line that a crash has cut short does not count, but in a pack. Raises a `UsageError` as
    `load` does.
    """
    found = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            found.append(parsed(text, path.name, f"{path}, line {number},"))
        except UsageError:
            if text.endswith(b"\n") or path.name == PACK:
                raise
    if path.name == PACK and not found:
        raise damaged(PACK, str(path), "it is empty")
    return found


def parsed(text: bytes, kind: str, where: str) -> dict[str, Any]:
    """Returns the object that a text is, with its checksum and those of objects in it, if any.

    `kind` is the name of its file in a workdir. Raises a `UsageError` as `load` does, which says
    `where` it was found.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(kind, where, f"it is no JSON ({error})") from error
    if wrong := misfit(content, KINDS.get(kind, _UNKNOWN)["shape"]):
        raise damaged(kind, where, wrong)
    nested = (value if isinstance(value, list) else [value] for value in content.values())
    for part in (part for part in itertools.chain([content], *nested) if isinstance(part, dict)):
        if part.get("schema", 1) != 1:
            raise UsageError(
                f"{where} has schema={part['schema']!r}, and this version reads 1; use the version "
                "that wrote it"
            )
        if "checksum" in part and sealed(part)["checksum"] != part["checksum"]:
            reason = 'it does not match its checksum (if you edited it, delete "checksum" there)'
            raise damaged(kind, where, reason)
    return content


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


def damaged(kind: str, where: str, reason: str) -> Damaged:
    """Returns the error of a file that is not sound, with the remedy of its kind."""
    return Damaged(f"{where} is damaged: {reason}; {KINDS.get(kind, _UNKNOWN)['remedy']}")


def flatten(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the fields of a nested dictionary as `("attack.epsilon", value)`."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
