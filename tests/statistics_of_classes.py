"""Class statistics for tests of rules: random ones, equal ones, permuted ones."""

import jax
import jax.numpy as jnp
import numpy as np

from fairmix_jax.runtime import registry
from fairmix_jax.types import ClassCounts, ClassStatistics, EpochStatistics

NUM_CLASSES = 4


def make_rule(name, **options):
    """A rule of four classes; a warm-up lasts one epoch."""
    if "warmup_epochs" in registry.parameters("rules", name):
        options = {"warmup_epochs": 1} | options
    return registry.load("rules", name)(NUM_CLASSES, **options)


def class_statistics(total, correct, loss, margin, probabilities):
    """From means per example to sums."""
    total = np.asarray(total)
    counts = ClassCounts(jnp.asarray(total, jnp.int32), jnp.asarray(correct, jnp.int32))
    sums = (jnp.asarray(total * np.asarray(mean), jnp.float32) for mean in (loss, margin))
    return ClassStatistics(
        counts, *sums, jnp.asarray(total[:, None] * np.asarray(probabilities), jnp.float32)
    )


def random_statistics(rng, *, is_sparse=False):
    total = rng.integers(0 if is_sparse else 1, 20, NUM_CLASSES)
    total[rng.integers(NUM_CLASSES)] += 1
    return class_statistics(
        total,
        rng.integers(0, total + 1),
        rng.exponential(2, NUM_CLASSES),
        rng.uniform(-1, 1, NUM_CLASSES),
        rng.dirichlet(np.ones(NUM_CLASSES), NUM_CLASSES),
    )


def random_epoch(rng, epoch=1, **options):
    parts = [random_statistics(rng, **options) for _ in range(4)]
    return EpochStatistics(
        jnp.asarray(epoch, jnp.int32), parts[0], parts[1].counts, parts[2].counts, parts[3]
    )


def equal_epoch():
    """All classes alike; half of each class is right."""
    ones = np.ones(NUM_CLASSES)
    confusion = np.full((NUM_CLASSES, NUM_CLASSES), 0.5 / (NUM_CLASSES - 1))
    np.fill_diagonal(confusion, 0.5)
    part = class_statistics(10 * ones, 5 * ones, 1.5 * ones, -0.1 * ones, confusion)
    return EpochStatistics(jnp.asarray(1, jnp.int32), part, part.counts, part.counts, part)


def permuted(statistics, order):
    """The same statistics of the classes in another order."""

    def one(leaf):
        leaf = leaf[order] if leaf.ndim else leaf
        return leaf[:, order] if leaf.ndim == 2 else leaf

    return jax.tree.map(one, statistics)


def driven(rule, *epochs):
    """The state after each epoch's batch was observed and the epoch told."""
    state = rule.init()
    for epoch in epochs:
        state = rule.update(rule.observe(state, epoch.train), epoch)
    return state
