"""Metrics by hand, and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairmix_jax.classwise import metrics


def test_summary_by_hand():
    # accuracies 0.5, 1.0, 0.75: mean 0.75, deviations -0.25, 0.25, 0: std sqrt(0.125 / 3)
    summary = metrics.summarize([4, 2, 8], [2, 2, 6])
    assert summary["average"] == 0.75 and summary["worst_class"] == 0.5
    assert summary["worst_class_index"] == 0 and summary["gap"] == 0.5
    assert summary["std"] == pytest.approx((0.125 / 3) ** 0.5)


def test_published_vector():
    """Class accuracies of a FAAL log; moments in the reference notes, derived from it."""
    accuracy = np.array([524, 678, 311, 318, 339, 369, 376, 468, 592, 576])
    summary = metrics.summarize([1000] * 10, accuracy)
    assert summary["average"] == pytest.approx(0.4551)
    assert summary["gap"] == pytest.approx(0.367)
    assert summary["std"] == pytest.approx(0.1243651479)
    assert summary["nsd"] == pytest.approx(0.2282348098)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_order_of_the_statistics(pairs):
    total, correct = np.array([(n + c, c) for n, c in pairs]).T
    if not total.any():
        with pytest.raises(ValueError, match="class counts"):
            metrics.summarize(total, correct)
        return
    summary = metrics.summarize(total, correct)
    assert summary["worst_class"] <= summary["average"] <= summary["worst_class"] + summary["gap"]
    assert total[summary["worst_class_index"]] > 0


def test_absent_classes_do_not_count():
    with_absent, without = (
        metrics.summarize([5, 0, 5], [5, 0, 4]),
        metrics.summarize([5, 5], [5, 4]),
    )
    assert {k: v for k, v in with_absent.items() if k != "worst_class_index"} == {
        k: v for k, v in without.items() if k != "worst_class_index"
    }


def test_worst_k_is_the_mean_of_a_tenth_of_the_classes_and_of_two_at_least():
    accuracy = np.arange(100) / 100
    summary = metrics.summarize([100] * 100, np.arange(100))
    assert summary["worst_k"] == pytest.approx(accuracy[:10].mean())
    assert metrics.summarize([10] * 4, [1, 2, 3, 4])["worst_k"] == pytest.approx(0.15)
    assert metrics.summarize([10, 0], [3, 0])["worst_k"] == 0.3


def test_normalised_deviation_by_hand():
    # errors 0.5, 0, 0.25: mean 0.25, deviation sqrt(0.125 / 3); without errors zero
    assert metrics.summarize([4, 2, 8], [2, 2, 6])["nsd"] == pytest.approx(4 * (0.125 / 3) ** 0.5)
    assert metrics.summarize([4, 2], [4, 2])["nsd"] == 0


def test_boundary_error_adds_to_the_natural_risk():
    clean, robust = np.array([0.9, 0.7]), np.array([0.5, 0.6])
    np.testing.assert_allclose(1 - robust, 1 - clean + metrics.boundary_error(clean, robust))


def test_rho_of_published_numbers():
    """AutoAttack's average and worst class in Table 1 of CFA (Wei et al. 2023), against AT."""
    base = (0.467, 0.201)
    assert metrics.rho(*base, base=base) == 0
    assert metrics.rho(0.496, 0.213, base=base) == pytest.approx(0.12, abs=0.005)  # AT+EMA
    assert metrics.rho(0.501, 0.244, base=base) == pytest.approx(0.29, abs=0.005)  # AT+CFA
    assert np.isnan(metrics.rho(0.5, 0.2, base=(0.5, 0.0)))


def test_t_interval_by_hand():
    # mean 2, standard error 1/sqrt(3); t(0.975, 2 degrees) = 4.302653
    mean, half = metrics.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert metrics.mean_interval([0.5]) == (0.5, float("inf"))


def test_result_has_the_fields_of_the_contract():
    result = metrics.result([10, 10], [9, 4], ["cat", "car"], seconds=1.23456)
    assert set(result) == {
        "class_total", "class_correct", "average", "overall", "worst_class", "worst_class_name",
        "gap", "std", "worst_k", "nsd", "corrected", "ci95", "seconds",
    }  # fmt: skip
    assert result["worst_class_name"] == "car" and result["seconds"] == 1.235
    assert set(result["ci95"]) == {"average", "worst_class", "gap"}
    low, high = result["ci95"]["worst_class"]
    assert low < result["corrected"]["worst_class"] < high
