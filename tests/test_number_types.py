"""Models and images of other number types than float32: no type is lost, no number is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from fairmix_jax import attacks, calibration, classwise
from fairmix_jax.attacks import ThreatModel

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
