"""Pickles of CIFAR's archives."""

import io
from typing import Any

import numpy as np

from fairmix_jax.runtime import pickles

_ASKED = {
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    "numpy.dtype", "_codecs.encode",
}  # fmt: skip


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


class _Reader(pickles.Reader):  # CIFAR's files take less than half of its memory
    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.names = {asked: _Asked(self, asked.rpartition(".")[2]) for asked in _ASKED}


def parsed(content: bytes) -> dict[str, Any]:
    """Returns the dictionary in a pickle: numbers, text, tuples, lists, and uint8 arrays.

    Text of Python 2 comes as bytes. Raises an exception of any type if the pickle is damaged or
    has anything else in it.
    """
    found = _Reader(content).load()
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
