"""What processes send each other: plain data and arrays as msgpack, and never a program."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax

from fairmix_jax.runtime.errors import Interrupted

_OURS = "fairmix_jax."
_ERRORS = (FloatingPointError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


def outcome(make: Callable[[], Any]) -> bytes:
    """Returns the result of `make`, or its exception, as bytes that can be read back.

    A result may hold plain data, tuples, arrays and named tuples of this package; others are a
    `TypeError`. An exception of another package becomes one of Python's own, with its message.
    """
    from flax.serialization import msgpack_serialize  # not loaded by one who imports attacks only

    try:
        return msgpack_serialize(_plain([make(), None]))
    except (Exception, Interrupted) as error:  # raised again in every process
        kinds = [k for k in type(error).__mro__ if k in _ERRORS or k.__module__.startswith(_OURS)]
        text = str(error) if kinds else f"{type(error).__name__}: {error}"
        note = f"in process {jax.process_index()}:\n{traceback.format_exc()}"
        kind = kinds[0] if kinds else RuntimeError
        return msgpack_serialize([None, [kind.__module__, kind.__name__, text, note]])


def opened(data: bytes) -> Any:
    """Returns what `outcome` wrote, or raises it, with `is_agreed` set."""
    from flax.serialization import msgpack_restore

    value, failure = _whole(msgpack_restore(data))
    if failure is None:
        return value
    module, name, text, note = failure
    error = _known(module, name, BaseException)(text)
    error.add_note(note)
    error.is_agreed = True
    raise error


def _plain(item: Any) -> Any:
    """The item with tuples and dictionaries told apart and in order; arrays stay."""
    kind = type(item)
    if kind is list:
        return [*map(_plain, item)]
    if kind is dict:
        return {"dict": _plain([*item.items()])}
    if kind is tuple:
        return {"tuple": [*map(_plain, item)]}
    if isinstance(item, tuple):
        _known(kind.__module__, kind.__name__, tuple)
        return {"named": [kind.__module__, kind.__name__, *map(_plain, item)]}
    return item


def _whole(item: Any) -> Any:
    if isinstance(item, list):
        return [*map(_whole, item)]
    if not isinstance(item, dict):
        return item
    ((what, held),) = item.items()
    if what == "named":
        return _known(held[0], held[1], tuple)._make(map(_whole, held[2:]))
    return dict(map(_whole, held)) if what == "dict" else tuple(map(_whole, held))


def _known(module: str, name: str, base: type) -> Any:
    """The class of this name that may travel: an error, or a named tuple or error of ours."""
    kind = getattr(sys.modules.get(module), name, None)
    is_ours = module.startswith(_OURS) and isinstance(kind, type) and issubclass(kind, base)
    if kind not in _ERRORS and not (is_ours and (base is not tuple or hasattr(kind, "_make"))):
        raise TypeError(f"{module}.{name} cannot be sent from one process to others")
    return kind
