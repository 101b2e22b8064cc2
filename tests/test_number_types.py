"""Models and images of other number types than float32: no type is lost, no number is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from fairmix_jax import attacks, calibration, classwise
from fairmix_jax.attacks import ThreatModel
from fairmix_jax.methods import awp
from fairmix_jax.methods.averaging import ema, fawa
from fairmix_jax.types import ClassCounts, Weights

THREAT = ThreatModel("linf", 0.1)
ATTACKS = {
    "pgd": {"num_steps": 3, "step_size": 0.01},
    "apgd": {"num_steps": 3},
    "apgd_targeted": {"num_steps": 3},
    "fab": {"num_steps": 3},
    "fab_targeted": {"num_steps": 3},
    "square": {"num_queries": 20},
}


@pytest.fixture
def double():
    """JAX as users of 64 bits have it; strict promotion is for our own 32."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def linear(weights, images):
    return images.astype(weights.dtype).reshape(len(images), -1) @ weights


def draw(weights_type, images_type):
    """A linear model, images, and the labels that it gives them."""
    rng = np.random.default_rng(0)
    model = Partial(linear, jnp.asarray(rng.normal(size=(12, 3)), weights_type))
    images = rng.uniform(0.2, 0.8, (12, 2, 2, 3)).astype(images_type)
    return model, images, np.argmax(np.asarray(model(jnp.asarray(images))), axis=1)


TYPES = [(np.float64, np.float32), (np.float32, np.float64)]
CASES = [(name, *TYPES[0]) for name in ATTACKS] + [(name, *TYPES[1]) for name in ("apgd", "square")]


@pytest.mark.parametrize("name, weights_type, images_type", CASES)
def test_attacks_of_a_model_in_64_bits_return_images_of_their_type(
    name, weights_type, images_type, double
):
    model, images, labels = draw(weights_type, images_type)
    attack = getattr(attacks, name)
    found = attack(model, jax.random.key(0), images, labels, threat=THREAT, **ATTACKS[name])
    assert found.dtype == images_type
    assert np.abs(np.asarray(found, float) - images).max() <= THREAT.epsilon
    assert (np.argmax(model(found), axis=1) != labels).any()


@pytest.mark.parametrize("weights_type, images_type", TYPES)
def test_evaluation_and_calibration_of_a_model_in_64_bits_are_those_in_32(
    weights_type, images_type, double
):
    """The exact worst case of a linear model in L-inf, far from the bounds."""
    model, images, labels = draw(weights_type, images_type)
    weights = np.asarray(model.args[0], float)
    logits = images.reshape(12, -1) @ weights
    gaps = weights.T[labels][:, None] - weights.T[None]
    worst = logits[np.arange(12), labels][:, None] - logits - 0.1 * np.abs(gaps).sum(-1)
    is_own = np.arange(3) == labels[:, None]
    table = calibration.margin_table(model, images, labels, threat=THREAT, num_steps=5)
    np.testing.assert_allclose(table[~is_own], worst[~is_own], atol=1e-5)
    settings = classwise.Settings(attacks="clean,pgd5,apgd-t,fab-t", radii=(1.0,), masking=False)
    given = dict(class_names=["a", "b", "c"], threat=THREAT, settings=settings)
    found = classwise.evaluate(model, images, labels, **given)["attacks"]
    robust = (worst > 0)[~is_own].reshape(12, 2).all(axis=1)
    for name in ("pgd5", "apgd-t", "fab-t"):
        assert found[name]["class_correct"] == np.bincount(labels[robust], minlength=3).tolist()
    assert 0 < robust.sum() < 12
    fit = calibration.calibrate(model, images, labels, threat=THREAT, num_steps=3, num_splits=2)
    assert calibration.with_bias(model, fit)(jnp.asarray(images)).dtype == np.promote_types(
        weights_type, np.float32
    )


def test_apgd_follows_gradients_whose_squares_vanish():
    """Scaling the logits of a linear model changes no gradient's direction."""
    model, images, labels = draw(np.float32, np.float32)
    small = Partial(lambda inner, x: 1e-30 * inner(x), model)
    broken = []
    for logits_fn in (model, small):
        found = attacks.apgd(
            logits_fn, jax.random.key(0), images, labels, threat=ThreatModel("l2", 0.3),
            num_steps=5, loss="margin",
        )  # fmt: skip
        broken.append((np.asarray(found) != images).any(axis=(1, 2, 3)))
    np.testing.assert_array_equal(*broken)
    assert 0 < broken[0].sum() < 12


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_averages_of_half_precision_take_in_changes_below_its_rounding(kind):
    ones = Weights({"w": jnp.ones((2, 2), kind)}, {})
    average = ema.make(decay=0.999)
    found = average.init(Weights({"w": jnp.zeros((2, 2), kind)}, {}))
    for _ in range(400):
        found = jax.tree.map(lambda x: x, average.update(found, ones, jnp.asarray(100_000)))
    assert found.params["w"].dtype == jnp.float32
    np.testing.assert_allclose(found.params["w"], 1 - 0.999**400, rtol=1e-4)
    assert average.weights(found, ones).params["w"].dtype == kind
    fair, counts = (
        fawa.make(decay=0.999, threshold=0),
        ClassCounts(jnp.ones(2, int), jnp.ones(2, int)),
    )
    state = fair.init(ones)
    for value in (1.0, 1.5):
        weights = Weights({"w": jnp.full((2, 2), value, kind)}, {})
        state = fair.end_epoch(state, weights, counts)
    np.testing.assert_allclose(state["weights"].params["w"], 1.0005, rtol=1e-6)
    assert fair.weights(state, ones).params["w"].dtype == kind


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_weights_of_half_precision_are_perturbed_as_in_float32(size):
    rng = np.random.default_rng(0)
    weight, gradient = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float16) for _ in range(2))
    gradient = (size * gradient).astype(jnp.float16)
    found = awp.perturb({"w": weight}, {"w": gradient}, gamma=0.1)["w"]
    wide = [{"w": x.astype(jnp.float32)} for x in (weight, gradient)]
    expected = awp.perturb(*wide, gamma=0.1)["w"]
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found, expected.astype(jnp.float16))
