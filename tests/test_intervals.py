"""Intervals over test images: coverage, bias, and cases known exactly."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from fairmix_jax.classwise import intervals

TRUTHS = {
    "published": [0.524, 0.678, 0.311, 0.318, 0.339, 0.369, 0.376, 0.468, 0.592, 0.576],
    "one_apart": [0.55, 0.65, 0.35, 0.20, 0.30, 0.36, 0.50, 0.52, 0.60, 0.58],
    "all_equal": [0.5] * 10,
    "two_equal": [0.3, 0.3] + [0.6] * 8,
    "three_near": [0.30, 0.31, 0.32] + [0.6] * 7,
}
COUNTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6)


def levels(truth, total, repetitions, level_at, value):
    rng = np.random.default_rng(0)
    return np.array(
        [level_at(total, rng.binomial(total, truth), value) for _ in range(repetitions)]
    )


def coverage(levels):
    """An interval holds the truth exactly if the observed statistic's level there is central."""
    return np.mean((levels >= 0.025) & (levels <= 0.975))


@pytest.mark.parametrize("name", TRUTHS)
def test_worst_class_is_covered_as_often_as_claimed(name):
    """2,000 repetitions, whose standard error is half a point; 1,000 images a class."""
    truth = np.asarray(TRUTHS[name])
    found = levels(truth, [1000] * 10, 2000, intervals.worst_class_level, truth.min())
    assert 0.93 <= coverage(found) <= 0.98


@pytest.mark.parametrize("name", TRUTHS)
def test_gap_is_covered_as_often_as_claimed(name):
    truth = np.asarray(TRUTHS[name])
    found = levels(truth, [200] * 10, 1000, intervals.gap_level, np.ptp(truth))
    assert 0.93 <= coverage(found) <= 0.975


@pytest.mark.parametrize("name", ["published", "all_equal"])
def test_average_is_covered_as_often_as_claimed(name):
    truth, rng = np.asarray(TRUTHS[name]), np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, _, high = intervals.average([200] * 10, rng.binomial(200, truth))
        hits += low <= truth.mean() <= high
    assert 0.92 <= hits / 300 <= 0.98  # 2.5 standard errors of 300 repetitions


def test_interval_of_the_average_agrees_with_the_normal_approximation():
    interval = intervals.average([1000] * 10, [300] * 10)
    error = (0.3 * 0.7 / 10_000) ** 0.5
    np.testing.assert_allclose(interval, [0.3 - 1.96 * error, 0.3, 0.3 + 1.96 * error], atol=4e-4)


def test_interval_of_the_average_is_fixed_and_exact_where_no_image_differs():
    assert intervals.average([9, 9], [4, 7]) == intervals.average([9, 9], [4, 7])
    low, middle, high = intervals.average([100] * 3, [0] * 3)
    assert (low, middle) == (0, 0) and high == pytest.approx(1 - 0.025 ** (1 / 300))
    np.testing.assert_allclose(intervals.average([100] * 3, [100] * 3), [1 - high, 1, 1])


def test_classes_that_are_all_right_or_all_wrong_leave_room_in_the_average():
    """Alone each has the bound of Clopper and Pearson, `1 - TAIL^(1/n)`."""
    reach = (1 - 0.025 ** (1 / 9)) / 2
    found = intervals.average([9, 0, 9], [9, 0, 0])
    np.testing.assert_allclose(found, [0.5 - reach, 0.5, 0.5 + reach])
    mixed, alone = intervals.average([90, 9], [45, 9]), intervals.average([90], [45])
    assert mixed.high - mixed.estimate == pytest.approx((alone.high - 0.5) / 2, abs=0.006)
    assert mixed.estimate - mixed.low == pytest.approx(np.hypot(0.05, reach), abs=0.006)


@pytest.mark.parametrize("total", [[1000, 10], [3, 40, 5], [1, 1, 1], [5, 5, 80, 80]])
def test_no_accuracies_below_the_interval_are_likely_to_have_all_images_right(total):
    """Along every direction of error rates, and the best direction comes near the end."""
    low, number = intervals.average(total, total).low, len(total)
    directions = np.random.default_rng(0).dirichlet(np.full(number, 0.5), 2000)
    steps = np.linspace(0, 1, 401)[:, None, None]
    rates = steps * (directions / directions.max(axis=1, keepdims=True))[None]
    is_likely = np.prod((1 - rates) ** total, axis=-1) >= 0.025
    lowest = np.min(np.where(is_likely, 1 - rates.mean(axis=-1), 1))
    assert low - 1e-9 <= lowest <= low + 0.01


@pytest.mark.parametrize("truth, total", [([0.99] * 10, [30] * 10), ([0.9, 0.8], [1000, 3])])
def test_average_is_covered_where_classes_often_have_no_error(truth, total):
    rng = np.random.default_rng(0)
    found = [intervals.average(total, rng.binomial(total, truth)) for _ in range(300)]
    assert np.mean([low <= np.mean(truth) <= high for low, _, high in found]) >= 0.94


def test_counts_of_a_narrow_type_do_not_wrap_and_parts_of_images_are_refused():
    narrow = [np.array(counts, np.uint8) for counts in ([200, 200], [100, 50])]
    assert intervals.gap(*narrow) == intervals.gap([200, 200], [100, 50])
    with pytest.raises(ValueError, match="not class counts"):
        intervals.average([5, 5], [3.7, 2])


def test_unequal_classes_are_covered_too():
    truth, total = np.asarray(TRUTHS["published"]), np.arange(40, 140, 10)
    for level_at, value in (
        (intervals.worst_class_level, truth.min()),
        (intervals.gap_level, np.ptp(truth)),
    ):
        assert 0.93 <= coverage(levels(truth, total, 1000, level_at, value)) <= 0.98


def test_the_estimate_has_less_bias_than_the_count():
    """Ten classes that are all at .5: the smallest of ten counts lies far below."""
    rng = np.random.default_rng(0)
    raw, corrected = [], []
    for _ in range(100):
        correct = rng.binomial(400, [0.5] * 10)
        raw.append(correct.min() / 400 - 0.5)
        corrected.append(intervals.worst_class([400] * 10, correct).estimate - 0.5)
    assert np.mean(raw) < -0.03 and abs(np.mean(corrected)) < 0.5 * abs(np.mean(raw))


@pytest.mark.parametrize("correct", [0, 3, 10])
def test_one_class_is_the_mid_p_interval_of_a_proportion(correct):
    """Bounds solve P(X > x | p) + P(X = x | p) / 2 = 2.5 % and 97.5 %."""
    interval = intervals.worst_class([10], [correct])
    for bound, upper in ((interval.low, 0.025), (interval.high, 0.975)):
        if 1e-6 < bound < 1 - 1e-6:
            above = 1 - special.bdtr(correct, 10, bound)
            equal = special.binom(10, correct) * bound**correct * (1 - bound) ** (10 - correct)
            assert above + equal / 2 == pytest.approx(upper, abs=1e-5)
    assert intervals.gap([10], [correct]) == (0, 0, 0)


@pytest.mark.parametrize(
    "correct, value, truth",
    [
        ([1, 2], 0.5, (1 / 8, 5 / 8)),  # 1/4 and 1/2 moved apart around their middle 3/8
        ([0, 4], 0.5, (1 / 4, 3 / 4)),  # clipped to the middle of their range
        ([2, 2], 1.0, (0, 1)),
        ([0, 1], 0.5, (0, 1 / 2)),  # no lower than 0
    ],
)
def test_level_of_a_gap_by_enumeration(correct, value, truth):
    """Four throws of each of two coins: the sum over all 25 outcomes."""
    chance = [[special.binom(4, k) * p**k * (1 - p) ** (4 - k) for k in range(5)] for p in truth]
    observed = abs(correct[0] - correct[1])
    expected = sum(
        chance[0][i] * chance[1][j] * ((abs(i - j) < observed) + (abs(i - j) == observed) / 2)
        for i in range(5)
        for j in range(5)
    )
    assert intervals.gap_level([4, 4], correct, value) == pytest.approx(expected)


@given(pairs=COUNTS)
def test_bounds_are_in_order_in_range_and_do_not_depend_on_the_order_of_classes(pairs):
    total, correct = np.array([(n + c, c) for n, c in pairs]).T
    if not total.any():
        return
    for estimate in (intervals.worst_class, intervals.gap):
        interval = estimate(total, correct)
        assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
        np.testing.assert_allclose(estimate(total[::-1], correct[::-1]), interval, atol=1e-6)
    padded = intervals.worst_class(np.append(total, 0), np.append(correct, 0))
    assert padded == intervals.worst_class(total, correct)


@given(pairs=COUNTS, values=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_level_of_the_worst_class_falls_as_the_value_rises(pairs, values):
    total, correct = np.array([(n + c, c) for n, c in pairs]).T
    if not total.any():
        return
    low, high = (intervals.worst_class_level(total, correct, value) for value in sorted(values))
    assert low >= high - 1e-9


@pytest.mark.parametrize("name", TRUTHS)
def test_level_of_a_gap_falls_as_the_value_rises(name):
    correct = np.round(100 * np.asarray(TRUTHS[name])).astype(int)
    levels = [intervals.gap_level([100] * 10, correct, value) for value in np.linspace(0, 1, 41)]
    assert (np.diff(levels) <= 1e-9).all()


def test_intervals_by_class_are_those_of_each_class_alone():
    one, none, all_right = intervals.by_class([50, 0, 8], np.array([31, 0, 8]))
    assert one == intervals.worst_class([50], [31])
    assert one.low < 0.62 < one.high and abs(one.estimate - 0.62) < 0.005
    assert none == (0.0, 0.5, 1.0)
    assert all_right.high > 1 - 1e-6 and all_right.low < 0.8


def gap_level_by_enumeration(total, correct, value):
    """The same by its definition: over every accuracy that the smallest class may have."""
    accuracy = correct / total
    low, high = accuracy.min(), accuracy.max()
    spread = (high - low - value) / 2
    bottom = float(np.clip(low + spread, 0, 1 - value))
    truth = np.clip(accuracy, bottom, bottom + value)
    if spread < 0:
        highest = len(truth) - 1 - np.argmax(accuracy[::-1])
        truth[np.argmin(accuracy)], truth[highest] = bottom, bottom + value
    values = np.unique(np.concatenate([np.arange(n + 1) / n for n in np.unique(total)]))[:, None]

    def less(count):
        return np.where(count > 0, special.bdtr(np.clip(count - 1, 0, total), total, truth), 0.0)

    def within(width):
        upper = less(np.minimum(np.floor((values + width) * total + 1e-9) + 1, total + 1))
        starts = np.ceil(values * total - 1e-9), np.floor(values * total + 1e-9) + 1
        chance = [np.prod(np.maximum(upper - less(start), 0), axis=1) for start in starts]
        return np.sum(chance[0] - chance[1])

    return (within(high - low + 1e-7) + within(high - low - 1e-7)) / 2


@pytest.mark.parametrize(
    "smallest, largest, number", [(1, 5, 2), (3, 40, 5), (100, 100, 10), (50, 200, 12), (5, 60, 40)]
)
def test_level_of_a_gap_is_the_sum_over_every_smallest_accuracy(smallest, largest, number):
    rng = np.random.default_rng(number)
    total = rng.integers(smallest, largest + 1, number)
    for correct in (rng.binomial(total, rng.uniform(size=number)), 0 * total, total):
        for value in np.linspace(0, 1, 7):
            found = intervals.gap_level(total, correct, value)
            expected = gap_level_by_enumeration(total, correct, value)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_gap_of_many_classes_of_uneven_size_takes_little_memory():
    """The sum over 31,000 accuracies of 300 classes would take most of a gigabyte."""
    total = np.arange(20, 320)
    correct = np.random.default_rng(0).binomial(total, 0.6)
    tracemalloc.start()
    level = intervals.gap_level(total, correct, 0.2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < level < 1 and peak < 50e6
