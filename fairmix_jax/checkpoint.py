"""Checkpoints that are verified when they are read.

Orbax writes atomically but restores damaged bytes without a word, so every checkpoint
carries a sha256 of its content, and a checkpoint that does not match is passed over.
Of several processes the main one reads and writes; the others are told what it read.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from fairmix_jax import cluster


def digest(tree: Any) -> str:
    """Returns the sha256 of a pytree of arrays: paths, data types, shapes and bytes."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


class Checkpoints:
    """A directory of checkpoints, the newest few kept.

    Usable as a context manager, which waits for writes to finish.
    """

    def __init__(self, directory: Path, *, max_to_keep: int):
        """Opens the directory, making it if needed."""
        self._directory = directory.absolute()
        self._max_to_keep = max_to_keep
        self._manager: Any = self._open() if cluster.is_main() else None

    def _open(self, **handlers: Any) -> ocp.CheckpointManager:
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="main"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._max_to_keep,
            enable_async_checkpointing=False,
            create=False,  # orbax does not, for some of many processes
            multiprocessing_options=alone,
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(self._directory, options=options, **handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        if self._manager:
            self._manager.close()

    def save(self, step: int, tree: Any, **facts: Any) -> None:
        """Saves a pytree of arrays with JSON facts beside it; does nothing if `step` is there."""
        if not self._manager or step in self._manager.all_steps():
            return
        if jax.process_count() > 1:
            tree = jax.tree.map(np.asarray, tree)  # on every device, and no other's concern
        meta = facts | {"sha256": digest(tree)}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest sound checkpoint and its facts, or `None` if there is none.

        A checkpoint that cannot be read or whose content does not match its sha256 is set
        aside as `damaged-STEP`, with a warning, and the one before it is tried.

        Args:
          template: a pytree of arrays with the structure, shapes and types to expect.
        """
        return cluster.from_main(lambda: self._restore_latest(template))

    def _restore_latest(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
        if jax.process_count() > 1:
            template = jax.tree.map(np.asarray, template)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(step, template)
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self._set_aside(step, reason)
        return None

    def fits(self, template: Any) -> bool:
        """Whether there is a checkpoint, and the newest one has a pytree's shapes and types."""
        return cluster.from_main(lambda: self._fits(template))

    def _fits(self, template: Any) -> bool:
        step = self._manager.latest_step()
        if step is None:
            return False
        handlers = {"tree": ocp.StandardCheckpointHandler()}
        with self._open(item_handlers=handlers) as manager:
            saved: Any = manager.item_metadata(step)
        return saved.tree is not None and _layout(saved.tree.tree) == _layout(template)

    def _restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        args = ocp.args.Composite(
            tree=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore()
        )
        restored: Any = self._manager.restore(step, args=args)
        if digest(restored.tree) != restored.meta["sha256"]:
            raise ValueError("its content does not match its sha256")
        return restored.tree, restored.meta

    def _set_aside(self, step: int, reason: str) -> None:
        damaged = self._directory / str(step)
        target = self._directory / f"damaged-{step}"
        logging.warning("checkpoint %s is damaged (%s); moved to %s", damaged, reason, target.name)
        self._manager.close()
        number = 1
        while target.exists():
            number += 1
            target = self._directory / f"damaged-{step}-{number}"
        damaged.rename(target)
        self._manager = self._open()


def _layout(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
