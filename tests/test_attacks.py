"""PGD against closed forms, its guarantees one by one, and batch invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairmix_jax.attacks import Randomized, ThreatModel, losses, pgd, projections, square

K = 3
SHAPE = (5, 4, 2)


@pytest.fixture(scope="module")
def linear():
    """`logits = W x`, as a function of images, and `W` as `[K, H, W, C]`."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(K, *SHAPE)), jnp.float32)
    return lambda x: jnp.einsum("bhwc,khwc->bk", x, weights), weights


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.random((8, *SHAPE)), jnp.float32), jnp.arange(8) % K


def distance(images, centers, norm):
    offset = np.asarray(images - centers, np.float64).reshape(len(images), -1)
    return np.abs(offset).max(1) if norm == "linf" else np.linalg.norm(offset, axis=1)


def two_class_direction(weights, labels):
    """Gradient of the margin of two classes: W_other - W_label."""
    return weights[1 - labels] - weights[labels]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_model_has_a_closed_form(norm, linear, examples):
    _, weights = linear
    images, labels = examples[0], examples[1] % 2
    threat = ThreatModel(norm, 0.3, (-10.0, 10.0))
    adversarial = pgd(
        lambda x: jnp.einsum("bhwc,khwc->bk", x, weights[:2]),
        jax.random.key(0),
        images,
        labels,
        threat=threat,
        num_steps=40,
        step_size=0.1,
        loss="margin",
    )
    direction = two_class_direction(weights, labels)
    if norm == "l2":
        direction /= jnp.linalg.norm(direction.reshape(8, -1), axis=1)[:, None, None, None]
    best = images + 0.3 * (jnp.sign(direction) if norm == "linf" else direction)
    np.testing.assert_allclose(adversarial, best, atol=2e-3 if norm == "l2" else 1e-6)


@given(
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(0, 2),
    step_size=st.floats(0, 1),
    num_steps=st.sampled_from([0, 2]),
    seed=st.integers(0, 99),
)
def test_result_is_in_the_ball_and_in_the_bounds(norm, epsilon, step_size, num_steps, seed):
    epsilon = epsilon / 2 if norm == "linf" else epsilon  # up to the whole range of the bounds
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.random((4, 3, 3, 1)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(9, K)), jnp.float32)
    adversarial = pgd(
        lambda x: jnp.tanh(x.reshape(len(x), -1) @ weights),
        jax.random.key(seed),
        images,
        jnp.zeros(4, jnp.int32),
        threat=ThreatModel(norm, epsilon),
        num_steps=num_steps,
        step_size=step_size,
    )
    assert (distance(adversarial, images, norm) <= epsilon * (1 + 1e-6) + 1e-6).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_zero_epsilon_or_scale_returns_the_images(norm, linear, examples):
    images, labels = examples
    for threat, scale in ((ThreatModel(norm, 0.0), 1.0), (ThreatModel(norm, 0.5), 0.0)):
        arguments = dict(threat=threat, num_steps=3, step_size=0.1, scale=scale)
        adversarial = pgd(linear[0], jax.random.key(0), images, labels, **arguments)
        np.testing.assert_array_equal(adversarial, images)


def test_scale_multiplies_radius_and_step_per_example(linear, examples):
    images, labels = examples
    scale = jnp.linspace(0.0, 2.0, 8)
    arguments = dict(num_steps=2, step_size=0.05)
    together = pgd(
        linear[0], jax.random.key(0), images, labels, threat=ThreatModel(epsilon=0.1), scale=scale,
        **arguments,
    )  # fmt: skip
    assert (distance(together, images, "linf") <= 0.1 * scale + 1e-6).all()
    assert distance(together, images, "linf")[-1] > 0.15


@pytest.mark.filterwarnings("ignore:logits_fn has no gradient")
def test_zero_gradient_stays_in_place(examples):
    images, labels = examples
    arguments = dict(threat=ThreatModel("l2", 0.5), step_size=0.1)
    constant = lambda x: jnp.zeros((len(x), K)) * jnp.sum(x)  # noqa: E731
    start, end = (
        pgd(constant, jax.random.key(0), images, labels, num_steps=n, **arguments) for n in (0, 3)
    )
    np.testing.assert_array_equal(start, end)
    assert np.isfinite(end).all()


def test_no_gradient_flows_through_the_result(linear, examples):
    images, labels = examples

    def total(images):
        arguments = dict(threat=ThreatModel(), num_steps=2, step_size=0.01)
        return jnp.sum(pgd(linear[0], jax.random.key(0), images, labels, **arguments))

    np.testing.assert_array_equal(jax.grad(total)(images), jnp.zeros_like(images))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_example_depends_on_its_index_and_not_on_the_batch(norm, linear, examples):
    images, labels = examples
    arguments = dict(threat=ThreatModel(norm, 0.2), num_steps=3, step_size=0.05, num_restarts=2)
    whole = pgd(linear[0], jax.random.key(3), images, labels, **arguments)
    order = jnp.asarray([6, 1, 3])
    part = pgd(linear[0], jax.random.key(3), images[order], labels[order], index=order, **arguments)
    np.testing.assert_allclose(part, whole[order], atol=1e-6)


@pytest.mark.parametrize("attack", [pgd, square])
def test_with_keys_of_another_kind_too_an_example_does_not_depend_on_the_batch(
    attack, linear, examples
):
    """Under `vmap` the draws of all `rbg` keys are made with the first one."""
    images, order = examples[0], jnp.asarray([6, 1, 3])
    labels = jnp.argmax(linear[0](images), axis=1)
    steps = dict(num_steps=1, step_size=0.0) if attack is pgd else dict(num_queries=3)

    def run(*batch, **options):
        key, threat = jax.random.key(3, impl="rbg"), ThreatModel("linf", 0.2)
        return attack(linear[0], key, *batch, threat=threat, **steps, **options)

    whole = run(images, labels)
    np.testing.assert_array_equal(run(images[order], labels[order], index=order), whole[order])
    assert (whole != images).any()


def test_a_model_that_takes_a_key_is_refused_in_one_line(examples):
    with pytest.raises(ValueError, match=r"Randomized, no function of images; give one .*'rand'"):
        pgd(
            Randomized(lambda images, key: images), jax.random.key(0), *examples,
            threat=ThreatModel(), num_steps=1, step_size=0.1,
        )  # fmt: skip


def test_vmapped_equals_a_python_loop(linear, examples):
    images, labels = examples
    arguments = dict(threat=ThreatModel("linf", 0.1), num_steps=4, step_size=0.03)
    result = pgd(linear[0], jax.random.key(0), images, labels, **arguments)
    for number in range(3):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), number)
        x = images[number] + projections.random_offset(key, SHAPE, norm="linf", epsilon=0.1)
        for step in range(5):
            x = jnp.clip(jnp.clip(x, images[number] - 0.1, images[number] + 0.1), 0, 1)
            if step < 4:
                loss = lambda x: losses.cross_entropy(linear[0](x[None])[0], labels[number])  # noqa: E731,B023
                x = x + 0.03 * jnp.sign(jax.grad(loss)(x))
        np.testing.assert_allclose(result[number], x, atol=1e-6)


def test_more_restarts_never_break_fewer():
    """A random start alone breaks each of these examples with probability 1/3."""
    images, labels = jnp.full((24, 3, 3, 1), 0.5), jnp.zeros(24, jnp.int32)

    def logits_fn(x):
        wave = jnp.sin(200 * x.sum((1, 2, 3)))
        return jnp.stack([jnp.full_like(wave, 0.5), wave], axis=1)

    arguments = dict(threat=ThreatModel("linf", 0.1), num_steps=0, step_size=0.0)
    broken = []
    for num_restarts in (1, 2, 5):
        x = pgd(
            logits_fn, jax.random.key(0), images, labels, num_restarts=num_restarts, **arguments
        )
        broken.append(np.asarray(jnp.argmax(logits_fn(x), 1) != labels))
    assert (broken[0] <= broken[1]).all() and (broken[1] <= broken[2]).all()
    assert 0 < broken[0].sum() < broken[2].sum()


def test_random_start_is_uniform_in_the_ball():
    """Radii of a uniform L2 ball follow U^(1/d); on the sphere's surface they would not."""
    keys = jax.random.split(jax.random.key(0), 4_000)
    points = jax.vmap(lambda k: projections.random_offset(k, (3,), norm="l2", epsilon=2.0))(keys)
    radii = np.linalg.norm(points, axis=1)
    assert abs(np.mean((radii / 2) ** 3) - 0.5) < 4 * (1 / 12 / 4_000) ** 0.5
    keys = jax.random.split(jax.random.key(1), 4_000)
    box = jax.vmap(lambda k: projections.random_offset(k, (3,), norm="linf", epsilon=2.0))(keys)
    assert abs(np.mean(np.abs(box)) - 1.0) < 4 * (1 / 3 / 12_000) ** 0.5


def test_losses_by_hand():
    logits = jnp.asarray([1.0, 3.0, 2.0])
    assert losses.margin(logits, jnp.asarray(2)) == 1.0  # 3 - 2
    assert losses.margin(logits, jnp.asarray(1)) == -1.0  # 2 - 3
    hard = losses.cross_entropy(logits, jnp.asarray(1))
    np.testing.assert_allclose(hard, losses.cross_entropy(logits, jnp.eye(3)[1]), rtol=1e-6)
    np.testing.assert_allclose(hard, np.log(1 + np.exp(-2.0) + np.exp(-1.0)), rtol=1e-6)
    np.testing.assert_allclose(losses.kl(logits, jax.nn.softmax(logits)), 0, atol=1e-6)
    np.testing.assert_allclose(losses.kl(logits, jnp.eye(3)[1]), hard, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(num_steps=-1), "num_steps=-1"),
        (dict(num_restarts=0), "num_restarts=0"),
        (dict(loss="hinge"), "'hinge' is unknown"),
        (dict(labels=jnp.zeros(3, jnp.int32)), "labels has shape"),
        (dict(images=jnp.zeros((8, 4, 4))), "images has shape"),
    ],
)
def test_bad_arguments_are_named(change, message, linear, examples):
    arguments = dict(images=examples[0], labels=examples[1], num_steps=1, step_size=0.1) | change
    images, labels = arguments.pop("images"), arguments.pop("labels")
    with pytest.raises(ValueError, match=message):
        pgd(linear[0], jax.random.key(0), images, labels, threat=ThreatModel(), **arguments)


@pytest.mark.parametrize(
    "arguments", [("l1",), ("linf", -0.1), ("linf", float("inf")), ("l2", 1.0, (1.0, 0.0))]
)
def test_bad_threats_are_refused(arguments):
    with pytest.raises(ValueError):
        ThreatModel(*arguments)
