"""Settings that are declared once: frozen dataclasses whose fields carry range and meaning.

    @dataclasses.dataclass(frozen=True)
    class Attack:
        epsilon: Amount = declared(8 / 255, "radius in pixel units")

What a config file may set, what `check` refuses and what the reference page says all come from
such a line. The arguments of members are declared by their annotations alone, see `registry`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from fairmix_jax.runtime.console import printable
from fairmix_jax.runtime.errors import UsageError

_KINDS = {bool: bool, int: Integral, float: Real, str: str}
_HOLDERS = {tuple: (list, tuple), Mapping: Mapping}
_LARGEST = {int: 2.0**31 - 1, float: float(2**128 - 2**104)}  # of 32 bits, in which JAX computes
_WORDS = {
    bool: "True or False", int: "a whole number", float: "a number",
    str: "a text without line breaks and control characters",
}  # fmt: skip


class Field(NamedTuple):
    """A declared field.

    Attributes:
      name: dotted, e.g. `"attack.epsilon"`.
      kind, items: `bool`, `int`, `float` or `str`, twice; or `tuple` or `Mapping`, and what it
        holds. Another kind, of a member from elsewhere, is that member's concern.
      default: a value; `None` for one that is worked out, as the meaning says.
      meaning: in words.
      choices: the values it may have; empty for any.
      low, high, above, below: the range of each number: ends that are inside, ends that are not.
        Without them a number is finite in 32 bits.
      pattern, form: what a text must match, as a regular expression and in words; beside choices
        the words name another remedy.
      rises: whether each number of a tuple must be above the one before it.
    """

    name: str
    kind: Any
    items: Any
    default: Any = None
    meaning: str = ""
    choices: Sequence[Any] = ()
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    pattern: str = ".*"
    form: str = ""
    rises: bool = False

    def require(self, value: Any) -> None:
        """Raises a `UsageError` that names the field, the value and the remedy."""
        if (value is None and self.default is None) or self.items not in _KINDS:
            return
        if not isinstance(value, _HOLDERS.get(self.kind, object)):
            faults = ["has the wrong type"]
        else:
            items = [*value, *value.values()] if self.kind is Mapping else value
            items = items if self.kind in _HOLDERS else [value]
            faults = [fault for fault in map(self._fault, items) if fault]
            if self.rises and not faults and list(items) != sorted(set(items)):
                faults = ["does not rise"]
        if faults:
            raise UsageError(f"{self.name}={shown(value)} {faults[0]}; {self._remedy()}")

    def _fault(self, item: Any) -> str:
        is_switch = isinstance(item, bool)  # which is an integer to Python
        if is_switch != (self.items is bool) or not isinstance(item, _KINDS[self.items]):
            return "has the wrong type"
        if self.choices:
            return "" if item in self.choices else "is unknown"
        if isinstance(item, str):
            is_sound = item.isprintable() and re.fullmatch(self.pattern, item, re.ASCII)
            return "" if is_sound else "is not understood"
        low, high = self.ends()
        is_inside = is_switch or (low <= item <= high and self.above < item < self.below)
        return "" if is_inside else "is out of range"

    def ends(self) -> tuple[float, float]:
        """Returns the smallest and the largest number that may be inside."""
        largest = _LARGEST.get(self.items, math.inf)
        return max(self.low, -largest), self.high if self.high < math.inf else largest

    def _remedy(self) -> str:
        if self.choices:
            other = self.form and f", or {self.form}"
            return f"choose one of {', '.join(map(str, self.choices))}{other}"
        wanted = self.form or _WORDS[self.items]
        if self.items in _LARGEST:
            low, high = self.ends()
            left = f"[{low:.10g}" if self.above == -math.inf else f"({self.above:g}"
            right = f"{high:.10g}]" if self.below == math.inf else f"{self.below:g})"
            wanted += f" in {left}, {right}"
        holder = {tuple: "a tuple, with each item ", Mapping: "a dict, with each item "}
        order = ", the smallest first and none twice" if self.rises else ""
        return f"give {holder.get(self.kind, '')}{wanted}{order}"


def shown(value: Any) -> str:
    """Returns a value for a message: on one line, its middle left out if it is long."""
    try:
        text = printable(repr(value))
    except ValueError:  # of the digits that Python writes out
        return "(a number of thousands of digits)"
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-40:]}"


def field(name: str, annotation: Any, default: Any, meaning: str = "", **limits: Any) -> Field:
    """Returns a field whose type and limits are those of an annotation, or of its default.

    `float | None`, `Literal`, `tuple[float, ...]`, `Mapping[str, str]` and `Annotated` with
    limits such as `("low", 0)` are understood; `limits` are those of `Field`, and go first.
    """
    annotation, own = _opened(annotation)
    kind = get_origin(annotation) or annotation
    if kind not in (*_HOLDERS, *_KINDS):
        kind = annotation = type(default)
    items, inner = _opened(next(iter(get_args(annotation)), kind))
    return Field(name, kind, items, default, meaning, **(inner | own | limits))


def _opened(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """The type of an annotation, and the limits that it carries."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return _opened(next(kind for kind in arguments if kind is not NoneType))
    if get_origin(annotation) is Literal:
        return type(arguments[0]), {"choices": arguments}
    if get_origin(annotation) is Annotated:
        return arguments[0], dict(pair for pair in arguments[1:] if isinstance(pair, tuple))
    return annotation, {}


def declared(default: Any, meaning: str, **limits: Any) -> Any:
    """Returns a dataclass field with its default and meaning; `limits` are those of `Field`."""
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fields(settings: Any, prefix: str = "") -> Iterator[tuple[Field, Any]]:
    """Yields each declared field of a dataclass and of its sections, with its value.

    Raises a `UsageError` if a section is no instance of its class.
    """
    for known in dataclasses.fields(settings):
        value, name = getattr(settings, known.name), f"{prefix}{known.name}"
        section: Any = known.type
        if dataclasses.is_dataclass(section):
            if not isinstance(value, section):
                wanted = f"give {section.__name__}(...)"
                raise UsageError(f"{name}={shown(value)} is no section; {wanted}")
            yield from fields(value, f"{name}.")
        elif "meaning" in known.metadata:
            default = known.default if known.default is not dataclasses.MISSING else {}
            yield field(name, known.type, default, **known.metadata), value


def check(settings: Any) -> None:
    """Raises a `UsageError` for the first field whose value `Field.require` refuses."""
    for one, value in fields(settings):
        one.require(value)
