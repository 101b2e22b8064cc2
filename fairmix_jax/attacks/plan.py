"""The inputs of an ensemble of attacks, checked, and what follows from them at once."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from fairmix_jax.attacks import slots
from fairmix_jax.attacks.stepwise import Stepwise, misclassified
from fairmix_jax.runtime import processes
from fairmix_jax.runtime.precision import Precision
from fairmix_jax.runtime.sealed import digest
from fairmix_jax.types import Array, Key, ThreatModel


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """All that stays the same while several attacks run on `N` images.

    Of several processes, which all call this without `devices`, each attacks its share of the
    images, saves for itself, and returns the whole report.
    """

    model: Partial  # `(images, key) -> logits`; it has the last word on every success
    images: np.ndarray  # [N, H, W, C] float, inside `threat.bounds`
    labels: np.ndarray  # [N] int32
    index: np.ndarray  # [N] int32, numbers that tell the images' keys apart
    candidates: np.ndarray  # [N] bool, to attack; the others count as broken by "clean", as given
    threat: ThreatModel
    attacks: Mapping[str, Stepwise]  # a name is part of its attack's key
    search: Partial | None = None  # a cheaper version of the model (bfloat16, say), to attack
    search_precision: Precision = "default"  # of attacks' products; verdicts have the highest
    seed: int = 0  # of all randomness
    batch_size: int = 256  # images under attack at a time, on each device
    early_exit: bool = True  # whether a broken image leaves, or only at the end of its run
    devices: Sequence[jax.Device] | None = None  # to share the work; all if `None`
    workdir: Path | str | None = None  # of work under way, which the same call goes on with
    save_seconds: float = 30.0  # how often to save
    on_progress: Callable[[Any], None] = lambda status: None  # told an `ensemble.Status` at times

    def of_this_process(self) -> "Plan":
        """Returns the plan for this process's share of the images, on its own devices."""
        mine = processes.share(len(self.labels))
        rows = mine if len(mine) else np.zeros(1, int)  # with nothing to do, do something
        folder = f"process-{jax.process_index()}-of-{jax.process_count()}"
        workdir = self.workdir and Path(self.workdir) / folder
        arrays = ("images", "labels", "index", "candidates")
        changes: dict[str, Any] = {name: getattr(self, name)[rows] for name in arrays}
        return dataclasses.replace(self, devices=jax.local_devices(), workdir=workdir, **changes)

    @property
    def key(self) -> Key:
        """The root of all keys."""
        return jax.random.key(self.seed, impl="threefry2x32")

    @cached_property
    def mesh(self) -> Mesh:
        """The devices, along one axis `"device"`."""
        devices = jax.local_devices() if self.devices is None else self.devices
        return Mesh(np.asarray(devices), "device")

    @cached_property
    def models(self) -> tuple[Partial, Partial | None]:
        """On all devices, the model to search on, and the one to confirm with if another."""
        models = (self.search, self.model) if self.search else (self.model, None)
        return jax.device_put(models, NamedSharding(self.mesh, PartitionSpec()))

    @cached_property
    def logits(self) -> np.ndarray:
        """`[N, K]`, of the images as they are."""
        return self.logits_of(self.images)

    @cached_property
    def attacked(self) -> np.ndarray:
        """`[N]` bool, candidates that are classified correctly as they are."""
        is_wrong = misclassified(jnp.asarray(self.logits), jnp.asarray(self.labels))
        return ~np.asarray(is_wrong) & self.candidates

    @cached_property
    def rivals(self) -> np.ndarray:
        """`[N, K - 1]` int32, see `stepwise.Example`."""
        return np.asarray(slots.rivals(jnp.asarray(self.logits), jnp.asarray(self.labels)))

    @property
    def num_classes(self) -> int:
        """`K`."""
        return self.logits.shape[1]

    def logits_of(self, images: np.ndarray) -> np.ndarray:
        """Returns `[N, K]`, the model's on other versions of the images."""
        parts = [
            np.asarray(predict(self.model, images[rows], self.index[rows], self.key))
            for rows in batches(len(images), self.batch_size)
        ]
        return np.concatenate(parts)[: len(images)]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What tells one evaluation from another, for its saved state."""
        predictions = np.argmax(self.logits, axis=1)
        return {
            "format": 3,
            "threat": str(self.threat),
            "seed": self.seed,
            "search": digest(self.search) if self.search else None,
            "search_precision": self.search_precision,
            "early_exit": self.early_exit,
            "attacks": [
                [name, attack.num_steps, attack.num_runs(self.num_classes)]
                for name, attack in self.attacks.items()
            ],
            "images": digest((self.images, self.labels, self.index)),
            "predictions": digest((predictions, self.attacked, self.model)),
            "function": digest(self._function()),
        }

    def _function(self) -> str:
        """The logits of a few images, as they are and moved, which tell functions apart.

        To the last bit, with gradients, which may be others; but for models with weights, told
        apart anyway: hardware may round others.
        """
        rows = np.linspace(0, len(self.images) - 1, 4).astype(int)
        signs = np.random.default_rng(0).choice([-1, 1], self.images[rows].shape)
        moved = (self.images[rows] + self.threat.epsilon * signs).clip(*self.threat.bounds)
        images = np.concatenate([self.images[rows], moved], dtype=np.float32)
        logits = predict(self.model, images, np.tile(self.index[rows], 2), self.key)
        if jax.tree.leaves(self.model):
            return " ".join(f"{value:.2g}" for value in np.ravel(logits))
        try:
            slopes = _slopes(self.model, images, self.key)
        except Exception:  # a function without derivatives, which Square attacks
            slopes = np.zeros(0)
        return " ".join(f"{value:.9g}" for value in (*np.ravel(logits), *np.ravel(slopes)))


predict = jax.jit(slots.clean_logits)


@jax.jit
def _slopes(model: Partial, images: Array, key: Key) -> Array:
    return jax.grad(lambda x: jnp.sum(jax.nn.logsumexp(model(x, key), axis=1)))(images)


def batches(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields rows `0 .. count - 1` in pieces of one size, the last row repeated at the end."""
    size = min(batch_size, count)
    for first in range(0, count, size):
        yield np.minimum(np.arange(first, first + size), count - 1)
