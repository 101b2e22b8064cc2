"""Attacked images lie in the ball and in the bounds, with differences taken in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairmix_jax.attacks import ThreatModel, apgd, fab, fgsm, mi_fgsm, pgd, square
from fairmix_jax.attacks.projections import as_radius, project, steepest_direction

RADII = [1e-4, 1e-3, 0.01, 8 / 255, 0.1, 0.3, 0.5]


@functools.cache
def images():
    """250 images of 100 pixels, a few of them at the bounds or tiny."""
    found = np.random.default_rng(0).uniform(size=(250, 10, 10, 1)).astype(np.float32)
    found[0], found[1] = 0, 1
    found[2] *= 1e-6
    return found


def model(x):
    weights = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    return 5 * jnp.tanh(x.reshape(len(x), -1) @ weights)


def distances(found, norm):
    change = np.abs(np.float64(found) - images()).reshape(len(found), -1)
    return change.max(axis=1) if norm == "linf" else np.sqrt(np.sum(change**2, axis=1))


@pytest.mark.parametrize("epsilon", RADII)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ball_is_filled_and_not_left(norm, epsilon):
    """Where a pixel has room it moves by the radius but for its own rounding."""
    direction = np.random.default_rng(2).normal(size=images().shape).astype(np.float32)
    inside = functools.partial(
        project, norm=norm, epsilon=as_radius(epsilon), bounds=(-np.inf, np.inf)
    )
    found = np.asarray(jax.vmap(inside)(images() + direction, images()))
    size = distances(found, norm)
    assert size.max() <= epsilon
    if norm == "l2":
        assert (size >= (1 - 1e-5) * epsilon - 2.0**-22).all()
    else:
        change = np.abs(np.float64(found) - images())[np.abs(direction) > 2 * epsilon]
        room = np.spacing(np.abs(found))[np.abs(direction) > 2 * epsilon]
        assert (change >= (1 - 1e-5) * epsilon - room).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_traced_radius_around_constant_images_is_kept(norm):
    """XLA knows both images there and may compute with differences that were never rounded."""
    direction = np.random.default_rng(2).normal(size=images().shape).astype(np.float32)

    def projected(epsilon):
        inside = functools.partial(project, norm=norm, epsilon=epsilon, bounds=(0.0, 1.0))
        return jax.vmap(inside)(jnp.asarray(images() + direction), jnp.asarray(images()))

    radii = as_radius(np.asarray(RADII))
    found = [np.asarray(jax.jit(projected)(epsilon)) for epsilon in radii]
    assert all(distances(each, norm).max() <= e for each, e in zip(found, radii, strict=True))


@pytest.mark.parametrize("epsilon", [1e-4, 8 / 255, 0.5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_attack_leaves_the_ball_or_the_bounds(norm, epsilon):
    threat, labels = (
        ThreatModel(norm, epsilon),
        np.asarray(model(images())).argmax(1).astype(np.int32),
    )
    attacks = [
        functools.partial(pgd, num_steps=3, step_size=epsilon),
        fgsm,
        functools.partial(mi_fgsm, num_steps=3),
        functools.partial(apgd, num_steps=3, early_exit=False),
        functools.partial(square, num_queries=5),
        functools.partial(fab, num_steps=3),
    ]
    for attack in attacks:
        found = np.asarray(attack(model, jax.random.key(0), images(), labels, threat=threat))
        assert distances(found, norm).max() <= epsilon
        assert found.min() >= 0 and found.max() <= 1


def test_a_radius_is_rounded_down():
    for epsilon in RADII:
        assert 0 <= epsilon - np.float64(as_radius(epsilon)) <= np.spacing(np.float32(epsilon))
    assert as_radius(np.float32(0.1)) == np.float32(0.1)


def test_a_radius_or_a_step_however_large_does_not_bring_the_image_back():
    """Squares of what lies beyond 1e19 overflow, and would bring it to the center."""
    center = jnp.full((4, 4, 1), 0.5)
    for epsilon, step in ((1e20, 1e20), (0.5, 1e20), (1e20, 0.5)):
        found = project(center + step, center, norm="l2", epsilon=epsilon, bounds=(0, 1))
        moved = float(jnp.linalg.norm((found - center).ravel()))
        assert moved == pytest.approx(min(epsilon, 2.0), rel=1e-5)
    broken = pgd(
        model, jax.random.key(0), images(), np.argmax(model(images()), 1), num_steps=3,
        threat=ThreatModel("l2", 1e20), step_size=1e19,
    )  # fmt: skip
    assert (broken != images()).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("norm, length", [("l2", 5.0), ("l1", 7.0)])
def test_a_gradient_however_small_or_large_has_a_direction(norm, length):
    for size in (1e-36, 1e-25, 1e-17, 1.0, 1e17, 1e36):
        found = steepest_direction(jnp.float32(size) * jnp.array([3.0, 0.0, -4.0]), norm)
        np.testing.assert_allclose(found, np.array([3.0, 0.0, -4.0]) / length, rtol=1e-5)
    np.testing.assert_array_equal(steepest_direction(jnp.zeros(3), norm), np.zeros(3))


def test_lists_are_taken_for_arrays():

    def attacked(**options):
        return pgd(
            model, jax.random.key(0), images()[:2], jnp.array([0, 1]), num_steps=1,
            threat=ThreatModel("linf", 0.1), step_size=0.05, **options,
        )  # fmt: skip

    by_lists = attacked(index=[1, 0], targets=[0, 1])
    np.testing.assert_array_equal(by_lists, attacked(index=np.array([1, 0])))
