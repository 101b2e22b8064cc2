"""The state of every image while an ensemble of attacks runs, in memory and on disk."""

import json
import logging
import time
from pathlib import Path

import numpy as np

from fairmix_jax.attacks.plan import Plan
from fairmix_jax.runtime import sealed
from fairmix_jax.runtime.errors import Damaged

ROBUST, CLEAN = -1, 0


class OtherEvaluation(ValueError):
    """The saved state belongs to an evaluation of other settings, images or weights."""


class VerdictState:
    """The verdicts so far, changed in place; `N` images, `A` attacks of which 0 is clean.

    The curve, `[M, 3]` float, has a row whenever the survivors became fewer: the number of the
    attack, the seconds since it began, the survivors.
    """

    def __init__(self, images: np.ndarray, is_clean: np.ndarray, num_attacks: int):
        """Starts with no attack; `is_clean` `[N]` says which images it will concern."""
        count = len(images)
        self.broken_by = np.where(is_clean, ROBUST, CLEAN).astype(np.int8)  # [N], an attack
        self.adversarial = images.copy()
        self.steps = np.zeros((num_attacks, count), np.int32)
        self.seconds, self.compile_seconds = np.zeros(num_attacks), np.zeros(())
        self.current = np.zeros((), np.int32)  # the attack under way
        self.done = np.ones(count, bool)  # [N], which images it is done with or does not attack
        self.curve = np.asarray([[0, 0, np.sum(self.robust)]], float)
        # Of images that it is in the middle of: leaves of `slots.Slots`, images' positions first.
        self.unfinished: list[np.ndarray] = []

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

    def enter(self, rows: np.ndarray, broken, adversarial, steps) -> None:
        """Notes what the current attack did to the images in these rows."""
        self.done[rows] = True
        self.steps[self.current, rows] = steps
        self.broken_by[rows[broken]] = self.current
        self.adversarial[rows[broken]] = adversarial[broken]


class StateFile:
    """Keeps a `VerdictState` in a file, whole or not at all, so that an interruption costs little.

    An image in the middle of an attack is saved with the attack's state: begun again it would
    come to the same verdict, but a run of Square is thousands of queries. The file belongs to
    one evaluation, told by its plan's `facts`; without a `workdir` there is none.
    """

    def __init__(self, plan: Plan):
        self._plan, self._saved = plan, time.monotonic()
        self._path = Path(plan.workdir) / "under_way.npz" if plan.workdir else None

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        waited = time.monotonic() - self._saved
        return self._path is not None and waited >= self._plan.save_seconds

    def save(self, state: VerdictState) -> None:
        """Replaces what was saved before."""
        if self._path is None:
            return
        fields = dict(vars(state))
        fields |= {f"leaf_{n}": leaf for n, leaf in enumerate(fields.pop("unfinished"))}
        sealed.write(self._path, facts=json.dumps(self._plan.facts), **fields)
        self._saved = time.monotonic()

    def restore(self, state: VerdictState) -> None:
        """Fills `state` with what was saved of this evaluation, if anything was.

        What is damaged, or carries no digest, as version 0.1 wrote it, counts for nothing; of what
        belongs to an `OtherEvaluation` the error names what differs.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            saved = sealed.read(self._path)
        except Damaged as error:
            logging.getLogger(__name__).warning("%s; this evaluation begins again", error)
            return
        found = json.loads(str(saved.pop("facts")))
        for name, value in self._plan.facts.items():
            if found.get(name) != value:
                raise OtherEvaluation(
                    f"{self._path} belongs to an evaluation with {name}={found.get(name)}, "
                    f"this one has {value}; finish that one or delete the file"
                )
        number = sum(name.startswith("leaf_") for name in saved)
        state.unfinished = [saved.pop(f"leaf_{n}") for n in range(number)]
        vars(state).update(saved)

    def discard(self) -> None:
        """Deletes what was saved."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
