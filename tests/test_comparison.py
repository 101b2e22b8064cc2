"""Intervals over seeds and images, paired differences and their tests, on simulated networks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from fairmix_jax.classwise import intervals, metrics, paired
from fairmix_jax.classwise.metrics import STATISTICS

NAMES = list(STATISTICS)


def networks(rng, means, *, runs, size, between=0.05, difficulty=1.0, shared=None):
    """Verdicts of runs whose class accuracies differ a little and whose images are shared."""
    if shared is None:
        shared = rng.normal(size=(len(means), size))
    level = means[:, None] + between * rng.normal(size=(len(means), runs))
    chance = special.ndtr(level[:, :, None] + difficulty * shared[:, None, :])
    return list(rng.random(chance.shape) < chance), shared


def difference(verdicts, baseline, statistic):
    return paired.contrast([verdicts, baseline], (1, -1), statistic)


def true_mean(means, statistic, *, between=0.05, difficulty=1.0):
    level = means + between * np.random.default_rng(0).normal(size=(100_000, len(means)))
    return statistic(special.ndtr(level / (1 + difficulty**2) ** 0.5)).mean()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["spread", "equal"])
def test_interval_over_seeds_covers_at_least_what_it_claims(name, kind):
    means = np.linspace(-1, 1, 5) if kind == "spread" else np.zeros(5)
    truth = true_mean(means, STATISTICS[name])
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(120):
        verdicts, _ = networks(rng, means, runs=3, size=200)
        correct = np.stack([v.sum(axis=1) for v in verdicts], axis=-1)
        low, _, high = metrics.over_seeds([200] * 5, correct, name)
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.95 - 2 * (0.05 * 0.95 / 120) ** 0.5


def test_resampling_three_runs_would_cover_far_less_than_it_claims():
    """Why the runs' part is Student's t: the percentile bootstrap of three normal numbers."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4_000, 3))
    means = values[:, rng.integers(0, 3, (999, 3))].mean(axis=-1)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.8


def test_one_run_keeps_the_interval_of_its_images():
    total, correct = [100, 100, 0], [60, 30, 0]
    for name, of_images in (("worst_class", intervals.worst_class), ("gap", intervals.gap)):
        assert metrics.over_seeds(total, [correct], name) == of_images(total, correct)


def test_equal_runs_leave_the_images_and_different_ones_add_students_t():
    total, correct = np.array([100, 100]), np.array([60, 30])
    own = intervals.average(total, correct)
    same = metrics.over_seeds(total, [correct] * 3, "average")
    assert same == pytest.approx(own)
    # averages 0.45 and 0.55: t(0.975, 1) = 12.7062 times 0.05
    far = metrics.over_seeds(total, [[60, 30], [70, 40]], "average")
    images = np.mean([own.estimate - own.low, 0.55 - intervals.average(total, [70, 40]).low])
    assert far.estimate == pytest.approx(0.5)
    assert far.low == max(0.5 - np.hypot(12.7062 * 0.05, images), 0.0) == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("runs", [3, 5])
def test_differences_of_equal_methods_keep_their_level(name, runs):
    """Rejections of a true null hypothesis at 5 %, and coverage of no difference: two-sided."""
    means, rng, number = np.linspace(-1, 1, 5), np.random.default_rng(1), 300
    rejected, covered = 0, 0
    for _ in range(number):
        a, shared = networks(rng, means, runs=runs, size=200, between=0.15)
        b, _ = networks(rng, means, runs=runs, size=200, between=0.15, shared=shared)
        found = difference(a, b, STATISTICS[name])
        rejected += found.p_value < 0.05
        covered += found.interval.low <= 0 <= found.interval.high
        assert (found.p_value < 0.05) == (not found.interval.low <= 0 <= found.interval.high)
    assert stats.binomtest(rejected, number, 0.05).pvalue > 0.001
    assert stats.binomtest(covered, number, 0.95).pvalue > 0.001


def test_a_real_difference_on_shared_images_is_found_and_pairing_helps():
    rng, means = np.random.default_rng(2), np.zeros(5)
    widths = []
    for _ in range(15):
        a, shared = networks(rng, means + 0.4, runs=5, size=200, difficulty=2.0)
        b, _ = networks(rng, means, runs=5, size=200, difficulty=2.0, shared=shared)
        apart, _ = networks(rng, means, runs=5, size=200, difficulty=2.0)
        found = [difference(a, other, metrics.average) for other in (b, apart)]
        assert found[0].p_value < 0.05 and found[0].interval.low > 0
        widths.append([d.interval.high - d.interval.low for d in found])
    assert np.mean(widths, axis=0)[0] < 0.8 * np.mean(widths, axis=0)[1]


def test_shared_part_is_that_of_the_images_where_runs_are_copies():
    """Then the difference's variance is that of one pair: 0.5 * 0.5 / n of the average."""
    rng = np.random.default_rng(3)
    one, other = (rng.random((1, 400)) < 0.5 for _ in range(2))
    found = difference([np.repeat(one, 3, 0)], [np.repeat(other, 3, 0)], metrics.gap)
    assert found.interval.high - found.interval.estimate == pytest.approx(
        intervals_of_nothing(400)
    )  # one class has no gap, whatever the images
    found = difference([np.repeat(one, 3, 0)], [np.repeat(other, 3, 0)], metrics.average)
    error = np.std(one.astype(float) - other) / 20
    assert found.interval.high - found.interval.estimate == pytest.approx(1.96 * error, rel=0.06)


def test_a_contrast_of_two_is_their_difference_and_of_four_a_difference_of_differences():
    rng, means = np.random.default_rng(5), np.linspace(-1, 1, 5)
    a, shared = networks(rng, means, runs=3, size=200)
    b, c, d = (networks(rng, means, runs=3, size=200, shared=shared)[0] for _ in range(3))
    for name, statistic in STATISTICS.items():
        assert paired.contrast([a, b], (1, -1), statistic) == paired.differences(a, b)[name]
    four = paired.contrast([a, b, c, d], (1, -1, -1, 1), metrics.average).interval
    one, other = (difference(*pair, metrics.average).interval for pair in ((a, b), (c, d)))
    assert four.estimate == pytest.approx(one.estimate - other.estimate)


def test_methods_that_vary_more_than_the_others_are_not_taken_for_alike():
    """Two of six with three times the noise: pooled alone, a test at 5 % rejects about 28 %."""
    rng, number, rejected = np.random.default_rng(8), 200, 0
    for _ in range(number):
        methods = [
            networks(rng, np.zeros(5), runs=3, size=400, between=noise)[0]
            for noise in (0.3, 0.3, 0.1, 0.1, 0.1, 0.1)
        ]
        noise = paired.pooled_noise(methods, metrics.average)
        found = paired.contrast(methods[:2], (1, -1), metrics.average, noise=noise)
        rejected += found.p_value < 0.05
    assert rejected / number < 0.15


@pytest.mark.parametrize("pooled", [False, True])
def test_contrasts_keep_their_level(pooled):
    """Those of pooled noise, the larger of two estimates, at least."""
    means, rng, number = np.linspace(-1, 1, 5), np.random.default_rng(6), 200
    rejected = 0
    for _ in range(number):
        first, shared = networks(rng, means, runs=3, size=100, between=0.15)
        methods = [first] + [
            networks(rng, means, runs=3, size=100, between=0.15, shared=shared)[0] for _ in range(5)
        ]
        noise = paired.pooled_noise(methods, metrics.gap) if pooled else None
        found = paired.contrast(methods[:4], (1, -1, -1, 1), metrics.gap, noise=noise)
        rejected += found.p_value < 0.05
    side = "greater" if pooled else "two-sided"
    assert stats.binomtest(rejected, number, 0.05, side).pvalue > 0.001


def test_pooled_noise_is_the_residual_of_methods_and_seeds():
    """Class accuracies of 0.5 + method + seed leave nothing; one run off by d leaves its share."""
    counts = 50 + np.array([[0], [10], [20]]) + np.array([[0, 5]])
    methods = [[np.arange(100)[None] < row[:, None]] for row in counts]
    nothing = paired.pooled_noise(methods, metrics.average)
    assert nothing.variance == pytest.approx(0, abs=1e-20) and nothing.freedom == 2
    counts[2, 1] += 6
    methods = [[np.arange(100)[None] < row[:, None]] for row in counts]
    found = paired.pooled_noise(methods, metrics.average)
    # the residuals of a single entry d are d times (1 - 1/3)(1 - 1/2) in sum of squares
    assert found.variance == pytest.approx(0.06**2 * (2 / 3) * (1 / 2) / 2)
    with pytest.raises(ValueError, match="1 methods of 2 runs; give two or more"):
        paired.pooled_noise(methods[:1], metrics.average)


def test_contrasts_that_mean_nothing_are_refused():
    a = [np.ones((1, 4), bool)]
    with pytest.raises(ValueError, match="must be one a method and sum to zero"):
        paired.contrast([a, a], (1, 1), metrics.average)
    with pytest.raises(ValueError, match="more than two methods needs several runs"):
        paired.contrast([a, a, a, a], (1, -1, -1, 1), metrics.average)


def intervals_of_nothing(size):
    return 1 - 0.05 ** (1 / size)


def test_permutation_test_is_exact_against_the_binomial():
    """With one class and the average it is McNemar's test of the differing images."""
    a, b = np.zeros((1, 50), bool), np.zeros((1, 50), bool)
    a[0, :20], b[0, 12:20], b[0, 20:25] = True, True, True
    exact = stats.binomtest(12, 17).pvalue
    assert paired.permutation_test([a], [b], metrics.average) == pytest.approx(exact, abs=0.012)


@pytest.mark.parametrize("name", NAMES)
def test_permutation_test_keeps_its_level(name):
    rng, number = np.random.default_rng(4), 1_000
    chance = np.linspace(0.3, 0.7, 5)[:, None, None]
    rejected = 0
    for _ in range(number):
        image = rng.normal(size=(5, 1, 100))
        right = rng.random((5, 2, 100)) < special.ndtr(special.ndtri(chance) + image)
        a, b = list(right[:, :1]), list(right[:, 1:])
        rejected += paired.permutation_test(a, b, STATISTICS[name]) < 0.05
    # It may reject less often where many permutations tie, but not more often.
    assert 0.02 < rejected / number < 0.05 + 3 * (0.05 * 0.95 / number) ** 0.5


def test_one_run_each_compares_two_networks():
    a, b = np.zeros((1, 50), bool), np.zeros((1, 50), bool)
    a[0, :20], b[0, 12:25] = True, True
    found = difference([a], [b], metrics.average)
    assert found.p_value == paired.permutation_test([a], [b], metrics.average)
    assert found.interval.estimate == pytest.approx(7 / 50)


def test_unequal_runs_or_images_are_refused():
    a, b = [np.ones((2, 10), bool)], [np.ones((3, 10), bool)]
    with pytest.raises(ValueError, match="differ in runs or images"):
        difference(a, b, metrics.average)
    absent = [np.ones((1, 10), bool), np.ones((1, 0), bool)]
    with pytest.raises(ValueError, match="differ in runs or images"):
        difference(absent, absent[::-1], metrics.average)
    with pytest.raises(ValueError, match="one run of each"):
        paired.permutation_test(a, a, metrics.average)


def test_nothing_varies():
    zeros = [np.zeros((3, 100), bool)] * 2
    found = difference(zeros, zeros, metrics.worst_class)
    assert found.p_value == 1 and found.interval.high == pytest.approx(0.0295, abs=1e-4)


def test_counts_that_coincide_prove_nothing():
    """Two seeds with the very same difference: their images' noise stays, and so does doubt."""
    rng = np.random.default_rng(5)
    a = [np.stack([rng.permutation(np.arange(50) < 31) for _ in range(2)]) for _ in range(3)]
    b = [np.stack([rng.permutation(np.arange(50) < 29) for _ in range(2)]) for _ in range(3)]
    found = difference(a, b, metrics.average)
    assert found.interval.estimate == pytest.approx(0.04)
    assert found.p_value > 0.2 and found.interval.low < 0 < found.interval.high


def test_perfect_methods_are_not_told_apart():
    ones = [np.ones((3, 100), bool)] * 2
    for name, found in paired.differences(ones, ones).items():
        reach = 1 - 0.05 ** (1 / (200 if name == "average" else 100))
        assert found.p_value == 1 and found.interval.high == pytest.approx(reach)


def test_where_no_image_differs_the_average_has_those_of_all_classes():
    """No difference among 100 images, ten of each class: 3 in 100, and not 3 in 10."""
    rng = np.random.default_rng(0)
    same = [rng.random((1, 10)) < 0.5 for _ in range(10)]
    found = difference(same, same, metrics.average)
    assert found.interval == pytest.approx((0.05 ** (1 / 100) - 1, 0, 1 - 0.05 ** (1 / 100)))
    one = difference([np.ones((1, 10), bool)], [np.zeros((1, 10), bool)], metrics.average)
    assert one.interval == pytest.approx((0.05 ** (1 / 10), 1, 1)) and one.p_value < 1e-6


def test_where_no_image_differs_the_smallest_class_bounds_the_average():
    """Of 2 and 1,000 images all doubt is about the class of 2: its bound, shared by two classes."""
    same = [np.ones((1, 2), bool), np.ones((1, 1000), bool)]
    high = difference(same, same, metrics.average).interval.high
    assert high == pytest.approx((1 - 0.05 ** (1 / 2)) / 2, rel=0.01)


def test_classes_over_seeds_are_jeffreys_intervals_and_students_t():
    low, mean, high = metrics.classes_over_seeds([20, 20, 0], [10, 0, 0])
    exact = stats.beta(10.5, 10.5).ppf([0.025, 0.975])
    assert (low[0], mean[0], high[0]) == pytest.approx((exact[0], 0.5, exact[1]))
    assert (low[1], mean[1]) == (0, 0) and 0.1 < high[1] < 0.2  # 3 / n and a little less
    assert np.isnan([low[2], mean[2], high[2]]).all()
    wide = metrics.classes_over_seeds([2000], [[900], [1100]])
    assert wide[2, 0] == 1.0 and wide[1, 0] == 0.5  # t(0.975, 1) times 0.05 alone is 0.64


def test_all_statistics_at_once_are_the_single_ones():
    rng = np.random.default_rng(6)
    a, b = ([rng.random((3, 40)) < 0.6 for _ in range(4)] for _ in range(2))
    found = paired.differences(a, b)
    assert found == {n: difference(a, b, s) for n, s in STATISTICS.items()}


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1 = 0.03, 0.04, 0.04
    assert paired.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert paired.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_value_and_bonferroni(values):
    adjusted = paired.holm(values)
    for value, new in zip(values, adjusted, strict=True):
        assert value <= new <= min(1.0, value * len(values)) + 1e-12
