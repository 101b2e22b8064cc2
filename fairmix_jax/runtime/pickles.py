"""Pickles read as data: of what a file asks for, nothing is called or made but what a reader names.

Python's own unpickler lets a file choose the type of an array's bytes, and so make them pointers.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

_OPCODES = [getattr(pickle, name)[0] for name in """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING
SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_DICT EMPTY_LIST APPEND
APPENDS SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET
LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
""".split()]  # fmt: skip


def _step(code: int) -> Callable[[Any], None]:
    """What an opcode does, for a price.

    A state is given only to what has a use for it, since it could be any attribute of a function.
    """
    firsts = {pickle.SETITEM[0]: -2, pickle.SETITEMS[0]: 0}

    def step(reader: Any) -> None:
        reader.spend(128)
        keys = reader.stack[firsts[code] :: 2] if code in firsts else ()
        if not all(map(_is_key, keys)):
            raise pickle.UnpicklingError("a key is no text, no number, and no short tuple of them")
        if code == pickle.BUILD[0] and not hasattr(type(reader.stack[-2]), "__setstate__"):
            raise pickle.UnpicklingError("it gives a state to what has none")
        pickle._Unpickler.dispatch[code](reader)

    return step


def _is_key(found: Any) -> bool:
    """Whether it has a hash, and soon: a deep tuple's crashes, and a long one's takes its time."""
    parts = found if isinstance(found, tuple) and len(found) < 9 else (found,)
    return all(isinstance(part, str | bytes | int | float | None) for part in parts)


class Reader(pickle._Unpickler):  # the one in Python, whose opcodes are a table
    """An unpickler of numbers, text, tuples, lists, dictionaries, and what `names` stand for.

    `load` raises an exception of any type if the pickle is damaged or has anything else in it.

    Attributes:
      names: by `"module.name"` what a pickle gets that asks for it. All of it that can be called
        must be safe with arguments of any kind.
      left: the memory that objects may take, in bytes.
    """

    dispatch: ClassVar = {code: _step(code) for code in _OPCODES}
    names: Mapping[str, Any]
    stack: list[Any]
    memo: dict[int, Any]
    left = 1 << 29

    def spend(self, number: int) -> None:
        """Takes a number of bytes from what is left; raises `UnpicklingError` if that is less."""
        self.left -= number
        if self.left < 0:
            raise pickle.UnpicklingError("it has more objects than such files have")

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name stands for; raises `UnpicklingError` if that is nothing."""
        if (asked := f"{module}.{name}") not in self.names:
            raise pickle.UnpicklingError(f"{asked} is not allowed")
        return self.names[asked]
