"""Partners, weights and mixes: their guarantees, and two-sided statistics."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fairmix_jax import mixup
from fairmix_jax.methods.mixing import make
from fairmix_jax.mixup import Plan, mix

# One length, so one compilation; few classes or many, some with one member, some absent.
labels_of = st.lists(st.sampled_from([0, 1, 2, 7, 9]), min_size=9, max_size=9).map(np.array)
same_class_partners = jax.jit(mixup.same_class_partners, static_argnames="num_partners")
same_class_mixup = jax.jit(
    mixup.same_class_mixup,
    static_argnames=("num_samples", "law", "per_batch", "num_groups", "max_samples"),
)


@functools.partial(jax.jit, static_argnames=("draws", "num_samples", "law"))
def mixing_weights(seed, *, draws, num_samples, law="dirichlet", alpha=1.0):
    keys = jax.random.split(jax.random.key(seed), draws)
    draw = functools.partial(mixup.mixing_weights, law=law, alpha=alpha)
    return jax.vmap(lambda key: draw(key, num_samples))(keys)


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
    weights = mixing_weights(seed, draws=6, num_samples=num_samples, law=law, alpha=alpha)
    assert weights.shape == (6, num_samples)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(weights[:, 0], weights.max(-1))


def largest_of_pair(alpha):
    weights = mixing_weights(5, draws=3_000, num_samples=2, alpha=alpha)
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
    weights = mixing_weights(1, draws=20_000, num_samples=num_samples, alpha=alpha)
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
    np.testing.assert_allclose(mix(images, Plan(partners, weights)).ravel(), [1.25, 1.0, 0.0])


def test_vmaps_over_keys(rng):
    images, labels = jnp.asarray(rng.random((8, 2, 2, 1)), jnp.float32), jnp.arange(8) % 2
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(lambda key: same_class_mixup(key, images, labels)))(keys)
    for key, mixed in zip(keys, together, strict=True):
        np.testing.assert_allclose(mixed, same_class_mixup(key, images, labels), atol=1e-6)


def changed_rows(mixed, images):
    return np.asarray((mixed != images).any((1, 2, 3)))


@pytest.mark.parametrize(
    "per_class",
    [
        dict(num_samples=np.array([1, 2, 3]), max_samples=3),
        dict(alpha=np.array([0.0, 1.0, 1.0])),
        dict(probability=np.array([0.0, 1.0, 1.0])),
    ],
)
def test_numbers_may_differ_by_class(per_class, rng):
    images, labels = jnp.asarray(rng.random((60, 2, 2, 1)), jnp.float32), jnp.arange(60) % 3
    mixed = mixup.same_class_mixup(jax.random.key(0), images, labels, **per_class)
    changed = changed_rows(mixed, images)
    assert not changed[::3].any() and changed[1::3].all() and changed[2::3].all()


def test_all_strengths_share_one_compilation(rng):
    images, labels = jnp.asarray(rng.random((30, 2, 2, 1)), jnp.float32), jnp.arange(30) % 3

    @jax.jit
    @chex.assert_max_traces(n=1)
    def mixed(num_samples, alpha, probability):
        numbers = dict(num_samples=num_samples, alpha=alpha, probability=probability)
        return mixup.same_class_mixup(jax.random.key(0), images, labels, max_samples=4, **numbers)

    plain = mixed(jnp.ones(3, jnp.int32), jnp.ones(3), jnp.ones(3))
    np.testing.assert_array_equal(plain, images)
    some = mixed(jnp.asarray([1, 4, 2]), jnp.asarray([1.0, 0.0, 2.0]), jnp.ones(3))
    changed = changed_rows(some, images)
    assert not changed[::3].any() and not changed[1::3].any() and changed[2::3].all()


def test_per_class_number_of_samples_mixes_that_many(rng):
    """With uniform weights the covariance of class c shrinks to 1 / k_c."""
    labels = jnp.arange(6_000) % 3
    images = jnp.asarray(rng.normal(size=(6_000, 1, 1, 1)), jnp.float32)
    counts = np.array([1, 2, 4])
    mixed = mixup.same_class_mixup(
        jax.random.key(0), images, labels, num_samples=counts, law="uniform"
    )
    for label, count in enumerate(counts):
        variance = float(jnp.var(mixed[labels == label]))
        # neighbours in the cycle share samples, so the error is a few times 1/sqrt(n)
        assert abs(variance * count - 1) < 4 * (2 * count / 2_000) ** 0.5


def test_fixed_weights(rng):
    images, labels = jnp.asarray(rng.random((8, 2, 2, 1)), jnp.float32), jnp.zeros(8, jnp.int32)
    plan = mixup.draw_plan(jax.random.key(0), labels, law=(0.7, 0.2, 0.1))
    np.testing.assert_allclose(plan.weights, np.tile([0.7, 0.2, 0.1], (8, 1)), atol=1e-6)
    assert plan.partners.shape == (2, 8)
    own = mixup.mixing_weights(jax.random.key(0), jnp.asarray(1), law=(0.7, 0.3), max_samples=2)
    np.testing.assert_allclose(own, [1.0, 0.0], atol=1e-6)
    for weights in ((0.7, 0.7), (1.5, -0.5)):
        with pytest.raises(ValueError, match="not convex"):
            mixup.same_class_mixup(jax.random.key(0), images, labels, law=weights)


def test_per_batch_is_one_draw():
    labels = jnp.arange(40) % 4
    one = mixup.draw_plan(jax.random.key(0), labels, num_samples=3, per_batch=True).weights
    many = mixup.draw_plan(jax.random.key(0), labels, num_samples=3).weights
    assert len(np.unique(one, axis=0)) == 1 and len(np.unique(many, axis=0)) == 40
    coins = [
        mixup.draw_plan(
            jax.random.key(seed), labels, law="uniform", per_batch=True, probability=0.5
        ).weights[:, 0]
        for seed in range(20)
    ]
    assert all(len(np.unique(coin)) == 1 for coin in coins)
    assert 4 <= sum(float(coin[0]) == 0.5 for coin in coins) <= 16


def test_cross_class_partners_come_from_the_whole_batch(rng):
    labels = jnp.arange(400) % 4
    plan = mixup.draw_plan(jax.random.key(0), labels, across_classes=True)
    partners = np.asarray(plan.partners[0])
    assert (partners != np.arange(400)).all() and len(set(partners)) == 400
    share = np.mean(np.asarray(labels)[partners] == np.asarray(labels))
    assert abs(share - 99 / 399) < 4 * (0.25 * 0.75 / 400) ** 0.5
    images = jnp.asarray(rng.random((400, 2, 2, 1)), jnp.float32)
    mixed = mixup.cross_class_mixup(jax.random.key(0), images, labels)
    targets = mixup.cross_class_mixup(jax.random.key(0), jax.nn.one_hot(labels, 4), labels)
    weights, row = np.asarray(plan.weights), 17
    expected = weights[row, 0] * images[row] + weights[row, 1] * images[partners[row]]
    np.testing.assert_allclose(mixed[row], expected, atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert targets[row, labels[row]] >= 0.5 - 1e-6


def test_groups_ignore_each_other():
    labels = jnp.zeros(12, jnp.int32)
    partners = same_class_partners_in_groups(labels)
    assert (partners // 4 == np.arange(12) // 4).all()
    alone = mixup._partners(jax.random.split(jax.random.key(0), 3)[1], labels[4:8], 2)
    np.testing.assert_array_equal(partners[:, 4:8], alone + 4)
    with pytest.raises(ValueError, match="num_groups=5 does not divide the batch of 12"):
        mixup.same_class_partners(jax.random.key(0), labels, num_groups=5)


def same_class_partners_in_groups(labels):
    return np.asarray(
        mixup.same_class_partners(jax.random.key(0), labels, num_partners=2, num_groups=3)
    )


def test_mixing_a_sharded_batch_moves_no_image_between_devices(rng):
    """The compiled program of two devices has no collective on images, and the same result."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images = jnp.asarray(rng.random((16, 6, 6, 3)), jnp.float32)
    labels = jnp.arange(16) % 3

    def compiled(num_groups):
        mixing = functools.partial(mixup.same_class_mixup, num_samples=3, num_groups=num_groups)
        jitted = jax.jit(mixing, in_shardings=(None, rows, rows), out_shardings=rows)
        return jitted.lower(jax.random.key(0), images, labels).compile()

    def moved_images(program):
        moves = re.findall(r"= (\S+) (?:all-gather|all-to-all|collective-permute|all-reduce)\(",
                           program.as_text())  # fmt: skip
        return [shape for shape in moves if ",6,6,3]" in shape]

    local = compiled(2)
    assert not moved_images(local)
    assert moved_images(compiled(1)), "the check must see a program that does move images"
    sharded = local(jax.random.key(0), jax.device_put(images, rows), jax.device_put(labels, rows))
    single = mixup.same_class_mixup(jax.random.key(0), images, labels, num_samples=3, num_groups=2)
    np.testing.assert_allclose(sharded, single, atol=1e-6)


def test_more_samples_than_there_is_room_for_are_refused_or_clipped():
    images, labels = jnp.ones((4, 2, 2, 1)), jnp.array([0, 0, 1, 1])

    def mixed(**options):
        key = jax.random.key(0)
        return mixup.same_class_mixup(key, images, labels, max_samples=2, **options)

    with pytest.raises(ValueError, match=r"num_samples=4 .* give 1 to max_samples=2"):
        mixed(num_samples=4)
    for law in ("uniform", "dirichlet"):
        traced = jax.jit(lambda number, law=law: mixed(num_samples=number, law=law))
        for number in (0, 1, 4):
            np.testing.assert_allclose(traced(number), images, atol=1e-6)


def test_groups_that_are_not_those_of_the_plan_are_refused():
    labels = jnp.array([0, 1, 1, 0, 1, 0, 0, 1])
    images = labels.astype(jnp.float32)[:, None]
    whole, halves = (
        mixup.draw_plan(jax.random.key(0), labels, law="uniform", num_groups=n) for n in (1, 2)
    )
    with pytest.raises(ValueError, match="num_groups=2 is not that of plan"):
        mix(images, whole, num_groups=2)
    for plan, number in ((whole, 1), (halves, 2), (halves, 1)):
        np.testing.assert_array_equal(mix(images, plan, num_groups=number), images)


def test_labels_of_64_bits_are_told_apart_or_refused():
    labels = np.array([5, 5 + 2**32] * 4)
    partners = mixup.same_class_partners(jax.random.key(0), labels, num_partners=2)
    assert (labels[np.asarray(partners)] == labels).all()
    small = np.array([5, 7] * 4)
    alike = mixup.same_class_partners(jax.random.key(0), jnp.asarray(small), num_partners=2)
    np.testing.assert_array_equal(partners, alike)
    with pytest.raises(ValueError, match="labels range over"):
        mixup.draw_plan(jax.random.key(0), labels)


def test_an_image_of_weight_zero_does_not_count_even_if_it_is_not_finite():
    images, labels = jnp.ones((4, 2)).at[1].set(jnp.inf), jnp.zeros(4, jnp.int32)
    for options in (dict(probability=0.0), dict(alpha=0.0), dict(law=(1.0, 0.0))):
        mixed = mixup.same_class_mixup(jax.random.key(0), images, labels, **options)
        np.testing.assert_array_equal(mixed, images)
    plan = Plan(jnp.array([[1, 2, 3, 0]]), jnp.tile(jnp.array([0.0, 1.0]), (4, 1)))
    np.testing.assert_array_equal(mix(images, plan), images[jnp.array([1, 2, 3, 0])])


def test_a_strength_above_one_mixes_every_image_without_jit_too():
    images, labels = jnp.eye(4)[:, :, None, None], jnp.array([0, 0, 1, 1])
    mixing = make("same_class", 2, law="uniform", probability=0.8)
    with jax.disable_jit():
        mixed = mixing(jax.random.key(0), images, labels, jnp.array([2.0, 0.0])).images
    assert changed_rows(mixed, images).tolist() == [True, True, False, False]


@pytest.mark.parametrize("wrong", [dict(probability=7.0), dict(class_strength=(1.0, -1.0))])
def test_a_strength_that_is_none_is_refused_before_any_image_is_mixed(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make("same_class", 2, **wrong)


OPTIONS = dict(num_samples=2, law="uniform", alpha=1.0, per_batch=False)


def test_stages(rng):
    images, labels = jnp.asarray(rng.random((12, 2, 2, 1)), jnp.float32), jnp.arange(12) % 2
    before, after, hidden = (
        make("same_class", 2, stage=stage, **OPTIONS)(
            jax.random.key(0), images, labels, jnp.ones(2)
        )
        for stage in ("before_attack", "after_attack", "hidden")
    )
    assert changed_rows(before.images, images).all()
    for mixed in (after, hidden):
        np.testing.assert_array_equal(mixed.images, images)
    np.testing.assert_allclose(after.after_attack(images), before.images, atol=1e-6)
    np.testing.assert_allclose(hidden.hidden(images), before.images, atol=1e-6)
    np.testing.assert_array_equal(before.after_attack(images), images)
    np.testing.assert_array_equal(before.targets, np.eye(2)[np.asarray(labels)])


def test_strength_and_class_strength_multiply_the_probability(rng):
    images, labels = jnp.asarray(rng.random((64, 2, 2, 1)), jnp.float32), jnp.arange(64) % 2
    mixing = make("same_class", 2, class_strength=(1.0, 0.0), **OPTIONS)
    mixed = mixing(jax.random.key(0), images, labels, jnp.ones(2))
    changed = changed_rows(mixed.images, images)
    assert changed[::2].all() and not changed[1::2].any()
    none = mixing(jax.random.key(0), images, labels, jnp.asarray([0.0, 1.0]))
    assert not changed_rows(none.images, images).any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(name="other"), "mixing.name='other' is unknown"),
        (dict(stage="late"), "mixing.stage='late' is unknown"),
        (dict(name="cross_class", stage="hidden"), "for same_class only"),
        (dict(class_strength=(1.0,)), "1 numbers for 2 classes"),
        (dict(weights=(0.7, 0.7)), "not convex"),
    ],
)
def test_mixings_that_cannot_be_made_are_named(change, message):
    arguments = dict(name="same_class", num_classes=2) | OPTIONS | change
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_bad_arguments_are_named(rng):
    images, labels = jnp.zeros((2, 1, 1, 1)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="num_samples=0"):
        same_class_mixup(jax.random.key(0), images, labels, num_samples=0)
    with pytest.raises(ValueError, match="'gamma' is unknown"):
        same_class_mixup(jax.random.key(0), images, labels, law="gamma")
    with pytest.raises(ValueError, match="num_samples is traced; give max_samples"):
        jax.jit(mixup.same_class_mixup)(jax.random.key(0), images, labels, num_samples=2)
