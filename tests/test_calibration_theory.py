"""Statements S17 to S19 of docs/theory/calibration.md: closed forms, simulation, the product."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from fairmix_jax import ThreatModel, calibration
from fairmix_jax.data import gaussian
from fairmix_jax.theory import class_risks, disparity, equal_error_bias, minimax_risk, optimal_bias
from fairmix_jax.theory.calibration import (
    bias_deviation,
    calibrated_bias,
    calibrated_risks,
    excess_bound,
    expected_excess,
)


def models(number=300):
    rng = np.random.default_rng(0)
    ratio, margin = rng.uniform(1.02, 4, number), rng.uniform(0.2, 3, number)
    fitted, tested = rng.uniform(0, 2, (2, number))
    return margin + fitted, ratio, fitted, tested


def test_s17_and_s18_are_s1_at_the_bias_of_equal_error():
    separation, ratio, fitted, tested = models()
    beta = equal_error_bias(separation - fitted, ratio)
    found = calibrated_risks(separation, ratio, calibration_budget=fitted, budget=tested)
    assert_allclose(found, class_risks(beta, separation, ratio, budget=tested), atol=1e-14)
    same = calibrated_risks(separation, ratio, calibration_budget=fitted, budget=fitted)
    assert_allclose(same, [minimax_risk(separation - fitted, ratio)] * 2, atol=1e-14)


def test_s18_the_disparity_changes_its_sign_at_the_budget_that_was_calibrated_at():
    separation, ratio, fitted, tested = models()
    plus, minus = calibrated_risks(separation, ratio, calibration_budget=fitted, budget=tested)
    assert (np.sign(plus - minus) == np.sign(fitted - tested)).all()


def test_s17_the_best_bias_at_any_weight_of_the_worst_class():
    rng = np.random.default_rng(2)
    for _ in range(60):
        ratio, margin, t = rng.uniform(1, 4), rng.uniform(0.2, 3), rng.uniform()
        found = calibrated_bias(margin, ratio, t=t)

        def value(beta, ratio=ratio, margin=margin, t=t):
            risks = np.stack(class_risks(beta, margin, ratio))
            return (1 - t) * risks.mean(axis=0) + t * risks.max(axis=0)

        grid = np.linspace(-12, 12, 20_001)
        assert value(found) <= value(grid).min() + 1e-12
        is_equal = np.isclose(found, equal_error_bias(margin, ratio), rtol=1e-12, atol=0)
        assert is_equal == (t >= (ratio - 1) / (ratio + 1))
    assert_allclose(calibrated_bias(1.5, 2.0, t=0), optimal_bias(1.5, 2.0), rtol=1e-14)
    assert_allclose(calibrated_bias(1.5, 2.0, t=1), equal_error_bias(1.5, 2.0), rtol=1e-14)


def fitted_bias(rng, number, margin, ratio):
    """The bias that the product chooses on so many attacked points of each class."""
    plus = margin + ratio * rng.standard_normal(number)
    minus = -margin + rng.standard_normal(number)
    table = np.full((2 * number, 2), np.inf)
    table[:number, 1], table[number:, 0] = plus, -minus
    offsets = calibration.class_bias(table, np.repeat([0, 1], number), t=1.0)
    return offsets[0] - offsets[1]


@pytest.mark.parametrize(("margin", "ratio"), [(1.5, 2.0), (0.8, 1.5)])
def test_s17_error_of_a_fitted_bias(margin, ratio):
    """Over 300 draws of 400 points; the limits are approached from about a tenth away."""
    rng, number, draws = np.random.default_rng(1), 400, 300
    beta = np.array([fitted_bias(rng, number, margin, ratio) for _ in range(draws)])
    least = minimax_risk(margin, ratio)
    deviation = bias_deviation(margin, ratio, number)
    assert abs(beta.mean() - equal_error_bias(margin, ratio)) < 5 * deviation / draws**0.5
    assert beta.std() == pytest.approx(deviation, rel=0.2)
    excess = np.max(class_risks(beta, margin, ratio), axis=0) - least
    assert (excess >= -1e-12).all()
    assert excess.mean() == pytest.approx(expected_excess(least, number), rel=0.2)
    assert np.mean(excess <= excess_bound(number, confidence=0.9)) >= 0.9


def test_the_errors_halve_with_four_times_the_images():
    for error in (
        lambda n: bias_deviation(1.5, 2.0, n),
        lambda n: expected_excess(0.2, n),
        lambda n: excess_bound(n),
    ):
        assert error(1_600) == pytest.approx(error(400) / 2, rel=1e-12)


@pytest.mark.parametrize("s", [1.0, 0.25])
def test_s19_the_calibrated_classifier_is_the_minimax_rule_however_it_was_mixed(s):
    """Through the product: trained biases, attacked points, a table, offsets."""
    m, ratio, dimension, number = 2.5, 2.0, 4, 4_000
    train, fitted = 1.0, 0.8
    data = gaussian.make(
        dimension=dimension, separation=m, ratio=ratio, examples_per_class=number, draw=3
    )
    trained = float(optimal_bias(m - train, ratio, s=s))
    direction = np.ones(dimension, np.float32) / dimension**0.5

    def logits_fn(images):
        score = images.reshape(len(images), -1) @ direction + np.float32(trained)
        return jnp.stack([jnp.zeros_like(score), score], -1)

    threat = ThreatModel("linf", fitted / dimension**0.5, data.bounds)
    table = calibration.margin_table(
        logits_fn, data.train.images, data.train.labels, threat=threat, num_steps=2,
        batch_size=8_000,
    )  # fmt: skip
    offsets = calibration.class_bias(table, data.train.labels, t=1.0)
    beta = trained + offsets[1] - offsets[0]
    deviation = bias_deviation(m - fitted, ratio, number)
    assert abs(beta - equal_error_bias(m - fitted, ratio)) < 4 * deviation
    assert abs(disparity(beta, m, ratio, budget=fitted)) < 0.03
    assert disparity(trained, m, ratio, budget=fitted) > 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrated_risks(1.0, 2.0, calibration_budget=1.5, budget=0), "margin="),
        (lambda: expected_excess(1.2, 10), "risk=1.2"),
        (lambda: excess_bound(0), "num_images=0"),
        (lambda: excess_bound(10, confidence=1.0), "confidence=1.0"),
    ],
)
def test_arguments_out_of_their_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
