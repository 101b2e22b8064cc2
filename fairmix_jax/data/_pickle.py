"""Pickles of CIFAR's archives, read as data: nothing that a file asks for is called or made.

Python's own unpickler lets a file choose the type of an array's bytes, and so make them pointers.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

_ASKED = {
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    "numpy.dtype", "_codecs.encode",
}  # fmt: skip
_OPCODES = [getattr(pickle, name)[0] for name in """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING
BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_DICT EMPTY_LIST APPEND APPENDS SETITEM
SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
GLOBAL STACK_GLOBAL REDUCE BUILD
""".split()]  # fmt: skip


class _Asked:
    """A name that a pickle asks for, or what its call gives, and the state that it shall have."""

    def __init__(self, reader: "_Reader", name: str, *arguments: Any):
        self.reader, self.name, self.arguments, self.state = reader, name, arguments, ()

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "encode" and arguments[1:] == ("latin1",):
            self.reader.spend(len(arguments[0]))
            return arguments[0].encode("latin-1")  # bytes, as Python 3 writes them for Python 2
        return _Asked(self.reader, f"{self.name}()", *arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _step(code: int) -> Callable[[Any], None]:
    """What an opcode does, for a price, and with no key but text: a deep tuple's hash crashes."""
    firsts = {pickle.SETITEM[0]: -2, pickle.SETITEMS[0]: 0}

    def step(reader: Any) -> None:
        reader.spend(128)
        keys = reader.stack[firsts[code] :: 2] if code in firsts else ()
        if not all(isinstance(key, str | bytes) for key in keys):
            raise pickle.UnpicklingError("a key is no text")
        pickle._Unpickler.dispatch[code](reader)

    return step


class _Reader(pickle._Unpickler):  # the one in Python, whose opcodes are a table
    dispatch: ClassVar = {code: _step(code) for code in _OPCODES}
    stack: list[Any]
    left = 1 << 29  # bytes of memory, of which CIFAR's files take less than half

    def spend(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise pickle.UnpicklingError("it has more objects than CIFAR's files")

    def find_class(self, module: str, name: str) -> _Asked:
        if f"{module}.{name}" not in _ASKED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _Asked(self, name)


def parsed(content: bytes) -> dict[str, Any]:
    """Returns the dictionary in a pickle: numbers, text, tuples, lists, and uint8 arrays.

    Text of Python 2 comes as bytes. Raises an exception of any type if the pickle is damaged or
    has anything else in it.
    """
    found = _Reader(io.BytesIO(content), encoding="bytes").load()
    return {k.decode() if isinstance(k, bytes) else k: _value(v) for k, v in found.items()}


def _value(found: Any) -> Any:
    match found:
        case _Asked(
            name="_reconstruct()",
            arguments=(_Asked(name="ndarray"), (0,), b"b"),
            state=(1, tuple(shape), _Asked(name="dtype()") as dtype, bool(is_fortran), bytes(raw)),
        ) if dtype.arguments in (("u1", 0, 1), (b"u1", 0, 1)):
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")
        case _Asked():
            raise ValueError("it has an array that is not uint8")
    return found
