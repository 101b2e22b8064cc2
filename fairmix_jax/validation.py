"""What is measured on the validation set between two epochs."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fairmix_jax import attacks, class_statistics
from fairmix_jax.data import batches
from fairmix_jax.experiment import Experiment
from fairmix_jax.types import (
    ApplyFn,
    Array,
    Base,
    Batch,
    ClassCounts,
    ClassStatistics,
    Key,
    StepInput,
    Weights,
)


class Measured(NamedTuple):
    """Counts of a validation, clean and under PGD with the training attack's step size."""

    clean: ClassCounts
    robust: ClassCounts


class Seen(NamedTuple):
    """What was measured of the current weights, `None` where nothing reads it."""

    counts: Measured | None
    base: ClassStatistics | None


class Validator:
    """Measures weights on the validation set; every validation draws the same noise.

    Args:
      experiment: data, model and threat.
      base: the base with the model in evaluation mode, see `trainer.Trainer.frozen_base`.
      num_steps, step_size: of PGD.
      seed: of the noise.
      batch_size: of the counts; changes nothing but memory and time.
      base_batch_size: of the base's statistics, whose sums depend on it by rounding.
      mesh: of the devices that share a batch.
    """

    def __init__(
        self,
        experiment: Experiment,
        base: Base,
        *,
        num_steps: int,
        step_size: float,
        seed: int,
        batch_size: int,
        base_batch_size: int,
        mesh: Mesh,
    ):
        self._seed, self._batch_size, self._base_batch_size = seed, batch_size, base_batch_size
        self._feed = batches.feed(experiment.validation, mesh)
        self._num_classes = len(experiment.dataset.class_names)
        attack = partial(
            attacks.pgd,
            threat=experiment.threat,
            num_steps=num_steps,
            step_size=step_size,
        )
        self._counters = [
            _make_counter(experiment.model.apply, kind, self._num_classes)
            for kind in (None, attack)
        ]
        self._base_counter = jax.jit(partial(_base_statistics, base, self._num_classes))

    @property
    def is_empty(self) -> bool:
        """Whether there is no validation set."""
        return not len(self._feed.split.labels)

    def counts(self, weights: Weights) -> Measured:
        """Returns clean and robust counts."""
        size = self._batch_size
        return Measured(*(self._sum(counter, weights, size) for counter in self._counters))

    def read(self, weights: Weights, reads: Collection[str]) -> Seen:
        """Returns what `reads` names of `VALIDATION`; base means the base's own attack."""
        counts = self.counts(weights) if {"clean", "robust"} & set(reads) else None
        if "base" not in reads:
            return Seen(counts, None)
        return Seen(counts, self._sum(self._base_counter, weights, self._base_batch_size))

    def filled(self, seen: Seen) -> tuple[Measured, ClassStatistics]:
        """Returns what was seen, with zeros for what was not."""
        none = class_statistics.zeros(self._num_classes)
        counts = Measured(none.counts, none.counts) if seen.counts is None else seen.counts
        return counts, none if seen.base is None else seen.base

    def _sum(self, counter, weights: Weights, batch_size: int):
        key = jax.random.key(self._seed)
        parts = [counter(weights, batch, key) for batch in self._feed.in_order(batch_size)]
        return jax.tree.map(lambda *sums: np.sum(np.stack(sums), axis=0), *parts)


def _make_counter(
    apply_fn: ApplyFn, attack: Callable[..., Array] | None, num_classes: int
) -> Callable[[Weights, Batch, Key], Any]:
    """A jitted function that counts a batch as it is, or attacked."""

    @jax.jit
    def counter(weights: Weights, batch: Batch, key: Key) -> ClassCounts:
        def logits_fn(images: Array) -> Array:
            return apply_fn(weights.params, weights.batch_stats, images, train=False)[0]

        images = batch.images
        if attack is not None:
            images = attack(logits_fn, key, images, batch.labels, index=batch.index)
        return class_statistics.count(logits_fn(images), batch, num_classes=num_classes)

    return counter


def _base_statistics(
    base: Base, num_classes: int, weights: Weights, batch: Batch, key: Key
) -> ClassStatistics:
    ones = jnp.ones(batch.labels.shape)
    targets = jax.nn.one_hot(batch.labels, num_classes)
    inputs = StepInput(
        batch.images, targets, batch.labels, radius=ones, step_size=ones, ce_weight=ones,
        beta=ones, index=batch.index,
    )  # fmt: skip
    adversarial = base.attack(*weights, key, inputs)
    result = base.loss(*weights, inputs, adversarial)
    return class_statistics.measure(result.logits, result.losses, batch, num_classes=num_classes)


def overfits_single_step(single_step: float, pgd: float, best_pgd: float) -> bool:
    """Whether a network withstands its own one-step attack, but no longer PGD.

    True if PGD leaves less than half the accuracy that the base's own attack leaves, and
    that is a collapse: less than half of the best that PGD left in an earlier epoch, or
    less than a tenth of an accuracy above one half. A network that is not yet robust to
    anything is not meant. The limits are our choice; in sound single-step training the two
    accuracies are within some points of each other, and after catastrophic overfitting PGD
    leaves next to nothing (Wong et al. 2020, arXiv 2001.03994).

    Args:
      single_step, pgd: accuracies of the current weights on the validation set.
      best_pgd: the largest `pgd` of the earlier validations, 0 if there is none.
    """
    is_collapse = pgd < 0.5 * best_pgd or (single_step > 0.5 and pgd < 0.1 * single_step)
    return pgd < 0.5 * single_step and is_collapse
