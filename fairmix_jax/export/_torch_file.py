"""Files of `torch.save` and safetensors, read without PyTorch; nothing that they hold is run."""

import io
import math
import mmap
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import deserialize

from fairmix_jax.runtime import pickles
from fairmix_jax.runtime.errors import UsageError, refused

_DTYPES = {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": jnp.bfloat16, "Long": "<i8",
    "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip
_SAFE = {
    "F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int",
    "I16": "Short", "I8": "Char", "U8": "Byte", "BOOL": "Bool",
}  # fmt: skip
_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # PyTorch's number, pickled
_STARTS = {
    b"<": "a web page in place of the file; download it in a browser",
    b"\x93NUMPY": "an array of NumPy; of DeepMind's models take the .pt file of the same name",
    b"version https://git-lfs": "a pointer of Git LFS; download the file that it stands for",
}
_CONVERT = (
    "load it where it was made, and write it there with safetensors.torch.save_file("
    "{k: v.float().contiguous() for k, v in model.state_dict().items()}, 'model.safetensors')"
)


class Tensor(NamedTuple):
    """A tensor of a file that is open; its values are read when they are asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    array: Callable[[], np.ndarray]


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _State(dict):
    """An `OrderedDict`; a state dict's own state says which versions its layers have."""

    def __setstate__(self, state: Any) -> None:
        del state


class _Reader(pickles.Reader):
    """A pickle of `torch.save`, whose storages `load` returns as bytes, by key."""

    def __init__(self, file: Any, load: Callable[[str], bytes]):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}
        self.values = cache(lambda storage: np.frombuffer(load(storage.key), storage.dtype))
        self.names = {  # the allowed names, which a pickle may ask for
            "collections.OrderedDict": lambda: _State(),  # without what else it would take
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        } | {f"torch.{name}Storage": name for name in _DTYPES}

    def find_class(self, module: str, name: str) -> Any:
        if (asked := f"{module}.{name}") in self.names:
            return self.names[asked]
        raise UsageError(
            f"it asks for {asked[:100]}, which no state dict of ordinary numbers needs; none of it "
            f"was run; {_CONVERT}"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a pickle names by its type, key, device and length."""
        kind, dtype, key, _, count, *view = pid
        kinds = [type(part) for part in (kind, dtype, key, count)]  # a deep tuple's hash crashes
        is_known = kinds == [str, str, str, int] and kind == "storage" and dtype in _DTYPES
        if not is_known or count < 0 or any(part is not None for part in view):
            raise ValueError("it names a storage in a way that is not known")
        found = _Storage(key, np.dtype(_DTYPES[dtype]), count)
        if self.storages.setdefault(key, found) != found:
            raise ValueError(f"storage {key[:20]!r} has two types or lengths")
        return found

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *more: Any
    ) -> Tensor:
        if any(more[2:]):  # after the need of a gradient, and hooks
            raise UsageError("a tensor is a negative view; save it again after v.resolve_neg()")
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError("a tensor has no storage, or not as many strides as sizes")
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            raise ValueError("a tensor has a size or a stride that is no number, or negative")
        end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
        if (end if all(shape) else offset) > storage.count:
            raise ValueError("a tensor reaches beyond its storage")

        def array() -> np.ndarray:
            values = self.values(storage)
            if len(values) != storage.count:
                raise ValueError(f"storage {storage.key[:20]!r} is not as long as it should be")
            steps = [step * storage.dtype.itemsize for step in strides]
            return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()

        return Tensor(shape, storage.dtype, array)


@contextmanager
def opened(path: Path) -> Generator[Any]:
    """Yields what a file holds: a dictionary with `Tensor`s, in which there may be others.

    `torch.save` may have written it in its format since 1.6 or in the one before, or safetensors.
    Inside, whatever goes wrong is a `UsageError` that names the file.
    """
    what = f"{str(path)!r} is damaged, or no file of weights"
    with path.open("rb") as file, refused(what, "get another copy"):
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                start = raw[:64].lstrip()
                known = [said for head, said in _STARTS.items() if start.startswith(head)]
                if raw[4:9] == b"\0\0\0\0{":  # the length of a head, and the head
                    yield _safe(raw[:])
                elif known:
                    raise UsageError(f"it is {known[0]}")
                elif start.startswith(b"PK"):
                    with zipfile.ZipFile(path) as archive:
                        yield _zipped(archive, len(raw))
                elif _LEGACY in raw[:32]:
                    yield _legacy(raw)
                else:
                    raise ValueError("it has the form of neither torch.save nor safetensors")
        except UsageError as error:
            raise UsageError(f"{str(path)!r}: {error}") from error


def _safe(content: bytes) -> dict[str, Tensor]:
    found = {}
    for name, entry in deserialize(content):
        if entry["dtype"] not in _SAFE:
            raise UsageError(f"{name} has numbers of type {entry['dtype']}; {_CONVERT}")
        dtype, shape = np.dtype(_DTYPES[_SAFE[entry["dtype"]]]), tuple(entry["shape"])
        values = np.frombuffer(entry["data"], dtype).reshape(shape)
        found[name] = Tensor(shape, dtype, partial(np.asarray, values))
    return found


def _zipped(archive: zipfile.ZipFile, size: int) -> Any:
    """The format since 1.6; members that are packed, or share their bytes, may be bombs."""
    members = archive.infolist()
    if any(m.compress_type or m.compress_size != m.file_size or m.flag_bits & 1 for m in members):
        raise ValueError("its members are compressed or encrypted, which torch.save never does")
    if len({m.filename for m in members}) < len(members):
        raise ValueError("two of its members have the same name")
    if sum(m.file_size for m in members) > size:
        raise ValueError("its members are larger than it is")
    roots = [m.filename for m in members if m.filename.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it holds {len(roots)} pickles of torch.save")
    root = roots[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise UsageError(f"its numbers are big-endian; {_CONVERT}")
    content = io.BytesIO(archive.read(f"{root}data.pkl"))
    return _Reader(content, lambda key: archive.read(f"{root}data/{key}")).load()


def _legacy(raw: mmap.mmap) -> Any:
    """The format before 1.6: five pickles, and for each storage its length and its numbers."""
    places: dict[str, slice] = {}
    reader = _Reader(raw, lambda key: raw[places[key]])
    parts = (reader.memo.clear() or reader.load() for _ in range(5))  # each has its own memo
    _, version, system, found, keys = parts
    if version != 1001 or system["little_endian"] is not True:
        raise UsageError(f"its version is not 1001, or its numbers are big-endian; {_CONVERT}")
    end = raw.tell()
    for key in keys:
        start, width = end + 8, reader.storages[key].dtype.itemsize
        end = start + int.from_bytes(raw[end:start], "little") * width
        if end > len(raw):
            raise ValueError("it is cut short")
        places[key] = slice(start, end)
    return found


def nbytes(tensor: Tensor) -> int:
    """Returns the bytes of a tensor in its own type; a size of 0, which hides others, is as 1."""
    return math.prod(size or 1 for size in tensor.shape) * tensor.dtype.itemsize
