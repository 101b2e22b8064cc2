"""Every statement of docs/theory/statements.md, S1 to S15: closed form, search, Monte Carlo."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mixture_theory import dirichlet_factors, mixture_bias
from numpy.polynomial import Polynomial
from numpy.testing import assert_allclose
from scipy import optimize

from fairmix_jax import mixup
from fairmix_jax.theory import (
    bias_sensitivity,
    class_risks,
    disparity,
    disparity_rate,
    equal_error_bias,
    equalising_strength,
    factor_of_bias,
    flip_factor,
    minimax_risk,
    optimal_bias,
    trained_risks,
    training_risk,
)
from fairmix_jax.theory.surrogates import (
    expected_factor,
    factor_with_replacement,
    logistic_bias,
    optimal_direction,
    project,
    squared_loss_bias,
)

ratios, margins, factors = st.floats(1.02, 4), st.floats(0.2, 4), st.floats(0.02, 1)
priors = st.floats(0.1, 0.9)
GRID = 1 / np.arange(1, 201)[::-1]  # factors from 1/200 to 1

# Worked out once with 10 digits, apart from this code. Two lines a model:
#   row train K m e s mu beta | natural risk of +, of -
#   natural disparity | adversarial risk of +, of -, disparity | natural, adversarial average
REFERENCE = """
1 adv 2.0 2.5 1.0 1.0 1.5 0.08165501189 0.09838174882 0.007795643495
   0.09058610533 0.2145223283 0.07804503409 0.1364772942 0.05308869616 0.1462836812
2 adv 2.0 2.5 1.0 0.6666666666666666 1.5 0.212586252 0.08750296087 0.0110858423
   0.07641711857 0.1959178313 0.0989750575 0.09694277376 0.04929440158 0.1474464444
3 adv 2.0 2.5 1.0 0.5 1.5 0.2809469946 0.08219257086 0.01324155933
   0.06895101153 0.1866058465 0.1114120375 0.075193809 0.0477170651 0.149008942
4 adv 2.0 2.5 1.0 0.3333333333333333 1.5 0.3514817136 0.0769715792 0.01583630265
   0.06113527655 0.1772903348 0.1253773342 0.05191300062 0.04640394092 0.1513338345
5 adv 2.0 2.5 1.0 0.25 1.5 0.3876321058 0.0743953626 0.01732745328
   0.05706790932 0.1726318279 0.1329900015 0.03964182646 0.04586140794 0.1528109147
6 adv 2.0 2.5 1.0 0.125 1.5 0.4430486004 0.07057469038 0.01984545052
   0.05072923986 0.1656436292 0.1452668843 0.02037674488 0.04521007045 0.1554552567
7 adv 2.0 2.5 1.0 0.0 1.5 0.5 0.06680720127 0.02275013195
   0.04405706932 0.1586552539 0.1586552539 0 0.04477866661 0.1586552539
8 nat 2.0 2.5 1.0 1.0 2.5 0.5667356128 0.06259262815 0.02660181827
   0.03599080988 0.1507159032 0.1753417389 -0.02462583571 0.04459722321 0.163028821
9 nat 2.0 2.5 1.0 0.5 2.5 0.6974726173 0.05493960316 0.03573123525
   0.01920836791 0.1359415502 0.2111239776 -0.07518242743 0.04533541921 0.1735327639
10 nat 2.0 2.5 1.0 0.25 2.5 0.7647246872 0.05130158848 0.04134602614
   0.009955562334 0.1287410648 0.23108592 -0.1023448553 0.04632380731 0.1799134924
11 nat 2.0 2.5 1.0 0.0 2.5 0.8333333333 0.04779035227 0.04779035227
   0 0.1216725046 0.2524925375 -0.130820033 0.04779035227 0.1870825211
12 adv 1.5 2.0 0.5 1.0 1.5 0.1026753643 0.08048994217 0.02889255274
   0.05159738943 0.1426587318 0.08115798538 0.06150074643 0.05469124745 0.1119083586
13 adv 1.5 2.0 0.5 0.5 1.5 0.2000220008 0.07123138149 0.03593205611
   0.03529932537 0.1285340708 0.09680425488 0.03172981595 0.0535817188 0.1126691629
14 adv 1.5 2.0 0.5 0.25 1.5 0.2496687003 0.0668358121 0.0400305815
   0.0268052306 0.1217171251 0.1055892746 0.01612785044 0.0534331968 0.1136531998
15 adv 1.5 2.0 0.5 0.0 1.5 0.3 0.06259687279 0.04456546276
   0.01803141003 0.1150696702 0.1150696702 0 0.05358116777 0.1150696702
16 nat 1.5 2.0 0.5 1.0 2 0.2502854235 0.06678255988 0.04008378859
   0.02669877129 0.1216340721 0.1057019153 0.01593215676 0.05343317423 0.1136679937
17 nat 1.5 2.0 0.5 0.6666666666666666 2 0.2996820247 0.0626229791 0.04453556555
   0.01808741355 0.1151108397 0.1150079356 0.0001029040847 0.05357927233 0.1150593877
18 nat 1.5 2.0 0.5 0.5 2 0.3245679992 0.06060532837 0.04692475117
   0.01368057721 0.1119203535 0.1199109635 -0.007990610016 0.05376503977 0.1159156585
19 nat 1.5 2.0 0.5 0.25 2 0.3621369803 0.0576561587 0.05072513587
   0.00693102283 0.1072244582 0.1275888425 -0.02036438434 0.05419064729 0.1174066504
20 nat 1.5 2.0 0.5 0.0 2 0.4 0.0547992917 0.0547992917
   0 0.1026372518 0.1356660609 -0.03302880911 0.0547992917 0.1191516564
21 adv 3.0 3.0 1.0 1.0 2 0.3270118156 0.1337142415 0.003758944918
   0.1299552965 0.2189717501 0.04716481105 0.171806939 0.06873659319 0.1330682806
22 adv 3.0 3.0 1.0 0.5 2 0.6329330958 0.112951976 0.008964845639
   0.1039871303 0.1900683726 0.08580216789 0.1042662047 0.06095841081 0.1379352702
23 adv 3.0 3.0 1.0 0.25 2 0.8064919804 0.1022507337 0.01413539871
   0.08811533495 0.1747660302 0.1163352366 0.05843079353 0.05819306619 0.1455506334
24 adv 3.0 3.0 1.0 0.0 2 1 0.09121121973 0.02275013195
   0.06846108778 0.1586552539 0.1586552539 0 0.05698067584 0.1586552539
25 nat 3.0 3.0 1.0 1.0 3 1.005117917 0.09093174119 0.02302787105
   0.06790387014 0.1582428107 0.159896809 -0.001653998306 0.05697980612 0.1590698098
26 nat 3.0 3.0 1.0 0.5 3 1.240330933 0.07876266026 0.03923196677
   0.03953069349 0.1400465304 0.2237262117 -0.08367968128 0.05899731352 0.181886371
27 adv 1.1 1.25 0.25 1.0 1 -0.004671052758 0.1287925771 0.1047990991
   0.02399347795 0.1827738871 0.1575276356 0.02524625148 0.1167958381 0.1701507614
28 adv 1.1 1.25 0.25 0.25 1 0.03452208458 0.1214543456 0.1120919334
   0.009362412208 0.1734870805 0.1671527462 0.006334334324 0.1167731395 0.1703199133
29 adv 4.0 1.5 1.0 1.0 0.5 -1.173603163 0.4674827151 0.003752059576
   0.4637306555 0.566866007 0.0471043082 0.5197616988 0.2356173873 0.3069851576
30 adv 4.0 1.5 1.0 0.5 0.5 -0.6782530481 0.4186154598 0.01469360131
   0.4039218585 0.5177722869 0.1193478699 0.398424417 0.2166545306 0.3185600784
31 nat 2.0 2.5 0.1 1.0 2.5 0.5667356128 0.06259262815 0.02660181827
   0.03599080988 0.068988358 0.03338163138 0.03560672662 0.04459722321 0.05118499469
32 nat 2.0 2.5 0.1 0.125 2.5 0.7988542949 0.04953007845 0.04445781514
   0.005072263305 0.05486286211 0.05467232557 0.0001905365352 0.0469939468 0.05476759384
"""
COLUMNS = "row train K m e s mu beta nat+ nat- D_nat adv+ adv- D_adv avg_nat avg_adv".split()
ROWS = [
    dict(zip(COLUMNS, values, strict=True))
    for values in np.array(REFERENCE.split()).reshape(32, len(COLUMNS))
]


def phi(x):
    """The normal distribution function, from another library than the code under test."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def random_models(count, seed):
    """`count` models `(K, m, e)` as columns, with the margin `m - e` from .2 to 4."""
    rng = np.random.default_rng(seed)
    ratio, margin = rng.uniform(1.02, 4, (count, 1)), rng.uniform(0.2, 4, (count, 1))
    budget = rng.uniform(0, 2, (count, 1))
    return ratio, margin + budget, budget


@pytest.mark.parametrize("row", ROWS, ids=[row["row"] for row in ROWS])
def test_reference_values(row):
    value = {name: float(row[name]) for name in COLUMNS if name != "train"}
    ratio, separation, budget, s = (value[name] for name in ("K", "m", "e", "s"))
    training = budget if row["train"] == "adv" else 0.0
    natural = trained_risks(separation, ratio, training_budget=training, s=s)
    attacked = trained_risks(separation, ratio, training_budget=training, budget=budget, s=s)
    beta = optimal_bias(separation - training, ratio, s=s)
    computed = {"mu": separation - training, "beta": beta}
    computed |= {"nat+": natural[0], "nat-": natural[1], "avg_nat": np.mean(natural)}
    computed |= {"adv+": attacked[0], "adv-": attacked[1], "avg_adv": np.mean(attacked)}
    computed |= {"D_nat": disparity(beta, separation, ratio)}
    computed |= {"D_adv": disparity(beta, separation, ratio, budget=budget)}
    assert set(computed) | {"row", "train", "K", "m", "e", "s"} == set(COLUMNS)
    for name, number in computed.items():  # half a unit of the tenth digit; zeros to rounding
        assert_allclose(number, value[name], rtol=5.1e-10, atol=1e-15, err_msg=name)


def least_risk(margin, ratio, s, s_minus, prior):
    """Least training risk over all biases, constant rules included, by search."""

    def risk(beta):
        plus = phi(-(margin + beta) / (ratio * math.sqrt(s)))
        return prior * plus + (1 - prior) * phi(-(margin - beta) / math.sqrt(s_minus))

    reach = margin + 8 * max(ratio * math.sqrt(s), math.sqrt(s_minus))
    grid = np.linspace(-reach, reach, 401)
    best = int(np.argmin([risk(beta) for beta in grid]))
    around = grid[[max(best - 1, 0), min(best + 1, 400)]]
    found = optimize.minimize_scalar(risk, bounds=around, method="bounded", options={"xatol": 1e-9})
    return min(found.fun, prior, 1 - prior)


@pytest.mark.parametrize("general", [False, True], ids=["plain", "priors and strengths"])
def test_s2_s12_closed_form_is_the_global_minimum_on_1000_random_problems(general):
    count, rng = 500, np.random.default_rng(int(general))
    margin, ratio = rng.uniform(0.2, 4, count), rng.uniform(0.25 if general else 1.02, 4, count)
    s = rng.uniform(0.05, 1, count)
    s_minus = rng.uniform(0.05, 1, count) if general else s
    prior = rng.uniform(0.1, 0.9, count) if general else np.full(count, 0.5)
    beta = optimal_bias(margin, ratio, s=s, s_minus=s_minus, prior=prior)
    risk = training_risk(beta, margin, ratio, s=s, s_minus=s_minus, prior=prior)
    brute = [least_risk(*problem) for problem in zip(margin, ratio, s, s_minus, prior, strict=True)]
    assert np.abs(risk - brute).max() < 1e-10
    assert np.isfinite(beta).all() != general  # priors make the constant rule optimal at times


@given(ratio=ratios, margin=margins, s=factors)
def test_s2_both_forms_agree_and_the_sign_changes_where_stated(ratio, margin, s):
    beta = optimal_bias(margin, ratio, s=s)
    log, square = math.log(ratio), ratio**2 - 1
    root = ratio * math.sqrt(4 * margin**2 + 2 * s * square * log)
    assert_allclose(beta, ((ratio**2 + 1) * margin - root) / square, atol=1e-11)
    assert (beta > 0) == (s < square * margin**2 / (2 * ratio**2 * log))


def test_s1_risks_at_the_ends_and_where_they_are_equal():
    assert class_risks(np.inf, 2.5, 2.0) == (0, 1)
    assert class_risks(-np.inf, 2.5, 2.0, budget=9.0) == (1, 0)
    plus, minus = class_risks(0.3, 2.0, 1.5, budget=0.5)
    assert_allclose([plus, minus], [phi(-1.8 / 1.5), phi(-1.2)], rtol=1e-14)


@pytest.mark.parametrize("s", [1.0, 0.5, 0.1])
def test_s3_reduces_to_xu_et_al_at_s_1_and_mixing_only_scales_q(s):
    ratio, m, e = random_models(500, seed=3)
    a, b = (2 / (ratio**2 - 1) * x for x in (m, m - e))
    q = s * 2 * np.log(ratio) / (ratio**2 - 1)

    def risks(x, shift):
        root = np.sqrt(x**2 + q)
        return -ratio * x + root + shift / ratio, x - ratio * root + shift

    for x, training, budget, shift in [(a, 0, 0, 0), (b, e, 0, -e), (b, e, e, 0), (a, 0, e, e)]:
        expected = np.vectorize(phi)(risks(x, shift))
        found = trained_risks(m, ratio, training_budget=training, budget=budget, s=s)
        assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.5], ids="test budget {} of training".format)
def test_s4_signed_disparity_is_strictly_monotone(share):
    ratio, m, e = random_models(1000, seed=4)
    beta = optimal_bias(m - e, ratio, s=GRID)
    assert (np.diff(beta) < 0).all()
    assert (np.diff(disparity(beta, m, ratio, budget=share * e)) > 0).all()


@given(ratio=ratios, margin=margins, s=factors, prior=priors)
def test_s4_derivative(ratio, margin, s, prior):
    step = 1e-5 * s
    ends = optimal_bias(margin, ratio, s=np.array([s - step, s + step]), prior=prior)
    assume(np.isfinite(ends).all())
    slope = np.diff(ends)[0] / (2 * step)
    assert_allclose(sum(bias_sensitivity(margin, ratio, s=s, prior=prior)), slope, rtol=1e-4)
    if abs(ratio * (1 - prior) / prior - 1) > 1e-3:
        assert (slope < 0) == (ratio > prior / (1 - prior))


def test_s4_derivative_closed_form():
    slope = sum(bias_sensitivity(1.5, 2.0, s=0.5))
    assert_allclose(slope, -0.4164822735, rtol=3e-10)
    assert_allclose(slope, -2 * math.log(2) / math.sqrt(9 + 3 * math.log(2)), rtol=1e-14)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_s5_no_overshoot_when_the_test_budget_is_at_most_the_training_budget(share):
    ratio, m, e = random_models(1000, seed=5)
    plus, minus = trained_risks(m, ratio, training_budget=e, budget=share * e, s=GRID)
    assert (optimal_bias(m - e, ratio, s=GRID) < equal_error_bias(m - e, ratio)).all()
    assert (plus > minus).all()
    assert (np.diff(np.abs(plus - minus)) > 0).all()


def test_s5_counterexample_when_the_test_budget_is_larger():
    gap = disparity(optimal_bias(2.0, 1.5, s=1 / np.arange(1, 9)), 2.0, 1.5, budget=0.5)
    assert gap[0] > 0 > gap[1]  # natural training, K = 1.5, m = 2, e = .5: a pair is too much
    assert (np.diff(np.abs(gap[1:])) > 0).all()
    assert abs(gap[-1]) > gap[0]


FLIPS = [
    (1.5, 2.0, 0.0, 0.5, 0.6645317663),
    (2.0, 2.5, 0.0, 0.1, 0.1208257097),
    (2.0, 1.0, 0.0, 0.2, 0.09858416113),
    (2.0, 2.5, 0.5, 0.6, 0.09678079233),
    (1.5, 2.0, 0.25, 0.5, 0.2894481147),
    (2.0, 2.5, 0.0, 1.0, 1.262358161),
    (3.0, 3.0, 0.0, 1.0, 1.011376918),
]


@pytest.mark.parametrize(("ratio", "m", "trained", "tested", "expected"), FLIPS)
def test_s5_flip_factor(ratio, m, trained, tested, expected):
    flip = flip_factor(m - trained, ratio, tested - trained)
    assert_allclose(flip, expected, rtol=5.1e-10)
    gaps = disparity(
        optimal_bias(m - trained, ratio, s=flip * np.array([0.9, 1, 1.1])), m, ratio, budget=tested
    )
    assert gaps[0] < 0 < gaps[2]
    assert_allclose(gaps[1], 0, atol=1e-15)
    assert (disparity(optimal_bias(m - trained, ratio), m, ratio, budget=tested) <= 0) == (flip > 1)
    equal = equal_error_bias(m - tested, ratio)
    assert_allclose(factor_of_bias(equal, m - trained, ratio), flip, rtol=1e-12)


@given(ratio=ratios, margin=margins, budget=st.floats(0.01, 2))
def test_s6_minimax_limit(ratio, margin, budget):
    m, limit = margin + budget, optimal_bias(margin, ratio, s=0.0)
    assert_allclose(limit, equal_error_bias(margin, ratio), rtol=1e-13)
    assert_allclose(optimal_bias(margin, ratio, s=1e-12), limit, atol=1e-9)
    risks = class_risks(limit, m, ratio, budget=budget)
    assert_allclose(risks, minimax_risk(margin, ratio), rtol=1e-12)
    others = class_risks(limit + np.linspace(-1, 1, 201), m, ratio, budget=budget)
    assert np.max(others, axis=0).min() >= minimax_risk(margin, ratio) * (1 - 1e-12)
    half = 2 * margin / (ratio + 1)
    natural = phi(-(half + budget / ratio)) - phi(-(half + budget))
    assert_allclose(disparity(limit, m, ratio), natural, atol=1e-15)
    assert natural > 0


def test_s6_rate():
    gap = disparity(optimal_bias(1.5, 2.0, s=1e-3), 1.5, 2.0)
    assert_allclose([gap, disparity_rate(1.5, 2.0) * 1e-3], [1.676825826e-4, 1.677213225e-4])
    ratio, margin, _ = random_models(100, seed=6)
    small = disparity(optimal_bias(margin, ratio, s=1e-7), margin, ratio) / 1e-7
    assert_allclose(small, disparity_rate(margin, ratio), rtol=1e-4)


def test_s7_price_average_adversarial_risk_rises_and_worst_class_risk_falls_with_mixing():
    ratio, m, e = random_models(1000, seed=7)
    plus, minus = trained_risks(m, ratio, training_budget=e, budget=e, s=GRID)
    assert (np.diff(plus + minus) <= 1e-16).all()
    assert (np.diff(np.maximum(plus, minus)) > 0).all()
    assert (plus + minus)[:, 0].mean() > (plus + minus)[:, -1].mean() + 1e-3


@given(ratio=ratios, margin=margins, budget=st.floats(0.01, 2))
def test_s7_average_natural_risk_falls_until_the_natural_optimum(ratio, margin, budget):
    m = margin + budget
    turn = factor_of_bias(optimal_bias(m, ratio), margin, ratio)
    average = np.mean(trained_risks(m, ratio, training_budget=budget, s=GRID), axis=0)
    steps = np.diff(average)  # towards less mixing
    turn = 0.0 if np.isnan(turn) else turn
    assert turn < 1
    assert (steps[GRID[:-1] >= turn] > -1e-16).all()
    assert (steps[GRID[1:] <= turn] < 1e-16).all()


@given(ratio=ratios, margin=margins, s=factors)
def test_s7_factor_of_bias_is_the_inverse(ratio, margin, s):
    assert_allclose(factor_of_bias(optimal_bias(margin, ratio, s=s), margin, ratio), s, rtol=1e-6)
    beyond = equal_error_bias(margin, ratio) + np.array([0.1, 1e3])
    assert np.isnan(factor_of_bias(beyond, margin, ratio)).all()


@pytest.mark.parametrize(
    ("law", "k", "alpha"),
    [("dirichlet", 2, 1.0), ("dirichlet", 2, 0.2), ("dirichlet", 4, 0.5), ("uniform", 3, 1.0)],
)
def test_s8_expected_factor_is_that_of_the_weights_of_mixup(law, k, alpha):
    keys = jax.random.split(jax.random.key(8), 20_000)
    draw = jax.vmap(lambda key: mixup.mixing_weights(key, k, law=law, alpha=alpha))(keys)
    squares = (np.asarray(draw, np.float64) ** 2).sum(-1)
    error = 4 * squares.std() / math.sqrt(len(squares)) + 1e-6
    assert abs(squares.mean() - expected_factor(k, law=law, alpha=alpha)) < error
    if law == "dirichlet":
        values, masses = dirichlet_factors(k, alpha=alpha, nodes=8)
        assert_allclose(masses @ values, expected_factor(k, alpha=alpha), rtol=1e-12)
        assert values.min() >= 1 / k


RANDOM_PAIRS = [
    (0.2, 0.8571428571, 0.147657158, 0.116885650, 0.1368799411, 0.1201306651),
    (0.5, 0.75, 0.1900758672, 0.1039340788, 0.1791608498, 0.107294338),
    (1.0, 0.6666666667, 0.2202397574, 0.09454674704, 0.212586252, 0.09694277376),
    (2.0, 0.6, 0.2436017788, 0.08717269153, 0.2396824363, 0.08841617812),
    (10.0, 0.5238095238, 0.2713816549, 0.0782846092, 0.2710528078, 0.07839058967),
]


@pytest.mark.parametrize("row", RANDOM_PAIRS, ids=str)
def test_s8_random_pairs(row):
    alpha, factor, beta, gap, plugged, plugged_gap = row
    exact = mixture_bias(1.5, 2.0, *dirichlet_factors(2, alpha=alpha))
    approximate = optimal_bias(1.5, 2.0, s=expected_factor(2, alpha=alpha))
    found = [expected_factor(2, alpha=alpha), exact, approximate]
    assert_allclose(found, [factor, beta, plugged], rtol=5.1e-9 if alpha == 0.2 else 5.1e-10)
    gaps = disparity(np.array([exact, approximate]), 2.5, 2.0, budget=1.0)
    assert_allclose(gaps, [gap, plugged_gap], rtol=5.1e-9 if alpha == 0.2 else 5.1e-10)


def test_s8_mean_factor_is_pessimistic_for_small_margins_and_optimistic_for_large():
    law = dirichlet_factors(2)
    assert mixture_bias(1.5, 2.0, *law) > optimal_bias(1.5, 2.0, s=2 / 3)
    assert mixture_bias(3.5, 2.0, *law) < optimal_bias(3.5, 2.0, s=2 / 3)


@given(
    ratio=st.floats(0.25, 4),
    margin=margins,
    law=st.lists(st.tuples(factors, st.floats(0.01, 1)), min_size=1, max_size=4),
    probability=st.floats(0, 1),
)
def test_s8_s9_optimum_lies_between_those_of_the_extreme_factors(ratio, margin, law, probability):
    values, weights = np.array(law).T
    beta = mixture_bias(margin, ratio, values, weights, probability=probability)
    ends = optimal_bias(margin, ratio, s=np.append(values, 1.0))
    assert ends.min() - 1e-9 <= beta <= ends.max() + 1e-9
    values = np.append(values, 1.0)
    weights = np.append(probability * weights / weights.sum(), 1 - probability)

    def risk(beta):
        return weights @ training_risk(beta, margin, ratio, s=values)

    grid = np.linspace(-margin - 6 * max(ratio, 1), margin + 6 * max(ratio, 1), 2001)
    assert risk(beta) <= min(risk(point) for point in grid) + 1e-15


def test_s8_best_of_two_minima_is_found():
    law = np.array([1e-4, 1.0]), np.array([0.3, 0.7])
    beta = mixture_bias(0.5, 4.0, *law)
    other = optimal_bias(0.5, 4.0)  # a minimum as well, in the sacrifice of the wide class
    risk = [law[1] @ training_risk(point, 0.5, 4.0, s=law[0]) for point in (beta, other)]
    assert_allclose([beta, *risk], [-0.39812, 0.23685519, 0.36488961], rtol=1e-5)


@pytest.mark.parametrize(
    ("probability", "beta", "gap"),
    [
        (0.0, 0.08165501189, 0.1364772942),
        (0.25, 0.1468763259, 0.1171213724),
        (0.5, 0.2007282075, 0.1006360079),
        (0.75, 0.2448228759, 0.08678474747),
        (1.0, 0.2809469946, 0.075193809),
    ],
)
def test_s9_mixing_with_a_probability(probability, beta, gap):
    found = mixture_bias(1.5, 2.0, [0.5], [1.0], probability=probability)
    assert_allclose(found, beta, rtol=5.1e-10)
    assert_allclose(disparity(found, 2.5, 2.0, budget=1.0), gap, rtol=1e-9)


THETA = np.array([1.2, 0.8, 0.5, 0.2])


@pytest.mark.parametrize(("s", "bias"), [(1.0, -0.2024), (0.5, 0.0510)])
def test_s10_soft_threshold_is_the_optimal_direction(s, bias):
    weights = optimal_direction(THETA, epsilon=0.3)
    assert_allclose(weights, [0.8581, 0.4767, 0.1907, 0], atol=5e-5)
    separation, budget = project(weights, THETA, epsilon=0.3)
    beta = optimal_bias(separation - budget, 2.0, s=s)
    assert_allclose(beta, bias, atol=5e-5)

    def risk(point):
        w, b = point[:4], point[4]
        size, margin = np.linalg.norm(w), w @ THETA - 0.3 * np.abs(w).sum()
        plus = phi(-(margin + b) / (size * 2 * math.sqrt(s)))
        return (plus + phi(-(margin - b) / (size * math.sqrt(s)))) / 2

    options = {"xatol": 1e-10, "fatol": 1e-16, "maxfev": 8000, "maxiter": 8000}
    start = np.array([0.5, 0.5, 0.5, 0.5, 0.0])
    for _ in range(3):  # the risk has a kink at w_4 = 0; a restart frees a simplex that is flat
        start = optimize.minimize(risk, start, method="Nelder-Mead", options=options).x
    assert_allclose(risk(start), risk([*weights, beta]), rtol=1e-8)
    assert_allclose(start[:4] / np.linalg.norm(start[:4]), weights, atol=2e-4)


@given(
    mean=st.lists(st.floats(-2, 2), min_size=5, max_size=5),
    epsilon=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_s10_no_direction_has_a_larger_margin(mean, epsilon, seed):
    assume(max(map(abs, mean)) > epsilon + 1e-3)
    separation, budget = project(optimal_direction(mean, epsilon=epsilon), mean, epsilon=epsilon)
    shrunk = np.maximum(np.abs(mean) - epsilon, 0)
    assert_allclose(separation - budget, np.linalg.norm(shrunk), rtol=1e-9)
    for other in np.random.default_rng(seed).standard_normal((50, 5)):
        apart, cost = project(other, mean, epsilon=epsilon)
        assert apart - cost <= separation - budget + 1e-12


def test_s10_uniform_means_are_the_model_of_the_module():
    weights = optimal_direction(np.full(16, 0.5), epsilon=0.1)
    assert_allclose(weights, 0.25)
    assert_allclose(project(weights, np.full(16, 0.5), epsilon=0.1, sigma=2.0), [1.0, 0.2])
    with pytest.raises(ValueError, match=r"epsilon=0\.5"):
        optimal_direction([0.5, -0.2], epsilon=0.5)


PRIORS = [
    (0.3, -0.3474292691, 0.03952713462, 0.2579109383),
    (0.5, 0.08165501189, 0.2809469946, 0.3876321058),
    (0.7, 0.6055524498, 0.5520611508, 0.5258589513),
    (0.8, 1.033164113, 0.746203045, 0.6190688796),
    (0.85, 1.394201796, 0.8840189254, 0.6818423015),
    (0.9, np.inf, 1.087709849, 0.7687340656),
    (0.95, np.inf, 1.50086157, 0.9191335284),
]


@pytest.mark.parametrize("row", PRIORS, ids=str)
def test_s11_priors(row):
    prior, *expected = row
    beta = optimal_bias(1.5, 2.0, s=np.array([1, 0.5, 0.25]), prior=prior)
    assert_allclose(beta, expected, rtol=5.1e-10)
    assert optimal_bias(1.5, 2.0, s=0.0, prior=prior) == 0.5


@given(ratio=ratios, margin=margins, prior=priors)
def test_s11_mixing_pulls_to_equal_error_whatever_the_prior(ratio, margin, prior):
    equal = equal_error_bias(margin, ratio)
    distance = np.abs(optimal_bias(margin, ratio, s=GRID, prior=prior) - equal)
    finite = distance[np.isfinite(distance)]
    assert (np.diff(finite) >= -1e-12).all()
    assert not np.isfinite(distance[len(finite) :]).any()  # constant rules, if any, come first
    below = optimal_bias(margin, ratio, s=1e-3, prior=prior) < equal
    if abs(ratio * (1 - prior) / prior - 1) > 1e-3:
        assert below == (ratio * (1 - prior) > prior)


def test_s11_the_constant_rule_wins_with_and_without_a_stationary_point():
    root = np.array([1.0, 1.05]) ** 2 - 0.75 * 2 * math.log(2)  # K = 2, prior = .8
    assert root[0] < 0 < root[1]
    stationary = (0.75 * 1.05**2 + 2 * math.log(2)) / (1.25 * 1.05 + math.sqrt(root[1]))
    assert training_risk(stationary, 1.05, 2.0, prior=0.8) > 0.2
    assert (optimal_bias([1.0, 1.05], 2.0, prior=0.8) == np.inf).all()
    assert (optimal_bias([0.5, 0.525], 0.5, prior=0.2) == -np.inf).all()
    assert optimal_bias(1.5, 2.0, prior=0.5) == optimal_bias(1.5, 2.0)
    assert np.isnan(bias_sensitivity(1.5, 2.0, prior=0.95)).all()


@given(
    ratio=st.floats(0.3, 3),
    margin=margins,
    s=factors,
    s_minus=factors,
    prior=priors,
)
def test_s12_exchanging_the_classes_changes_the_sign(ratio, margin, s, s_minus, prior):
    beta = optimal_bias(margin, ratio, s=s, s_minus=s_minus, prior=prior)
    other = optimal_bias(margin / ratio, 1 / ratio, s=s_minus, s_minus=s, prior=1 - prior)
    assume(np.isfinite(beta) == np.isfinite(other))  # ties of two rules may break either way
    assert_allclose(-ratio * other, beta, rtol=1e-9, atol=1e-9)


def test_s12_zero_at_equal_effective_variances_and_stable_beside_them():
    assert optimal_bias(1.5, 1.0) == 0
    assert optimal_bias(1.5, 2.0, s=0.25, s_minus=1.0) == 0
    assert optimal_bias(1.5, 0.5, s=1.0, s_minus=0.25) == 0
    step = 2.0**-30
    slope = optimal_bias(1.5, np.array([1 - step, 1 + step]), s=0.5) / np.array([-step, step])
    assert_allclose(slope, (1.5**2 - 0.5) / (2 * 1.5), rtol=1e-7)  # d beta / dK at K = 1
    assert_allclose(optimal_bias(1.5, 1.0, s=0.5, prior=0.7), 0.5 * np.log(7 / 3) / 3, rtol=1e-14)


def test_s12_limits_of_one_factor():
    assert optimal_bias(1.5, 2.0, s=1.0, s_minus=0.0) == 1.5
    assert optimal_bias(1.5, 2.0, s=0.0, s_minus=1.0) == -1.5
    assert optimal_bias(0.1, 2.0, s=0.0, s_minus=1.0, prior=0.01) == -np.inf


STRENGTHS = [
    (1, 1, 0.08165501189, 0.2145223283, 0.07804503409, 0.1364772942, 0.09058610533),
    (0.5, 0.5, 0.2809469946, 0.1866058465, 0.1114120375, 0.075193809, 0.06895101153),
    (0.25, 0.25, 0.3876321058, 0.1726318279, 0.1329900015, 0.03964182646, 0.05706790932),
    (0.5, 1, 0.09701301829, 0.2122883087, 0.08031036051, 0.1319779482, 0.08892578737),
    (0.25, 1, 0, 0.2266273524, 0.06680720127, 0.1598201511, 0.09944010834),
    (1, 0.5, 0.2983444307, 0.1842804687, 0.114748501, 0.06953196765, 0.06703584945),
    (1, 0.4, 0.3723465902, 0.1745919852, 0.1297331605, 0.04485882468, 0.05879360275),
    (1, 1 / 3, 0.4325166917, 0.1669574619, 0.1428768235, 0.02408063833, 0.05194464165),
    (1, 0.25, 0.5255397016, 0.1555850523, 0.1649140213, -0.009328968969, 0.04100435103),
]


@pytest.mark.parametrize("row", STRENGTHS, ids=str)
def test_s13_per_class_strength(row):
    s, s_minus, *expected = row
    beta = optimal_bias(1.5, 2.0, s=s, s_minus=s_minus)
    risks = class_risks(beta, 2.5, 2.0, budget=1.0)
    gaps = [disparity(beta, 2.5, 2.0, budget=budget) for budget in (1.0, 0.0)]
    assert_allclose([beta, *risks, *gaps], expected, rtol=1e-9)


def test_s13_mixing_only_the_easy_class_helps_and_only_the_hard_class_can_hurt():
    none, easy, hard = (
        disparity(optimal_bias(1.5, 2.0, s=s, s_minus=s_minus), 1.5, 2.0)
        for s, s_minus in [(1, 1), (1, 0.25), (0.25, 1)]
    )
    assert abs(easy) < 0.01 < none < hard


def test_s13_mixing_only_the_hard_class_helps_more_where_its_risk_is_large():
    beta = optimal_bias(0.75, 2.0, s=np.array([1, 0.5, 1]), s_minus=np.array([1, 1, 0.5]))
    assert class_risks(beta[0], 0.75, 2.0)[0] > 0.4
    none, hard, easy = disparity(beta, 0.75, 2.0)
    assert hard < 0.22 < 0.25 < easy < none


@given(ratio=st.floats(0.3, 3), margin=margins, s=factors, s_minus=factors, prior=priors)
def test_s13_mixing_favours_the_mixed_class_exactly_if_its_training_risk_exceeds_16_percent(
    ratio, margin, s, s_minus, prior
):
    slopes = bias_sensitivity(margin, ratio, s=s, s_minus=s_minus, prior=prior)
    beta = optimal_bias(margin, ratio, s=s, s_minus=s_minus, prior=prior)
    assume(np.isfinite(beta))
    step = 1e-6 * np.array([-1, 1])
    for slope, changed in zip(slopes, [(s * step, 0), (0, s_minus * step)], strict=True):
        ends = optimal_bias(
            margin, ratio, s=s + changed[0], s_minus=s_minus + changed[1], prior=prior
        )
        assume(np.isfinite(ends).all())
        width = 2e-6 * (s if np.ndim(changed[0]) else s_minus)
        assert_allclose(slope, np.diff(ends)[0] / width, rtol=1e-3, atol=1e-5)
    wide = phi(-(margin + beta) / (ratio * math.sqrt(s)))
    narrow = phi(-(margin - beta) / math.sqrt(s_minus))
    tail = phi(-1)
    assert (slopes[0] < 0) == (tail < wide < 1 - tail)
    assert (slopes[1] > 0) == (tail < narrow < 1 - tail)


def test_s13_the_strength_of_exact_equality():
    strength = equalising_strength(1.5, 2.0)
    assert_allclose(strength, 0.2708093618, rtol=5.1e-10)
    assert_allclose(optimal_bias(1.5, 2.0, s_minus=strength), 0.5, rtol=1e-14)


@given(ratio=ratios, margin=margins, s=factors)
def test_s13_equality_is_reached_for_every_model(ratio, margin, s):
    strength = equalising_strength(margin, ratio, s=s)
    assert 0 < strength < s
    assert equalising_strength(margin, 1.0, s=s) == s
    beta = optimal_bias(margin, ratio, s=s, s_minus=strength)
    assert_allclose(disparity(beta, margin, ratio), 0, atol=1e-12)


@pytest.mark.parametrize(("k", "pool"), [(2, 5), (3, 4)])
def test_s14_partners_drawn_with_replacement(k, pool):
    weights = np.arange(1, k + 1) / np.arange(1, k + 1).sum()
    choices = itertools.product(range(pool), repeat=k)
    squares = [(np.bincount(choice, weights) ** 2).sum() for choice in choices]
    assert_allclose(np.mean(squares), factor_with_replacement((weights**2).sum(), pool))


def test_s15_squared_loss_ignores_mixing_when_classes_are_balanced():
    assert (squared_loss_bias(1.5, 2.0, s=GRID, s_minus=GRID[::-1]) == 0).all()
    prior, points, labels, masses = 0.7, [], [], []
    nodes, mass = np.polynomial.hermite_e.hermegauss(8)
    for label, deviation, share in [(1, 2 * math.sqrt(0.5), prior), (-1, 0.5, 1 - prior)]:
        points.append(label * 1.5 + deviation * nodes)
        labels.append(np.full(8, float(label)))
        masses.append(share * mass / mass.sum())
    root = np.sqrt(np.concatenate(masses))
    design = np.stack([np.concatenate(points), np.ones(16)], 1) * root[:, None]
    slope, intercept = np.linalg.lstsq(design, np.concatenate(labels) * root)[0]
    found = squared_loss_bias(1.5, 2.0, s=0.5, s_minus=0.25, prior=prior)
    assert_allclose(found, intercept / slope, rtol=1e-12)


LOGISTIC = """
0    0.287571233  0.07304415587 0.3584020963 0.04958185427 0.4131921876  0.03082470338
.01  0.2739411298 0.07745911306 0.3123331995 0.06494148506 0.285178429   0.07382152267
.05  0.2351915248 0.08983783728 0.2343341248 0.09010887491 0.1856941948  0.1052853246
.2   0.1630514985 0.1122186204  0.1394880281 0.1193470431  0.09852362467 0.1315334748
1    0.06053811122 0.1426064113 0.04188658358 0.1479656306 0.025450681   0.1526467328
"""


@pytest.mark.parametrize("row", np.array(LOGISTIC.split(), float).reshape(5, 7), ids=str)
def test_s15_logistic_loss_and_weight_decay(row):
    decay, *expected = row
    found = []
    for s in (1.0, 0.5, 0.25):
        _, beta = logistic_bias(1.5, 2.0, s=s, weight_decay=decay)
        found += [beta, disparity(beta, 2.5, 2.0, budget=1.0)]
    assert_allclose(found, expected, rtol=1e-9)
    gaps = np.diff(found[1::2])
    assert (gaps < 0).all() if decay == 0 else gaps[-1] > 0


def test_s15_logistic_slopes():
    slopes = [logistic_bias(1.5, 2.0, s=s)[0] for s in (1, 0.5, 0.25)]
    assert_allclose(slopes, [1.321917817, 2.708477966, 5.545797657], rtol=5.1e-10)
    for s, slope, bias, gap in [
        (2 / 3, 2.011, 0.3306, 0.0589),
        (1 / 3, 4.119, 0.3926, 0.0379),
        (0.15, 9.397, 0.4422, 0.0207),
    ]:
        found = logistic_bias(1.5, 2.0, s=s)
        assert_allclose(found, [slope, bias], atol=5.1e-4)
        assert_allclose(disparity(found[1], 2.5, 2.0, budget=1.0), gap, atol=5.1e-5)


def test_s15_logistic_loss_without_decay_moves_the_same_way_but_less():
    rng = np.random.default_rng(15)
    for ratio, margin in zip(rng.uniform(1.02, 4, 20), rng.uniform(0.2, 3, 20), strict=True):
        logistic = [logistic_bias(margin, ratio, s=s)[1] for s in (1, 0.5, 0.25)]
        exact = optimal_bias(margin, ratio, s=np.array([1, 0.5, 0.25]))
        assert (np.diff(logistic) > 0).all()
        assert logistic[2] - logistic[0] < exact[2] - exact[0]
    assert_allclose(logistic_bias(1.5, 1.0)[1], 0, atol=1e-12)


D, PER_CLASS, SEPARATION, RATIO, BUDGET = 10, 200_000, 2.5, 2.0, 1.0


def averages(k):
    """`(noise of +, noise of -)`, `[PER_CLASS, D]`: real averages of k samples less the mean."""
    rng = np.random.default_rng(100 + k)
    return [
        sum(scale * rng.standard_normal((PER_CLASS, D)) for _ in range(k)) / k
        for scale in (RATIO, 1.0)
    ]


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 8])
def drawn(request):
    """`(k, squared noise per class, projections of attacked points)` of k-sample averages."""
    k = request.param
    mean, radius = SEPARATION / math.sqrt(D), BUDGET / math.sqrt(D)
    noise = averages(k)
    points = [y * (mean - radius) + part for y, part in zip((1, -1), noise, strict=True)]
    return k, [np.mean(part**2) for part in noise], [p.sum(1) / math.sqrt(D) for p in points]


def test_monte_carlo_variance_factor(drawn):
    k, squares, _ = drawn
    for square, variance in zip(squares, (RATIO**2, 1.0), strict=True):
        error = math.sqrt(2 / (PER_CLASS * D)) / k
        assert abs(square / variance - expected_factor(k, law="uniform")) < 4 * error


def errors(projections, beta):
    return np.stack([projections[0] <= -beta, projections[1] > -beta]).astype(np.float64)


def test_monte_carlo_training_risk_and_its_minimum(drawn):
    k, _, projections = drawn
    s, margin = 1 / k, SEPARATION - BUDGET
    best = optimal_bias(margin, RATIO, s=s)
    at_best = errors(projections, best)
    exact = np.array(class_risks(best / math.sqrt(s), margin / math.sqrt(s), RATIO))
    assert (np.abs(at_best.mean(1) - exact) < 4 * np.sqrt(exact * (1 - exact) / PER_CLASS)).all()
    for shift in math.sqrt(s) * np.array([-0.8, -0.4, -0.2, 0.2, 0.4, 0.8]):
        change = errors(projections, best + shift) - at_best
        error = math.sqrt(change.var(axis=1).sum() / PER_CLASS) / 2
        risk = training_risk(np.array([best, best + shift]), margin, RATIO, s=s)
        assert abs(change.mean() - np.diff(risk)[0]) < 4 * error
        assert change.mean() > -4 * error
        assert abs(shift) < 0.4 * math.sqrt(s) or change.mean() > 0


def best_bias(risk, s):
    """Minimum of a quartic fitted to an empirical risk, twice, around the last minimum.

    The window shrinks with the mixed classes; a wide one biases the minimum, which is skewed.
    """
    grid = np.linspace(-1.5, 1.5, 61)
    center, width = grid[np.argmin(risk(grid))], 0.5 * math.sqrt(s)
    for _ in range(2):
        points = center + width * np.linspace(-1, 1, 41)
        fit = Polynomial.fit(points, risk(points), 4)
        roots = fit.deriv().roots()
        inside = roots.real[(roots.imag == 0) & (np.abs(roots.real - center) < width)]
        center = min(inside, key=fit)
    return center


def test_monte_carlo_disparity_of_the_empirically_best_classifier(drawn):
    k, _, projections = drawn
    folds = [np.sort(part.reshape(20, -1)) for part in projections]

    def gap(left_out=None):
        kept = [fold for fold in range(20) if fold != left_out]

        def risk(beta):
            wide = sum(np.searchsorted(folds[0][fold], -beta) for fold in kept)
            narrow = sum(np.searchsorted(folds[1][fold], -beta) for fold in kept)
            total = len(kept) * PER_CLASS // 20
            return (wide / total + 1 - narrow / total) / 2

        return disparity(best_bias(risk, 1 / k), SEPARATION, RATIO, budget=BUDGET)

    jackknife = np.array([gap(fold) for fold in range(20)])
    error = math.sqrt(19 / 20 * ((jackknife - jackknife.mean()) ** 2).sum())
    exact = np.subtract(
        *trained_risks(SEPARATION, RATIO, training_budget=BUDGET, budget=BUDGET, s=1 / k)
    )
    assert error < 0.004
    assert abs(gap() - exact) < 4 * error


@pytest.mark.parametrize("budget", [0.0, BUDGET])
def test_s1_class_risks_agree_with_samples_of_the_original_distribution(budget):
    mean = (SEPARATION - budget) / math.sqrt(D)
    projections = [
        (y * mean + part).sum(1) / math.sqrt(D)
        for y, part in zip((1, -1), averages(1), strict=True)
    ]
    for k in (1, 2, 3, 4, 8):
        beta = optimal_bias(SEPARATION - BUDGET, RATIO, s=1 / k)
        exact = np.array(class_risks(beta, SEPARATION, RATIO, budget=budget))
        error = np.sqrt(exact * (1 - exact) / PER_CLASS)
        assert (np.abs(errors(projections, beta).mean(1) - exact) < 4 * error).all()


def test_arguments_broadcast():
    margin, ratio = np.array([[0.5], [1.5]]), np.array([0.5, 1.0, 2.0])
    beta = optimal_bias(margin, ratio, s=0.5, prior=np.array([0.3, 0.5, 0.6]))
    assert beta.shape == (2, 3)
    assert beta[1, 1] == optimal_bias(1.5, 1.0, s=0.5, prior=0.5)
    plus, minus = class_risks(beta, 2.0, ratio, budget=np.array([[0.0], [0.5]]))
    assert plus.shape == minus.shape == (2, 3)
    assert optimal_bias(np.float32(1.5), 2).dtype == np.float64


BAD = [
    ("margin=0", lambda: optimal_bias(0, 2.0)),
    ("margin=nan", lambda: optimal_bias(math.nan, 2.0)),
    ("ratio=-1", lambda: optimal_bias(1.5, -1)),
    (r"s=-0\.1", lambda: optimal_bias(1.5, 2.0, s=-0.1)),
    ("s_minus=inf", lambda: optimal_bias(1.5, 2.0, s_minus=math.inf)),
    ("prior=1", lambda: optimal_bias(1.5, 2.0, prior=1)),
    ("budget=-1", lambda: class_risks(0.0, 1.5, 2.0, budget=-1)),
    ("separation=-1", lambda: class_risks(0.0, -1, 2.0)),
    (r"margin=-0\.5", lambda: trained_risks(0.5, 2.0, training_budget=1.0)),
    ("ratio=1", lambda: flip_factor(1.5, 1, 0.1)),
    ("excess=-1", lambda: flip_factor(1.5, 2.0, -1)),
    (r"ratio=0\.5", lambda: equalising_strength(1.5, 0.5)),
    ("s=0", lambda: bias_sensitivity(1.5, 2.0, s=0)),
    ("law='beta'", lambda: expected_factor(2, law="beta")),
    ("probability=2", lambda: mixture_bias(1.5, 2.0, [0.5], [1.0], probability=2)),
    ("factors", lambda: mixture_bias(1.5, 2.0, [0.0], [1.0])),
    ("margin=40", lambda: logistic_bias(40, 2.0)),
    ("weight_decay=-1", lambda: logistic_bias(1.5, 2.0, weight_decay=-1)),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message for message, _ in BAD])
def test_bad_arguments_are_named_with_their_value(message, call):
    with pytest.raises(ValueError, match=message):
        call()
