"""Partners, weights and mixes: their guarantees, and two-sided statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fairmix_jax import mixup
from fairmix_jax.mixup import make, mix

# One length, so one compilation; few classes or many, some with one member, some absent.
labels_of = st.lists(st.sampled_from([0, 1, 2, 7, 9]), min_size=9, max_size=9).map(np.array)
same_class_partners = jax.jit(mixup.same_class_partners, static_argnames="num_partners")
same_class_mixup = jax.jit(mixup.same_class_mixup, static_argnames=("num_samples", "law"))
mixing_weights = jax.jit(mixup.mixing_weights, static_argnames=("shape", "num_samples", "law"))


@given(labels=labels_of, num_partners=st.sampled_from([0, 1, 3]), seed=st.integers(0, 999))
def test_partners_share_the_class_and_are_others(labels, num_partners, seed):
    partners = same_class_partners(
        jax.random.key(seed), jnp.asarray(labels), num_partners=num_partners
    )
    partners = np.asarray(partners)
    assert partners.shape == (num_partners, len(labels))
    for row in partners:
        assert (labels[row] == labels).all()
        assert sorted(row) == list(range(len(labels)))
    for position, label in enumerate(labels):
        size = (labels == label).sum()
        own = partners[:, position]
        assert (own == position).all() if size == 1 else (own != position).all()
        assert len(set(own)) == min(num_partners, size - 1) or size == 1


def partner_counts(choose, members=5, draws=4_000):
    """How often the first of `members` gets each of the others."""
    keys = jax.random.split(jax.random.key(0), draws)
    labels = jnp.asarray([1, 0, 1, 1, 0, 1, 1])
    partners = np.asarray(jax.vmap(lambda key: choose(key, labels))(keys))
    return [int((partners == other).sum()) for other in (2, 3, 5, 6)]


@pytest.mark.parametrize("row", [0, 1])
def test_partner_is_uniform_within_the_class(row):
    counts = partner_counts(lambda key, y: same_class_partners(key, y, num_partners=2)[row, 0])
    assert sum(counts) == 4_000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_uniformity_test_rejects_a_biased_chooser():
    def biased(key, labels):
        partner = same_class_partners(key, labels)[0, 0]
        nudge = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.1)
        return jnp.where(nudge, 2, partner)

    assert stats.chisquare(partner_counts(biased)).pvalue < 1e-6


@given(
    num_samples=st.sampled_from([1, 2, 5]),
    alpha=st.floats(0, 10),
    law=st.sampled_from(["dirichlet", "uniform"]),
    seed=st.integers(0, 999),
)
def test_weights_are_convex_and_lead_with_the_largest(num_samples, alpha, law, seed):
    weights = mixing_weights(
        jax.random.key(seed), shape=(6,), num_samples=num_samples, law=law, alpha=alpha
    )
    assert weights.shape == (6, num_samples)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(weights[:, 0], weights.max(-1))


def largest_of_pair(alpha):
    weights = mixing_weights(jax.random.key(5), shape=(3_000,), num_samples=2, alpha=alpha)
    return np.asarray(weights[:, 0], np.float64)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_pair_weights_follow_beta(alpha):
    """The larger of lambda and 1 - lambda, lambda ~ Beta(a, a), has CDF 2 F(x) - 1 on [1/2, 1]."""

    def law(a):
        return lambda x: 2 * stats.beta(a, a).cdf(x) - 1

    sample = largest_of_pair(alpha)
    assert stats.kstest(sample, law(alpha)).pvalue > 1e-3
    assert stats.kstest(sample, law(1.5 * alpha)).pvalue < 1e-4
    assert stats.kstest(sample, law(alpha / 1.5)).pvalue < 1e-4


@pytest.mark.parametrize("num_samples, alpha", [(2, 0.2), (3, 1.0), (4, 2.0)])
def test_expected_shrinkage_is_the_formula(num_samples, alpha):
    weights = mixing_weights(
        jax.random.key(1), shape=(20_000,), num_samples=num_samples, alpha=alpha
    )
    shrinkage = np.sum(np.asarray(weights, np.float64) ** 2, axis=1)
    expected = (alpha + 1) / (num_samples * alpha + 1)
    assert abs(shrinkage.mean() - expected) < 4 * shrinkage.std() / len(shrinkage) ** 0.5


@given(
    labels=labels_of,
    num_samples=st.sampled_from([2, 4]),
    law=st.sampled_from(["dirichlet", "uniform"]),
    seed=st.integers(0, 999),
)
def test_mixed_pixels_lie_between_those_of_the_class(labels, num_samples, law, seed):
    images = np.random.default_rng(seed).random((len(labels), 2, 2, 1)).astype(np.float32)
    arguments = dict(num_samples=num_samples, law=law)
    mixed = same_class_mixup(
        jax.random.key(seed), jnp.asarray(images), jnp.asarray(labels), **arguments
    )
    for position, label in enumerate(labels):
        members = images[labels == label]
        assert (mixed[position] >= members.min(0) - 1e-6).all()
        assert (mixed[position] <= members.max(0) + 1e-6).all()
        if len(members) == 1:
            np.testing.assert_allclose(mixed[position], images[position], atol=1e-6)


@pytest.mark.parametrize(
    "change", [dict(num_samples=1), dict(alpha=0.0), dict(alpha=1e-6), dict(probability=0.0)]
)
def test_identities(change, rng):
    images = jnp.asarray(rng.random((12, 3, 3, 1)), jnp.float32)
    mixed = same_class_mixup(jax.random.key(0), images, jnp.arange(12) % 3, **change)
    np.testing.assert_allclose(mixed, images, atol=1e-6)


def test_uniform_mix_of_a_whole_class_is_its_mean(rng):
    images = jnp.asarray(rng.random((6, 2, 2, 1)), jnp.float32)
    labels = jnp.asarray([0, 1, 0, 1, 0, 1])
    mixed = same_class_mixup(jax.random.key(0), images, labels, num_samples=3, law="uniform")
    for label in (0, 1):
        mean = images[labels == label].mean(0)
        for image in mixed[labels == label]:
            np.testing.assert_allclose(image, mean, atol=1e-6)


def test_probability_is_the_share_of_mixed_images(rng):
    images = jnp.asarray(rng.random((2_000, 1, 1, 1)), jnp.float32)
    mixed = same_class_mixup(
        jax.random.key(0), images, jnp.zeros(2_000, jnp.int32), law="uniform", probability=0.3
    )
    share = float(jnp.mean((mixed != images).astype(jnp.float32)))
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2_000) ** 0.5


def test_mix_by_hand():
    images = jnp.asarray([0.0, 1.0, 4.0]).reshape(3, 1, 1, 1)
    partners = jnp.asarray([[1, 2, 0], [2, 0, 1]])
    weights = jnp.asarray([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    # 0.5*0 + 0.25*1 + 0.25*4 = 1.25; 1; 1.0*0 = 0
    np.testing.assert_allclose(mix(images, partners, weights).ravel(), [1.25, 1.0, 0.0])


def test_vmaps_over_keys(rng):
    images, labels = jnp.asarray(rng.random((8, 2, 2, 1)), jnp.float32), jnp.arange(8) % 2
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda key: same_class_mixup(key, images, labels)))(keys)
    for key, mixed in zip(keys, together, strict=True):
        np.testing.assert_allclose(mixed, same_class_mixup(key, images, labels), atol=1e-6)


def test_strength_of_a_class_multiplies_its_probability(rng):
    images, labels = jnp.asarray(rng.random((64, 2, 2, 1)), jnp.float32), jnp.arange(64) % 2
    mixing = make("same_class", 2, num_samples=2, law="uniform", alpha=1.0, probability=1.0)
    mixed, targets = mixing(jax.random.key(0), images, labels, jnp.asarray([0.0, 1.0]))
    changed = np.asarray((mixed != images).any((1, 2, 3)))
    assert not changed[::2].any() and changed[1::2].all()
    np.testing.assert_array_equal(targets, np.eye(2)[np.asarray(labels)])


def test_bad_arguments_are_named(rng):
    images, labels = jnp.zeros((2, 1, 1, 1)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="num_samples=0"):
        same_class_mixup(jax.random.key(0), images, labels, num_samples=0)
    with pytest.raises(ValueError, match="'gamma' is unknown"):
        same_class_mixup(jax.random.key(0), images, labels, law="gamma")
