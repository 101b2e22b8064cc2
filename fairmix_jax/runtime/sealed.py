"""Files of arrays that carry the sha256 of their content, written whole or not at all."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairmix_jax.runtime.errors import refused
from fairmix_jax.runtime.json_files import whole


def named(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a pytree by their paths, e.g. `params/Conv_0/kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digest(tree: Any) -> str:
    """Returns the sha256 of a pytree of arrays: paths, data types, shapes and bytes."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def write(path: Path, **content: Any) -> None:
    """Writes arrays of NumPy's own types and texts as `.npz`; makes the folder."""
    with whole(path) as file:
        np.savez(file, sha256=digest(content), **content)


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns what `write` wrote; raises `Damaged` if that is not what is there."""
    with refused(f"{str(path)!r} is damaged", keeps=PermissionError):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            content = dict(arrays)
        if str(content.pop("sha256")) != digest(content):
            raise ValueError("its content does not match its sha256")
    return content
