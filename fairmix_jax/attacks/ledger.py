"""What is known of every image while an ensemble of attacks runs, in memory and on disk."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROBUST, CLEAN = -1, 0


class OtherEvaluation(ValueError):
    """What is saved belongs to an evaluation of other settings, images or weights."""


class UnderWay(NamedTuple):
    """Images in the middle of an attack, `M` of them: what `pool.Slots` holds of them.

    Attributes:
      rows: `[M]`, their positions.
      run, count, steps_taken: `[M]` int32.
      state: leaves of the attack's state, leading `M`.
    """

    rows: np.ndarray
    run: np.ndarray
    count: np.ndarray
    steps_taken: np.ndarray
    state: list[np.ndarray]


class Ledger:
    """The verdicts so far, changed in place; `N` images, `A` attacks of which 0 is clean.

    Attributes:
      broken_by: `[N]` int8, the attack that broke an image, or `ROBUST`.
      adversarial: `[N, H, W, C]`.
      steps: `[A, N]` int32.
      seconds: `[A]` float, and `compile_seconds`, a float.
      current: the attack under way.
      done: `[N]` bool, images that it is done with or does not attack.
      curve: `[M, 3]` float, whenever the survivors became fewer: the attack, the seconds
        since it began, the survivors.
    """

    def __init__(self, images: np.ndarray, is_clean: np.ndarray, num_attacks: int):
        """Starts with no attack; `is_clean` `[N]` says which images it will concern."""
        count = len(images)
        self.broken_by = np.where(is_clean, ROBUST, CLEAN).astype(np.int8)
        self.adversarial = images.copy()
        self.steps = np.zeros((num_attacks, count), np.int32)
        self.seconds = np.zeros(num_attacks)
        self.compile_seconds = np.zeros(())
        self.current = np.zeros((), np.int32)
        self.done = np.ones(count, bool)
        self.curve = np.asarray([[0, 0, np.sum(self.robust)]], float)

    @property
    def robust(self) -> np.ndarray:
        """`[N]` bool, not broken so far."""
        return self.broken_by == ROBUST

    def begin(self, attack: int) -> None:
        """Turns to an attack, which concerns the images that are robust so far."""
        self.current, self.done = np.asarray(attack, np.int32), ~self.robust

    def note(self, survivors: int) -> None:
        """Adds a point to the curve if the attack or the survivors have changed."""
        number = int(self.current)
        if (self.curve[-1, [0, 2]] != (number, survivors)).any():
            point = [number, self.seconds[number], survivors]
            self.curve = np.concatenate([self.curve, [point]])

    def enter(
        self, rows: np.ndarray, broken: np.ndarray, adversarial: np.ndarray, steps: np.ndarray
    ) -> None:
        """Notes the outcome of the current attack on the images in these rows."""
        self.done[rows] = True
        self.steps[self.current, rows] = steps
        self.broken_by[rows[broken]] = self.current
        self.adversarial[rows[broken]] = adversarial[broken]


class Journal:
    """Saves a ledger and the images under way to a file, whole or not at all.

    A file belongs to one evaluation, told by the digest of `facts`.
    """

    def __init__(self, directory: Path | str | None, facts: Mapping[str, Any], save_seconds: float):
        """Saves nothing if `directory` is `None`; `is_due` every `save_seconds`."""
        self._path = Path(directory) / "under_way.npz" if directory else None
        self._facts, self._save_seconds = dict(facts), save_seconds
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self._path is not None and time.monotonic() - self._saved >= self._save_seconds

    def save(self, ledger: Ledger, under_way: UnderWay | None) -> None:
        """Replaces what was saved before."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        fields = {} if under_way is None else under_way._asdict()
        state = {f"state_{n}": leaf for n, leaf in enumerate(fields.pop("state", ()))}
        with part.open("wb") as file:
            np.savez(file, facts=json.dumps(self._facts), **vars(ledger), **fields, **state)
        part.replace(self._path)
        self._saved = time.monotonic()

    def restore(self, ledger: Ledger) -> UnderWay | None:
        """Fills `ledger` with what was saved, if anything was, and returns what was under way.

        Raises:
          OtherEvaluation: it belongs to a different one; names what differs.
        """
        if self._path is None or not self._path.exists():
            return None
        with np.load(self._path) as file:
            saved = dict(file)
        facts = json.loads(str(saved["facts"]))
        for name, value in self._facts.items():
            if facts.get(name) != value:
                raise OtherEvaluation(
                    f"{self._path} belongs to an evaluation with {name}={facts.get(name)}, "
                    f"this one has {value}; finish that one or delete the file"
                )
        for name in vars(ledger):
            setattr(ledger, name, saved[name])
        if "rows" not in saved:
            return None
        state = [saved[f"state_{n}"] for n in range(sum(k.startswith("state_") for k in saved))]
        return UnderWay(*(saved[name] for name in ("rows", "run", "count", "steps_taken")), state)

    def discard(self) -> None:
        """Deletes what was saved."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def digest(*arrays: Any) -> str:
    """Returns a short fingerprint of the content of arrays, numbers and random keys."""
    total = hashlib.sha256()
    for content in arrays:
        is_key = isinstance(content, jax.Array) and jnp.issubdtype(
            content.dtype, jax.dtypes.prng_key
        )
        array = np.asarray(jax.random.key_data(content) if is_key else content)
        total.update(str((array.shape, array.dtype)).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]
