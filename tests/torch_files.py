"""Files as `torch.save` writes them, made without PyTorch, and what it would never write."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

KINDS = {"<f4": "Float", "<f8": "Double", "<f2": "Half", "<i8": "Long", "|b1": "Bool"}


class Name:
    """A name that a pickle asks for."""

    def __init__(self, module, name):
        self.line = f"c{module}\n{name}\n".encode()

    def __call__(self):
        """A pickle calls what it asks for, here never."""


class Call:
    """What a pickle gets by calling a name."""

    def __init__(self, name, *arguments):
        self.parts = name, arguments

    def __reduce__(self):
        return self.parts


class Storage:
    """Numbers that tensors share; `count` and `kind` are what the pickle says of them."""

    def __init__(self, values, count=None, kind=None):
        self.values = np.asarray(values).ravel()
        is_bfloat16 = self.values.dtype == jnp.bfloat16
        self.kind = kind or ("BFloat16" if is_bfloat16 else KINDS[self.values.dtype.str])
        self.count = self.values.size if count is None else count


def tensor(values, offset=0, shape=None, strides=None):
    """A tensor of numbers, or a view of a `Storage`."""
    if not isinstance(values, Storage):
        values, shape = Storage(values), np.shape(values)
    if strides is None:
        strides = [int(np.prod(shape[n + 1 :])) for n in range(len(shape))]
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Name("collections", "OrderedDict"))
    return Call(rebuild, values, offset, tuple(shape), tuple(strides), False, hooks)


class _Pickler(pickle._Pickler):
    dispatch: ClassVar = pickle._Pickler.dispatch | {Name: lambda self, name: self.write(name.line)}

    def __init__(self, file, protocol):
        super().__init__(file, protocol)
        self.storages = []

    def persistent_id(self, found):
        if not isinstance(found, Storage):
            return None
        if found not in self.storages:
            self.storages.append(found)
        name = Name("torch", f"{found.kind}Storage")
        return "storage", name, str(self.storages.index(found)), "cpu", found.count


def pickled(content, protocol=2):
    """A pickle and its storages; arrays in it are tensors."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol)
    pickler.dump(_with_tensors(content))
    return file.getvalue(), pickler.storages


def _with_tensors(content):
    if isinstance(content, np.ndarray):
        return tensor(content)
    if isinstance(content, dict):
        made = OrderedDict if isinstance(content, OrderedDict) else dict
        return made((name, _with_tensors(value)) for name, value in content.items())
    return content


def zipped(content, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    """The format since 1.6."""
    data, storages = pickled(content)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage.values.tobytes())
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def legacy(content, protocol=2):
    """The format before 1.6."""
    data, storages = pickled(content, protocol)
    keys = [str(number) for number in range(len(storages))]
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    first = [pickle.dumps(part, protocol) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts = [*first, data, pickle.dumps(keys, protocol)]
    for storage in storages:
        parts += [struct.pack("<q", storage.values.size), storage.values.tobytes()]
    return b"".join(parts)
