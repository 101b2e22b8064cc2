"""Checkpoints that are verified when they are read.

A checkpoint is a folder with one file that carries the sha256 of its content, and has its
name only once it is whole. Of several processes the main one reads and writes; the others
are told what it read. Any name that the file system takes will do for a folder.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fairmix_jax.models.described import weights_template
from fairmix_jax.runtime import processes, sealed
from fairmix_jax.runtime.errors import Damaged, UsageError, refused
from fairmix_jax.runtime.sealed import digest, named
from fairmix_jax.types import Model, Weights

_FILE = "checkpoint.npz"
Restored = tuple[Any, dict[str, Any]]  # a pytree, or its arrays by name, and the facts


class Checkpoints(contextlib.nullcontext):
    """A directory of checkpoints, made when the first is saved, the newest few kept.

    Nothing is left open. It may stand in a `with`, as in 0.1, when there was something to close.
    """

    def __init__(self, directory: Path, *, max_to_keep: int):
        super().__init__(self)
        self._directory, self._max_to_keep = directory.absolute(), max_to_keep

    def _steps(self) -> list[int]:
        found = self._directory.iterdir() if self._directory.is_dir() else ()
        return [int(path.name) for path in found if path.name.isdecimal()]

    def save(self, step: int, tree: Any, **facts: Any) -> None:
        """Saves a pytree of arrays with JSON facts beside it; does nothing if `step` is there."""
        folder, part = self._directory / str(step), self._directory / f"{step}.part"
        if not processes.is_main() or folder.exists():
            return
        arrays = {}
        for name, leaf in named(tree).items():
            array = np.asarray(leaf)
            # NumPy's files know no bfloat16 and its like: their bytes, and the type in the name.
            kind = f"u{array.itemsize}" if array.dtype.kind == "V" else array.dtype
            arrays[f"{array.dtype} {name}"] = array.view(kind)
        sealed.write(part / _FILE, facts=json.dumps(facts), **arrays)
        part.rename(folder)
        kept = sorted(other for other in self._steps() if other <= step)[-self._max_to_keep :]
        for path in self._directory.iterdir():
            is_partial = path.name.endswith(".part") or ".orbax-checkpoint-tmp" in path.name
            if is_partial or (path.name.isdecimal() and int(path.name) not in kept):
                shutil.rmtree(path, ignore_errors=True)

    def restore_latest(self, template: Any, *, since: int | None = None) -> Restored | None:
        """Returns the newest sound checkpoint and its facts, or `None` if there is none.

        A checkpoint that cannot be read or whose content does not match its sha256 is set
        aside as `damaged-STEP`, with a warning, and the one before it is tried. `template` is a
        pytree of arrays with the structure, shapes and types to expect; if the newest sound one
        is another network's, a `UsageError` says so.

        With `since` none can stand in for the newest, which is of that step or a later one, or
        none yet if it is 0: a `UsageError` if it is damaged or gone. All stays where it is.
        """

        def restored() -> tuple[list[Any], dict[str, Any]] | None:
            for step in sorted({*self._steps(), since or 0} - {0}, reverse=True):
                try:
                    tree, facts = _read(self._directory / str(step), template)
                    return jax.tree.leaves(tree), facts
                except Damaged as error:
                    if since is not None:
                        raise UsageError(
                            f"{error}; put it back from a copy, or delete the run's 'checkpoints' "
                            "and 'run.json' and train again from the start with --mode=train"
                        ) from error
                    self._set_aside(step, error)
            return None

        if (found := processes.from_main(restored)) is None:
            return None
        leaves, facts = found  # without the types of nodes, which every process has
        if jax.process_count() == 1:
            leaves = [jnp.array(leaf) for leaf in leaves]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), facts

    def _set_aside(self, step: int, error: Damaged) -> None:
        target, number = self._directory / f"damaged-{step}", 1
        while target.exists():
            number += 1
            target = self._directory / f"damaged-{step}-{number}"
        logging.warning("%s; the checkpoint is moved to %s", error, target.name)
        (self._directory / str(step)).rename(target)


NORMALISATION = ("mean", "std")
"""What of a `model_card` the images decide; no weights fit another."""


class KeptWeights:
    """The best weights so far and, at the end, the last ones, each in a checkpoint of its own.

    Its `facts` are saved with the state, so that a resumed run misses best weights that are gone:
    the next best must not take their place. That, or damage, is a `UsageError`.
    """

    def __init__(
        self, folder: Path, template: Weights, facts: Mapping[str, Any], card: Mapping[str, Any]
    ):
        """Takes the facts of the state that the run goes on from, none at the start."""
        self._template, self.facts = template, {"best": facts.get("best", 0)}
        self._own = {name: card[name] for name in NORMALISATION}
        self._best = Checkpoints(folder / "best", max_to_keep=1)
        self._last = Checkpoints(folder / "last", max_to_keep=1)
        found = self._best.restore_latest(template, since=self.facts["best"])
        self._best_score = found[1]["score"] if found else -1.0

    def offer(self, step: int, weights: Weights, score: float) -> None:
        """Keeps the weights if their score is the best so far."""
        if score > self._best_score:
            self._best.save(step, weights, score=score, **self._own)
            self._best_score, self.facts = score, {"best": step}

    def save_last(self, step: int, weights: Weights) -> None:
        """Keeps the last weights, also in place of damaged ones."""
        if self._last.restore_latest(self._template) is None:
            self._last.save(step, weights, **self._own)


def stored_weights(workdir: Path, which: str, model: Model) -> tuple[Weights, dict] | None:
    """Returns the `"best"` or `"last"` weights of a run and facts about them, `None` without them.

    Raises a `UsageError` if they are damaged or another network's.
    """
    saved = Checkpoints(workdir / "checkpoints" / which, max_to_keep=1)
    return saved.restore_latest(weights_template(model), since=0)


def _read(folder: Path, template: Any) -> Restored:
    """Returns a checkpoint and its facts; raises `Damaged`, or `UsageError` for another network."""
    is_orbax = (folder / "tree").is_dir()
    arrays, facts = (_read_orbax if is_orbax else _read_sealed)(folder)
    theirs, ours = (
        {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in tree.items()}
        for tree in (arrays, named(template))
    )
    for name in (name for name in theirs | ours if theirs.get(name) != ours.get(name)):
        raise UsageError(
            f"{str(folder)!r} is of another network or optimizer: its {name} is "
            f"{theirs.get(name)}, here {ours.get(name)}; give the config that it was trained with, "
            "or another --workdir"
        )
    tree = jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in ours])
    if is_orbax and digest(tree) != facts.get("sha256"):
        raise Damaged(f"{str(folder)!r} is damaged (its content does not match its sha256)")
    return tree, facts


def _read_sealed(folder: Path) -> Restored:
    content = sealed.read(folder / _FILE)
    facts = json.loads(str(content.pop("facts")))
    typed = ((*name.split(" ", 1), array) for name, array in content.items())
    return {name: array.view(jnp.dtype(dtype)) for dtype, name, array in typed}, facts


def _read_orbax(folder: Path) -> Restored:
    """Reads what version 0.1 wrote; the facts hold the sha256 of the tree."""
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="main"
    )
    handler: Any = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with refused(f"{str(folder)!r} is damaged"):  # whatever Orbax and its storage raise
        facts = json.loads((folder / "meta" / "metadata").read_text()) | {}
        tree = handler.metadata(folder / "tree").tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return named(handler.restore(folder / "tree", args=arguments)), facts
