"""The margin table and the biases that are best on it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from fairmix_jax.classwise import class_bias
from fairmix_jax.classwise.margins import margin_table
from fairmix_jax.types import ThreatModel

THREAT = ThreatModel("linf", 0.05)


def apply(weights, images):
    """A small network with kinks, of `K` classes."""
    first, last = weights
    return jnp.maximum(images.reshape(len(images), -1) @ first, 0) @ last


@pytest.fixture(scope="module")
def network():
    first, last = jax.random.split(jax.random.key(0))
    weights = jax.random.normal(first, (12, 16)), jax.random.normal(last, (16, 4))
    return Partial(apply, weights)


@pytest.fixture(scope="module")
def examples(network):
    images = np.random.default_rng(0).uniform(0.2, 0.8, (24, 2, 6, 1)).astype(np.float32)
    return images, np.asarray(jnp.argmax(network(images), -1), np.int32)


def test_of_a_linear_model_it_is_the_exact_worst_case(examples):
    images, labels = examples
    weights = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    table = margin_table(
        Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights), *examples, threat=THREAT
    )
    flat = images.reshape(len(images), -1)
    apart = weights[:, labels].T[:, :, None] - weights[None]  # w_y - w_k
    exact = np.einsum("ij,ijk->ik", flat, apart) - THREAT.epsilon * np.abs(apart).sum(axis=1)
    exact[np.arange(len(labels)), labels] = np.inf
    np.testing.assert_allclose(table, exact, rtol=1e-4, atol=1e-5)


def test_the_table_is_below_the_clean_margins_and_falls_with_the_radius(network, examples):
    rows = [
        margin_table(network, *examples, threat=ThreatModel("linf", radius), num_steps=10)
        for radius in (0.0, 0.02, 0.1)
    ]
    logits = np.asarray(network(examples[0]))
    clean = logits[np.arange(len(logits)), examples[1]][:, None] - logits
    clean[np.arange(len(logits)), examples[1]] = np.inf
    np.testing.assert_allclose(rows[0], clean, rtol=1e-5, atol=1e-5)
    assert (rows[1] <= rows[0]).all() and (rows[2] < rows[1]).mean() > 0.7


def test_biases_shift_the_table_and_change_nothing_else(network, examples):
    """So the attack needs no second run at other biases, and knows them."""
    offsets = np.array([0.7, -1.1, 0.2, 0.4], np.float32)
    shifted = Partial(lambda inner, b, x: inner(x) + b[None], network, offsets)
    table, moved = (margin_table(f, *examples, threat=THREAT) for f in (network, shifted))
    labels = examples[1]
    np.testing.assert_allclose(moved, table + offsets[labels][:, None] - offsets, atol=2e-3)
    direct = (moved > 0).all(axis=1)
    counts = class_bias.class_counts(table, labels, offsets)
    assert counts[1].tolist() == np.bincount(labels[direct], minlength=4).tolist()


def test_a_row_is_of_its_own_image(network, examples):
    """Whatever the batches, the order and the names of the classes."""
    images, labels = examples
    table = margin_table(network, images, labels, threat=THREAT)
    order = np.random.default_rng(2).permutation(len(labels))
    again = margin_table(
        network, images[order], labels[order], threat=THREAT, index=order, batch_size=7
    )
    np.testing.assert_allclose(again, table[order], rtol=1e-5, atol=1e-5)
    names = np.array([2, 0, 3, 1])  # class `k` is now called `names[k]`
    renamed = Partial(lambda inner, old, x: inner(x)[:, old], network, np.argsort(names))
    found = margin_table(renamed, images, names[labels].astype(np.int32), threat=THREAT)
    np.testing.assert_allclose(found[:, names], table, rtol=1e-5, atol=1e-5)


def test_more_restarts_never_raise_a_margin(network, examples):
    one, three = (
        margin_table(network, *examples, threat=THREAT, num_steps=3, num_restarts=number)
        for number in (1, 3)
    )
    assert (three <= one).all() and (three < one).any()


def test_logits_that_are_not_finite_are_robust_at_no_bias():
    def logits_fn(x):
        return jnp.stack([x[:, 0, 0, 0], jnp.where(x[:, 0, 0, 0] > 0.5, jnp.nan, 0.0)], -1)

    images = np.array([0.9, 0.2], np.float32).reshape(2, 1, 1, 1)
    table = margin_table(logits_fn, images, np.array([0, 0]), threat=THREAT, num_steps=2)
    assert table[0].tolist() == [np.inf, -np.inf] and np.isfinite(table[1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(labels=np.array([0, 9])), "labels range over"),
        (dict(images=np.full((2, 2, 6, 1), 2.0, np.float32)), "images range over"),
        (dict(num_restarts=0), "num_restarts=0"),
        (dict(num_steps=0), "num_steps=0"),
    ],
)
def test_bad_input_of_a_table_is_named(changes, message, network, examples):
    given = dict(images=examples[0][:2], labels=examples[1][:2], threat=THREAT) | changes
    with pytest.raises(ValueError, match=message):
        margin_table(network, **given)


def made_up(seed, size=60, num_classes=3):
    """A table whose first class is the weak one."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % num_classes
    table = rng.normal(1.0, 1.0, (size, num_classes)) - (labels == 0)[:, None]
    table[np.arange(size), labels] = np.inf
    return table, labels


def test_two_classes_by_hand():
    """Both accuracies at five differences of the biases."""
    table = np.full((8, 2), np.inf)
    table[:4, 1], table[4:, 0] = (2, 1, -0.5, 3), (-1, -0.2, 0.4, -2)
    labels = np.repeat([0, 1], 4)
    for difference, expected in (
        (0, (3, 1)),
        (0.25, (3, 2)),
        (0.99, (3, 2)),
        (1.01, (2, 3)),
        (2.01, (1, 4)),
    ):
        counts = class_bias.class_counts(table, labels, np.array([0, difference]))
        assert counts.tolist() == [[4, 4], list(expected)]
    offsets = class_bias.best(table, labels, 1.0)
    assert class_bias.reached(class_bias.class_counts(table, labels, offsets)) == (0.625, 0.5)


@pytest.mark.parametrize("weight", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_best_is_the_best_of_a_fine_grid(weight, seed):
    table, labels = made_up(seed)
    offsets = class_bias.best(table, labels, weight)
    found = class_bias.reached(class_bias.class_counts(table, labels, offsets)).value(weight)
    steps = np.linspace(-4, 4, 81)
    grid = max(
        class_bias.reached(class_bias.class_counts(table, labels, np.array([0, a, b]))).value(
            weight
        )
        for a, b in itertools.product(steps, steps)
    )
    assert found >= grid - 1 / 60
    assert abs(offsets.mean()) < 1e-12


def test_no_weight_leaves_the_model_alone():
    assert not class_bias.best(*made_up(0), 0.0).any()


def test_what_cannot_be_better_stays_as_it_is():
    table, labels = made_up(0)
    assert not class_bias.best(np.abs(table) + 1, labels, 1.0).any()


def test_more_weight_serves_the_worst_class_more():
    table, labels = made_up(5, size=600, num_classes=5)
    found = [
        class_bias.reached(
            class_bias.class_counts(table, labels, class_bias.best(table, labels, w))
        )
        for w in (0.0, 0.3, 1.0)
    ]
    assert found[0].worst_class < found[1].worst_class <= found[2].worst_class
    assert found[1].average >= found[2].average


def test_renaming_the_classes_renames_the_biases():
    table, labels = made_up(7, size=400, num_classes=4)
    names = np.array([2, 0, 3, 1])
    offsets = class_bias.best(table, labels, 0.5)
    renamed = class_bias.best(table[:, np.argsort(names)], names[labels], 0.5)
    np.testing.assert_allclose(renamed[names], offsets, atol=1e-3)
    counts = class_bias.class_counts(table, labels, offsets)
    again = class_bias.class_counts(table, labels, renamed[names])
    assert counts.tolist() == again.tolist()


def test_a_class_without_images_counts_nowhere():
    table, labels = made_up(3, size=90, num_classes=3)
    offsets = class_bias.best(table[labels != 2], labels[labels != 2], 1.0)
    found = class_bias.reached(
        class_bias.class_counts(table[labels != 2], labels[labels != 2], offsets)
    )
    assert found.worst_class > 0.5
