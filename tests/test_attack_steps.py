"""The attacks one by one: their guarantees on many cases, closed forms, tables, steps by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from fairmix_jax import attacks
from fairmix_jax.attacks import ThreatModel, losses
from fairmix_jax.attacks.apgd import checkpoints
from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.autoattack import attack_makers
from fairmix_jax.attacks.fab import State as FabState
from fairmix_jax.attacks.fab import make as make_fab
from fairmix_jax.attacks.one_batch import attack_batch
from fairmix_jax.attacks.projections import steepest_direction, to_hyperplane
from fairmix_jax.attacks.square import make as make_square
from fairmix_jax.attacks.square import random_start as square_start
from fairmix_jax.attacks.square import stages
from fairmix_jax.attacks.stepwise import Example

B = 1024
SHAPES = {"linf": (2, 3, 1), "l2": (3, 2, 2)}
CLASSES = {"linf": 3, "l2": 2}
BOUNDS, UNBOUNDED = (0.0, 1.0), (-100.0, 100.0)
RADIUS = np.float32(0.2)
POOLED = [*attack_makers()]
PLAIN = {
    "pgd": dict(num_steps=3, step_size=0.5),
    "mi_fgsm": dict(num_steps=3, keep="any_iterate"),
}
each_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
# These programs run for milliseconds: the lowest level of optimisation compiles fastest.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def distance(offsets, norm):
    flat = np.asarray(offsets, np.float64).reshape(len(offsets), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.linalg.norm(flat, axis=1)


def network(weights, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ weights["first"] + weights["bias"])
    return hidden @ weights["second"]


def draw(norm, seed, size=3.0):
    """A random network, images with many pixels at the bounds, and their predicted labels."""
    rng, pixels = np.random.default_rng(seed), np.prod(SHAPES[norm])
    shapes = {"first": (pixels, 5), "bias": (1, 5), "second": (5, CLASSES[norm])}
    weights = {k: jnp.asarray(size * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    images = np.clip(rng.uniform(-0.2, 1.2, (B, *SHAPES[norm])), 0, 1)
    images = jnp.asarray(images, jnp.float32)
    return weights, images, jnp.argmax(network(weights, images), 1)


@functools.cache
def compiled(name, norm):
    """An attack of few steps as a program for any network of this size and any radius."""

    def run(key, weights, images, labels, index, epsilon):
        arguments = functools.partial(network, weights), key, images, labels
        if name in PLAIN:
            threat, attack = ThreatModel(norm, 1.0), getattr(attacks, name)
            return attack(*arguments, threat=threat, scale=epsilon, index=index, **PLAIN[name])
        steps = {"num_queries": 12} if name == "square" else {"num_steps": 4, "num_restarts": 2}
        attack = attack_makers()[name](norm=norm, bounds=BOUNDS, **steps)
        early_exit = norm == "linf"
        return attack_batch(attack, *arguments, epsilon=epsilon, index=index, early_exit=early_exit)

    return quick_jit(run)


@each_norm
def test_no_attack_leaves_the_ball_or_the_bounds(norm):
    """Nor does any but plain PGD change an image without breaking it, up to rounding."""
    cases = dict.fromkeys([*POOLED, *PLAIN], 0)

    @settings(max_examples=8)
    @given(st.integers(0, 2**20), st.sampled_from([0.0, 1e-4, 0.03, 0.3, 3.0]), st.floats(0.1, 20))
    def check(seed, epsilon, size):
        weights, images, labels = draw(norm, seed, size)
        for name in cases:
            found = compiled(name, norm)(
                jax.random.key(seed), weights, images, labels, jnp.arange(B), np.float32(epsilon)
            )
            offsets = distance(np.float64(found) - np.float64(images), norm)
            assert (offsets <= np.float32(epsilon) * (1 + 1e-6) + 1e-7).all(), name
            assert found.min() >= 0 and found.max() <= 1, name
            margins = np.asarray(jax.vmap(losses.margin)(network(weights, found), labels))
            assert name in PLAIN or ((margins > -1e-4) | (offsets == 0)).all(), name
            cases[name] += len(found)

    check()
    assert sum(cases.values()) >= 50_000 and min(cases.values()) >= 5_000


@each_norm
def test_result_depends_on_the_index_and_not_on_the_batch(norm):
    weights, images, labels = draw(norm, 0)
    order = jnp.asarray(np.random.default_rng(1).permutation(B))
    for name in [*POOLED, *PLAIN]:
        run, keys = compiled(name, norm), [jax.random.key(2) for _ in range(2)]
        found = run(keys[0], weights, images, labels, jnp.arange(B), RADIUS)
        assert jnp.mean(jnp.argmax(network(weights, found), 1) != labels) > 0.02, name
        moved = run(keys[1], weights, images[order], labels[order], order, RADIUS)
        np.testing.assert_allclose(moved, found[order], atol=1e-6, err_msg=name)


@each_norm
def test_misclassified_images_come_back_unchanged(norm):
    weights, images, labels = draw(norm, 0)
    for name in POOLED:
        arguments = jax.random.key(0), weights, images, (labels + 1) % CLASSES[norm]
        found = compiled(name, norm)(*arguments, jnp.arange(B), RADIUS)
        np.testing.assert_array_equal(found, images, err_msg=name)


def test_every_attack_can_be_jitted():
    weights, images, labels = draw("linf", 0)
    for name in ("apgd", "apgd_targeted", "fab", "fab_targeted", "square", "fgsm", "mi_fgsm"):
        attack = functools.partial(getattr(attacks, name), functools.partial(network, weights))
        attack = functools.partial(attack, threat=ThreatModel())
        assert jax.jit(attack).lower(jax.random.key(0), images, labels).out_info.shape == (
            images.shape
        )


def test_numpy_arrays_are_attacked_as_they_are():
    weights, images, labels = draw("linf", 0)
    run = functools.partial(
        attacks.square, functools.partial(network, weights), threat=ThreatModel("linf", 0.2),
        num_queries=2,
    )  # fmt: skip
    there = run(jax.random.key(0), images, labels, index=jnp.arange(B))
    found = run(jax.random.key(0), np.asarray(images), np.asarray(labels), index=np.arange(B))
    np.testing.assert_array_equal(found, there)


def linear(norm, num_classes):
    """`logits = W x` as a function, `W` `[K, D]`, images about 0.5 and their labels."""
    rng, shape = np.random.default_rng(5), (4, 3, 2)
    weights = np.float32(rng.normal(size=(num_classes, 24)))
    images = np.float32(0.5 + 0.05 * rng.normal(size=(64, *shape)))
    labels = np.argmax(images.reshape(64, -1) @ weights.T, 1)
    return lambda x: x.reshape(len(x), -1) @ weights.T, weights, jnp.asarray(images), labels


@pytest.mark.parametrize("norm, name", [("linf", "fab"), ("l2", "fab_targeted")])
def test_fab_finds_the_smallest_perturbation_of_a_linear_model(norm, name):
    """Margin over dual norm; the targeted attack looks for it with two classes."""
    logits_fn, weights, images, labels = linear(norm, 3 if name == "fab" else 2)
    logits, rows = np.float64(logits_fn(images)), np.arange(len(images))
    dual = np.linalg.norm(weights[labels][:, None] - weights, 1 if norm == "linf" else 2, axis=2)
    dual[rows, labels] = 1
    distances = (logits[rows, labels][:, None] - logits) / dual
    nearest = np.sort(distances, axis=1)[:, 1]
    run = functools.partial(
        getattr(attacks, name), logits_fn, threat=ThreatModel(norm, 50.0, UNBOUNDED),
        num_steps=30, early_exit=False,
    )  # fmt: skip
    found = quick_jit(run)(jax.random.key(0), images, jnp.asarray(labels))
    ratio = distance(found - images, norm) / nearest
    assert ratio.min() >= 1 - 1e-4 and ratio.max() <= 1.01


def test_fab_goes_on_from_a_success_that_was_taken_back():
    """The nearer point 0.42 was not confirmed, so the farther one counts."""
    attack, image = make_fab(norm="l2", bounds=BOUNDS), jnp.full((1, 1, 1), 0.5)
    key = jax.random.key(0)
    example = Example(image, jnp.asarray(0), jnp.asarray([1]), jnp.asarray(0.2), key, key)
    before = FabState(image, image - 0.08, jnp.asarray(0.08), jnp.asarray(False))
    logits_of = lambda x, key: jnp.stack([jnp.zeros(()), x[0, 0, 0] - 0.6])  # noqa: E731
    step = quick_jit(functools.partial(attack.step, logits_of))
    after = step(example, jnp.asarray(0), jnp.asarray(1), before)
    assert after.broken
    np.testing.assert_allclose(after.adversarial, 0.605, atol=1e-5)


@each_norm
@settings(max_examples=10)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.0, 0.3]))
def test_nothing_on_a_hyperplane_is_nearer_and_beyond_reach_it_is_the_corner(norm, seed, share):
    """Against points where segments between random corners and points cross the hyperplane."""
    rng, size = np.random.default_rng(seed), (500, 6)
    points, weights = np.float32(rng.random(size)), np.float32(rng.normal(size=size))
    weights[rng.random(size) < share] = 0
    ends = [np.where(rng.random(size) < 0.3, np.rint(e), e) for e in rng.random((2, *size))]
    values = [np.sum(weights * end, 1) for end in ends]
    levels = np.float32(values[0] + rng.random(500) * (values[1] - values[0]))
    move = quick_jit(jax.vmap(functools.partial(to_hyperplane, norm=norm, bounds=BOUNDS)))
    moves = np.float64(move(points, weights, levels))
    gap = np.where(values[1] == values[0], 1, values[1] - values[0])
    feasible = ends[0] + ((levels - values[0]) / gap)[:, None] * (ends[1] - ends[0])
    np.testing.assert_allclose(np.sum(weights * (points + moves), 1), levels, atol=1e-5)
    assert (np.abs(points + moves - 0.5) <= 0.5 + 1e-6).all() and (moves[weights == 0] == 0).all()
    assert (distance(moves, norm) <= distance(feasible - points, norm) + 1e-5).all()
    for level, corner in ((100.0, weights > 0), (-100.0, weights < 0)):
        moved = points + move(points, weights, np.full(500, level, np.float32))
        np.testing.assert_allclose(moved, np.where(weights == 0, points, corner), atol=1e-6)


@each_norm
def test_apgd_ends_at_the_optimum_of_a_linear_model(norm):
    logits_fn, weights, images, labels = linear(norm, 2)
    bounds, epsilon = (BOUNDS, 0.45) if norm == "linf" else (UNBOUNDED, 3.0)
    ascent = (weights[1 - labels] - weights[labels]).reshape(images.shape)
    direction = jax.vmap(functools.partial(steepest_direction, norm=norm))(jnp.asarray(ascent))
    best = jnp.clip(images + epsilon * direction, *bounds)
    assert (jnp.argmax(logits_fn(best), 1) != labels).all()
    run = functools.partial(
        attacks.apgd, logits_fn, threat=ThreatModel(norm, epsilon, bounds), num_steps=50,
        loss="margin", early_exit=False,
    )  # fmt: skip
    found = quick_jit(run)(jax.random.key(0), images, jnp.asarray(labels))
    np.testing.assert_allclose(found, best, atol=1e-6 if norm == "linf" else 1e-3)


CHECKPOINTS = {
    5: [1, 2, 3, 4, 5],
    10: [2, 3, 4, 5, 6, 7, 8, 9, 10],
    20: [4, 7, 9, *range(10, 21)],
    40: [8, 15, 21, 26, 30, 33, 35, 37, 39],
    50: [11, 21, 30, 38, 45],
    100: [22, 41, 57, 70, 80, 87, 93, 99],
}


@pytest.mark.parametrize("num_steps", CHECKPOINTS)
def test_apgd_checkpoints_are_the_published_ones(num_steps):
    periods, steps = checkpoints(num_steps), CHECKPOINTS[num_steps]
    np.testing.assert_array_equal(np.flatnonzero(periods), steps)
    np.testing.assert_array_equal(periods[steps], np.diff([0, *steps]))


def example_of(shape, epsilon=0.25):
    """An image, label 0 of two classes, and keys, as an attack sees them."""
    key, image = jax.random.key(0), jax.random.uniform(jax.random.key(1), shape)
    return Example(image, jnp.asarray(0), jnp.asarray([1]), jnp.asarray(epsilon), key, key)


def test_apgd_halves_its_step_size_wherever_the_loss_does_not_rise():
    example, attack = example_of((2, 3, 1)), make_apgd(norm="linf", bounds=BOUNDS, num_steps=20)
    state = attack.start(example, jnp.asarray(0))
    step = quick_jit(functools.partial(attack.step, lambda x, key: jnp.asarray([2.0, 1.0])))
    for count in range(21):
        state = step(example, jnp.asarray(0), jnp.asarray(count), state)
        halvings = sum(done <= count for done in CHECKPOINTS[20])
        assert state.step_size == 0.5 / 2**halvings
    assert not state.broken and halvings == 14


@pytest.mark.parametrize(
    "size, linf, l2",
    [
        (16, [14, 10, 7, 5, 4, 3, 2, 1], [15, 11, 7, 5, 5, 3, 3, 3]),
        (28, [25, 18, 13, 9, 6, 4, 3, 2], [25, 19, 13, 9, 7, 5, 3, 3]),
        (32, [29, 20, 14, 10, 7, 5, 4, 3], [29, 21, 15, 11, 7, 5, 5, 3]),
        (64, [57, 40, 29, 20, 14, 10, 7, 5], [57, 41, 29, 21, 15, 11, 7, 5]),
        (224, [200, 142, 100, 71, 50, 35, 25, 18], [201, 143, 101, 71, 51, 35, 25, 19]),
    ],
)
def test_square_windows_are_the_published_ones(size, linf, l2):
    for norm, sides in (("linf", linf), ("l2", l2)):
        ours, stage_of = stages((size, size, 3), 5000, 0.8, norm)
        assert list(ours[:8]) == sides
        first = [int(np.argmax(stage_of == stage)) for stage in range(8)]
        assert first == [0, 11, 51, 201, 501, 1001, 2001, 4001]
        assert max(stages((size, 7, 3), 5000, 0.8, norm)[0]) <= 7


def test_square_starts_with_stripes_along_the_height():
    image, key = jnp.full((9, 6, 2), 0.5), jax.random.key(0)
    stripes = np.asarray(square_start(key, image, 0.1, norm="linf") - image)
    np.testing.assert_array_equal(stripes, np.broadcast_to(stripes[:1], image.shape))
    np.testing.assert_allclose(np.unique(stripes), [-0.1, 0.1], atol=1e-6)


def test_square_stays_on_the_l2_sphere():
    """Where every query is accepted, since the network is wrong everywhere."""
    example = example_of((9, 6, 2))
    attack = make_square(norm="l2", bounds=UNBOUNDED, num_queries=60)
    wrong = quick_jit(functools.partial(attack.step, lambda x, key: jnp.asarray([1.0, 2.0])))
    state = attack.start(example, jnp.asarray(0))
    for count in range(61):
        before, key = state, jax.random.fold_in(example.key, count)
        state = wrong(example._replace(key=key), jnp.asarray(0), jnp.asarray(count), state)
        np.testing.assert_allclose(jnp.linalg.norm(state.best - example.image), 0.25, rtol=1e-4)
        assert count == 0 or (state.best != before.best).any()


def test_fgsm_is_one_step_of_pgd():
    weights, images, labels = draw("linf", 0)
    logits_fn, threat = functools.partial(network, weights), ThreatModel()
    one = functools.partial(attacks.pgd, num_steps=1, step_size=1.25 * threat.epsilon)
    found = [
        quick_jit(functools.partial(attack, logits_fn, threat=threat))(
            jax.random.key(0), images, labels
        )
        for attack in (attacks.fgsm, one)
    ]
    np.testing.assert_array_equal(*found)


@each_norm
def test_two_steps_of_mi_fgsm_by_hand(norm):
    weights, images, labels = draw(norm, 0, size=1.0)
    logits_fn, radius = functools.partial(network, weights), 0.2
    gradient = quick_jit(jax.grad(lambda x: losses.cross_entropy(logits_fn(x[None])[0], labels[0])))
    x, velocity = images[0], jnp.zeros_like(images[0])
    for _ in range(2):
        slope = gradient(x)
        velocity = 0.7 * velocity + slope / jnp.sum(jnp.abs(slope))
        step = jnp.sign(velocity) if norm == "linf" else velocity / jnp.linalg.norm(velocity)
        offset = x + radius / 2 * step - images[0]
        shrink = 1.0 if norm == "linf" else min(1.0, radius / float(jnp.linalg.norm(offset)))
        x = jnp.clip(images[0] + shrink * jnp.clip(offset, -radius, radius), 0, 1)
    run = functools.partial(
        attacks.mi_fgsm, logits_fn, threat=ThreatModel(norm, radius), num_steps=2, momentum=0.7
    )
    found = quick_jit(run)(jax.random.key(0), images[:1], labels[:1])
    np.testing.assert_allclose(found[0], x, atol=1e-6)


def test_any_iterate_is_the_first_misclassified_one_and_else_the_last():
    weights, images, labels = draw("linf", 0)
    iterates = []
    for num_steps, keep in ((0, "last"), (1, "last"), (2, "last"), (3, "last"), (3, "any")):
        run = functools.partial(
            attacks.pgd, functools.partial(network, weights), threat=ThreatModel("linf", 0.3),
            num_steps=num_steps, step_size=0.2, keep=f"{keep}_iterate",
        )  # fmt: skip
        iterates.append(quick_jit(run)(jax.random.key(0), images, labels))
    found, iterates = iterates.pop(), np.stack(iterates)
    is_wrong = np.stack([jnp.argmax(network(weights, x), 1) != labels for x in iterates])
    first = np.where(is_wrong.any(0), np.argmax(is_wrong, 0), 3)
    np.testing.assert_allclose(found, iterates[first, np.arange(B)], atol=1e-6)
    assert (is_wrong.any(0) > is_wrong[3]).any()


def test_ratio_losses_by_hand():
    logits, label, target = jnp.asarray([3.0, 7.0, 4.0, -1.0]), jnp.asarray(0), jnp.asarray(2)
    np.testing.assert_allclose(losses.dlr(logits, label), -(3 - 7) / (7 - 3), rtol=1e-6)
    np.testing.assert_allclose(losses.dlr(logits, jnp.asarray(1)), -(7 - 4) / (7 - 3), rtol=1e-6)
    expected = -(3 - 4) / (7 - (3 + -1) / 2)
    np.testing.assert_allclose(losses.targeted_dlr(logits, label, target), expected, rtol=1e-6)
    assert losses.targeted_margin(logits, label, target) == 1
    tied = jnp.asarray([2.0, 2.0, 2.0, 1.0])
    assert losses.dlr(tied, label) == 0 and jnp.isfinite(jax.grad(losses.dlr)(tied, label)).all()


@settings(max_examples=8)
@given(st.integers(0, 2**20), st.floats(0.01, 100), st.floats(-100, 100))
def test_ratio_losses_ignore_scale_and_shift_and_their_whole_gradient_is_right(seed, scale, shift):
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(seed).normal(size=6))
        for label in map(jnp.asarray, (0, int(jnp.argmax(logits)))):
            targeted = functools.partial(losses.targeted_dlr, label=label, target=(label + 1) % 6)
            for loss in (functools.partial(losses.dlr, target=label), targeted):
                np.testing.assert_allclose(loss(scale * logits + shift), loss(logits), rtol=1e-7)
                check_grads(loss, (logits,), order=1, modes=["rev"], eps=1e-7, rtol=1e-4)
                slope = jax.grad(loss)(logits)  # no component along what does not matter
                np.testing.assert_allclose([slope.sum(), slope @ logits], 0, atol=1e-6)


def test_with_few_classes_ratio_losses_are_margins():
    two, three = jnp.asarray([1.0, 3.0]), jnp.asarray([1.0, 3.0, 2.0])
    zero, one = jnp.asarray(0), jnp.asarray(1)
    assert losses.dlr(two, zero) == losses.margin(two, zero) == 2
    assert losses.targeted_dlr(two, one, zero) == -2
    assert losses.targeted_dlr(three, zero, one) == losses.targeted_margin(three, zero, one) == 2
    assert losses.dlr(three, one) == -0.5
