"""The verdict on gradient masking: honest networks pass, masked ones are caught, and why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import digit_images, digit_network

from fairmix_jax.attacks import Randomized, ThreatModel, autoattack
from fairmix_jax.attacks.masking import examine

THREAT = ThreatModel("linf", 0.2)
pytestmark = pytest.mark.filterwarnings("ignore:logits_fn ")  # which say it of a few images


@pytest.fixture(scope="module")
def data():
    """Every second test image and its label."""
    images, labels = digit_images()
    return images[::2], labels[::2]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Three digit networks after adversarial training from different seeds."""
    return [digit_network(seed, tmp_path_factory.mktemp("run"))[0] for seed in range(3)]


def look(logits_fn, data, **options):
    images, labels = data
    masking = examine(
        logits_fn, images, labels, threat=THREAT, batch_size=128, num_steps=20,
        devices=jax.local_devices()[:1], **options,
    )  # fmt: skip
    return masking.verdict, {finding.name: finding for finding in masking.findings}


@pytest.mark.parametrize("seed", range(3))
def test_honest_adversarially_trained_networks_pass(seed, networks, data):
    report = None
    if seed == 0:
        report = autoattack(networks[seed], *data, threat=THREAT, version=("apgd-ce", "square"))
    verdict, findings = look(networks[seed], data, report=report)
    others = [f for f in findings.values() if f.verdict != "pass"]
    few = [f.name for f in others if f.verdict == "too few to tell"]  # one image of 250 or two
    assert verdict in ("pass", "too few to tell") and len(few) == len(others), others
    assert ("square_gain" in findings) == (seed == 0)


def quantised(network, images):
    """Input rounded to the 17 grey levels of the data, which changes no clean image."""
    return network(jnp.round(images * 255 * 16 / 255) / 16)


def scaled(network, images):
    return 1e4 * network(images)


def saturated(network, images):
    return jax.nn.softmax(1e3 * network(images))


def noisy(network, images, key):
    return network(images + 0.1 * jax.random.normal(key, images.shape))


@pytest.mark.parametrize(
    "masked, verdict, sign",
    [
        (quantised, "fail", "zero_gradient"),
        (scaled, "fail", "zero_gradient"),
        (saturated, "fail", "zero_gradient"),
        (saturated, "fail", "probabilities"),
        (noisy, "suspicious", "randomness"),
    ],
)
def test_masked_networks_are_caught(masked, verdict, sign, networks, data):
    model = functools.partial(masked, networks[0])
    if masked is noisy:
        model = Randomized(model)
    found, findings = look(model, data)
    assert findings[sign].verdict != "pass"
    assert found == verdict or found == "fail"
    assert findings[sign].reason


def test_square_that_beats_gradients_is_a_sign(networks, data):
    """The quantised network looks robust to gradients, and Square breaks it."""
    model = functools.partial(quantised, networks[0])
    report = autoattack(model, *data, threat=THREAT, version=("apgd-ce", "square"))
    _, findings = look(model, data, report=report)
    gain = findings["square_gain"]
    assert gain.verdict == "fail"
    assert gain.value == np.mean(report.broken_by == 2)
    totals = np.bincount(data[1])
    np.testing.assert_allclose(np.sum(gain.per_class * totals) / totals.sum(), gain.value)


def test_a_constant_model_has_no_gradient(data):
    images, labels = data[0], np.zeros_like(data[1])

    def constant(x):
        return jnp.broadcast_to(jnp.eye(10)[0], (len(x), 10)) + 0 * jnp.sum(x)

    verdict, findings = look(constant, (images, labels))
    assert verdict == "fail"
    assert findings["zero_gradient"].value == 1
    assert findings["large_radius_accuracy"].value == 1
