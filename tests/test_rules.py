"""Rules by hand: tables of class statistics, and what each rule makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special
from statistics_of_classes import class_statistics, driven, equal_epoch, random_epoch

from fairmix_jax import theory
from fairmix_jax.methods.rules import chi2_dro, dafa, faal
from fairmix_jax.runtime import registry
from fairmix_jax.types import ClassCounts, EpochStatistics


def make(name, num_classes, **options):
    return registry.load("rules", name)(num_classes, **options)


def epoch(number, *, train=None, clean=None, robust=None, base=None):
    """Statistics of two or three classes, from what a rule reads of them."""
    given = next(part for part in (train, base, clean, robust) if part is not None)
    size = len(given.total if isinstance(given, ClassCounts) else given.loss)
    none = class_statistics(*(np.zeros(size) for _ in range(4)), np.zeros((size, size)))
    return EpochStatistics(
        jnp.asarray(number, jnp.int32),
        none if train is None else train,
        none.counts if clean is None else clean,
        none.counts if robust is None else robust,
        none if base is None else base,
    )


def counts(total, correct):
    return ClassCounts(jnp.asarray(total, jnp.int32), jnp.asarray(correct, jnp.int32))


def batch(total, *, correct=None, loss=None, margin=None, probabilities=None):
    size = len(total)
    zeros = np.zeros(size)
    return class_statistics(
        total,
        zeros if correct is None else correct,
        zeros if loss is None else loss,
        zeros if margin is None else margin,
        np.zeros((size, size)) if probabilities is None else probabilities,
    )


def close(actual, expected, rtol=1e-5, atol=1e-7):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


def test_frl():
    """Clean errors .1, .3, mean .2; boundary errors .9-.6 = .3, .7-.2 = .5, mean .4.

    Excess over mean and tolerance .05: -.15, .05, both times. Multipliers: clean 0,
    .5 x .05 = .025; robust 0, 2 x .5 x .05 = .05; radius .2 x (-.15, .05) = -.03, .01.
    """
    rule = make("frl", 2, tolerance=0.05, rate=0.5, radius_rate=0.2)
    told = epoch(1, clean=counts([10, 10], [9, 7]), robust=counts([10, 10], [6, 2]))
    state = rule.update(rule.init(), told)
    knobs = rule.knobs(state)
    close(knobs.ce_weight, [1 - 0.025, 1 + 2 * 0.025 - 0.025])
    close(knobs.beta, [1 - 0.05, 1 + 2 * 0.05 - 0.05])
    close(knobs.radius, [0.98, np.exp(0.02)])  # exp(-.06) = .942 is clipped
    close(knobs.step_size, [np.exp(0.02)] * 2)


def test_frl_weights_of_ten_classes():
    """The reference's example: multipliers .3, .2, 0 x 8 are weights .35, .25, .05 x 8."""
    rule = make("frl", 10)
    state = rule.init() | {"clean": jnp.asarray([0.3, 0.2] + [0.0] * 8)}
    close(rule.knobs(state).ce_weight / 10, [0.35, 0.25] + [0.05] * 8)


def test_frl_caps_the_sum_and_halves_the_rate():
    """Excess -.5, .5: a step of .5 gives .25, capped at .2; from epoch 40 on, told of 39, .125."""
    rule = make("frl", 2, tolerance=0.0, rate=0.5, limit=0.2)
    told = [
        epoch(n, clean=counts([10, 10], [10, 0]), robust=counts([10, 10], [10, 0]))
        for n in (38, 39)
    ]
    close(rule.update(rule.init(), told[0])["clean"], [0, 0.2])
    close(rule.update(rule.init(), told[1])["clean"], [0, 0.125])


def test_cfa():
    """Training robustness .6, .2: radii .5 + t, robustness weights .3 + t; the third is absent."""
    rule = make("cfa", 3, beta_offset=0.3, warmup_epochs=2)
    train = batch([10, 20, 0], correct=[6, 4, 0])
    early = rule.knobs(rule.update(rule.init(), epoch(1, train=train)))
    close(early.radius, [1, 1, 1])
    knobs = rule.knobs(rule.update(rule.init(), epoch(2, train=train)))
    close(knobs.radius, [1.1, 0.7, 1])
    close(knobs.beta, [0.9, 0.5, 1])
    close(knobs.step_size, [1, 1, 1])


def test_wat():
    """Losses 3, 2, 1 (average 2), eta .1: the reference's Hedge weights, expert 4 added to all."""
    rule = make("wat", 3)
    close(rule.knobs(rule.init()).loss_weight, [2, 2, 2])
    told = epoch(1, base=batch([10, 10, 10], loss=[3, 2, 1]))
    knobs = rule.knobs(rule.update(rule.init(), told))
    experts = np.asarray([0.8268094419, 0.7481281206, 0.6769343170])
    close(knobs.loss_weight, experts + 0.7481281206)


def test_wat_is_hedge_after_ten_thousand_epochs():
    """Naive exponentials overflow float32 after ten; differences of the sums stay exact."""
    losses = np.random.default_rng(0).normal((9, 9.001, 9.002), 0.2, (10_000, 3))
    rule = make("wat", 3)

    def told(state, loss):
        parts = batch([1, 1, 1])._replace(loss=loss)
        return rule.update(state, epoch(1, base=parts)), None

    state, _ = jax.lax.scan(told, rule.init(), jnp.asarray(losses, jnp.float32))
    total = np.append(losses.sum(0), losses.sum() / 3)
    hedge = np.exp(0.1 * (total - total.max()))
    hedge = 3 * hedge / hedge.sum()
    close(rule.knobs(state).loss_weight, hedge[:3] + hedge[3], rtol=1e-3)


CONFUSION = np.asarray([[0.6, 0.3, 0.1], [0.25, 0.65, 0.1], [0.05, 0.05, 0.9]])


@pytest.mark.parametrize(
    "strength, weights", [(1.0, [1.285, 0.895, 0.82]), (1.5, [1.4275, 0.8425, 0.73])]
)
def test_dafa(strength, weights):
    """Class 0 is harder than 1: .3 x .65 = .195; than 2: .1 x .9 = .09; 1 than 2: .1 x .9 = .09."""
    rule = make("dafa", 3, warmup_epochs=2, strength=strength)
    train = batch([10, 20, 30], probabilities=CONFUSION)
    state = rule.update(rule.init(), epoch(1, train=train))
    close(rule.knobs(state).radius, [1, 1, 1])
    state = rule.update(state, epoch(2, train=train))
    later = rule.update(state, epoch(3, train=batch([1, 1, 1], probabilities=np.eye(3))))
    knobs = rule.knobs(later)
    for factor in (knobs.radius, knobs.step_size, knobs.ce_weight):
        close(factor, weights)
    close(knobs.beta, [1, 1, 1])


def test_dafa_weights_sum_to_the_number_of_classes_and_stay_positive(rng):
    for _ in range(50):
        confusion = jnp.asarray(rng.dirichlet(np.ones(5), 5), jnp.float32)
        assert float(dafa.class_weights(confusion, strength=0.3).sum()) == pytest.approx(5)
        assert float(dafa.class_weights(confusion, strength=5.0).min()) >= 0


def test_trix_targets_the_strong_classes_of_the_batch():
    """DAFA's weights of the batch are 1.285, .895, .82, mean 1 over equal classes."""
    rule = make("trix", 3)
    labels = jnp.tile(jnp.arange(3), 200)
    probabilities = jnp.asarray(CONFUSION, jnp.float32)[labels]
    targets = np.asarray(rule.targets(jax.random.key(0), probabilities, labels))
    assert (targets[labels == 0] == -1).all()
    for label, others in ((1, [0, 2]), (2, [0, 1])):
        chosen, times = np.unique(targets[labels == label], return_counts=True)
        assert chosen.tolist() == others
        assert abs(times[0] - 100) < 4 * np.sqrt(50)  # uniform: 4 standard deviations of 200 draws


def test_cfol():
    """P = .5, .5; two errors of class 0 add .1 x 2 / .5 = .4; softmax(.4, 0) = .5987, .4013."""
    rule = make("cfol", 2, learning_rate=0.1)
    state = rule.observe(rule.init(), batch([5, 5], correct=[3, 5]))
    close(rule.knobs(state).sampling, [0.5 + 0.598688, 0.5 + 0.401312])
    weighted = make("cfol", 2, learning_rate=0.1, by="weight")
    state = weighted.observe(weighted.init(), batch([5, 5], correct=[3, 5]))
    close(weighted.knobs(state).loss_weight, [1.098688, 0.901312])
    close(weighted.knobs(state).sampling, [1, 1])


GAINS = np.asarray([-2, -6, -1, 0.5, 1, 0, -0.5, -3, -5, -4])
FAAL = {
    0.1: [
        0.08206603042, 0.04684336659, 0.1010641833, 0.1548277385, 0.1882003209, 0.1315080935,
        0.1142935714, 0.0690802512, 0.05247379228, 0.05964265192,
    ],
    0.5: [
        0.04315824904, 0.01961253228, 0.06166663233, 0.1728682913, 0.4333520274, 0.1079691022,
        0.07849868364, 0.03319517751, 0.02270998722, 0.02696931708,
    ],
    1.0: [
        0.02273116493, 0.009935443619, 0.03352538589, 0.116527596, 0.6668904527, 0.06384138833,
        0.04396380997, 0.01719489703, 0.01156264054, 0.01382722098,
    ],
}  # fmt: skip


@pytest.mark.parametrize("ball_radius", FAAL)
def test_faal(ball_radius):
    """The reference's table; as a rule the weights are ten times p."""
    with jax.enable_x64(True):
        worst = faal.worst_distribution(jnp.asarray(GAINS), ball_radius=ball_radius)
        close(worst, FAAL[ball_radius], rtol=1e-8)
        close(np.sum(worst), 1, rtol=1e-12)
        close(np.mean(np.log(0.1 / np.asarray(worst))), ball_radius, rtol=1e-9)
    rule = make("faal", 10, ball_radius=ball_radius)
    state = rule.observe(rule.init(), batch(np.full(10, 10), margin=GAINS / 10))
    close(rule.knobs(state).loss_weight, 10 * np.asarray(FAAL[ball_radius]), rtol=1e-4)


def generic_solution(gains, ball_radius):
    """SLSQP over log p, which reaches 1e-8 where it stops at 1e-5 over p."""
    gains = gains / np.ptp(gains)

    def exp(t):
        return np.exp(np.minimum(t, 5.0))  # line searches overshoot

    found = optimize.minimize(
        lambda t: -gains @ exp(t),
        np.full(len(gains), -np.log(len(gains))),
        jac=lambda t: -gains * exp(t),
        constraints=[
            {"type": "eq", "fun": lambda t: exp(t).sum() - 1, "jac": exp},
            {"type": "ineq", "fun": lambda t: ball_radius + np.mean(t) + np.log(len(t))},
        ],
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 2000},
    )
    return np.exp(found.x)


def test_faal_equals_a_generic_solver(rng):
    for _ in range(100):
        gains, ball_radius = rng.normal(0, 3, rng.integers(2, 11)), rng.uniform(0.02, 1.5)
        with jax.enable_x64(True):
            ours = faal.worst_distribution(jnp.asarray(gains), ball_radius=ball_radius)
        close(ours, generic_solution(gains, ball_radius), rtol=0, atol=1e-6)


def test_chi2_dro():
    """The reference's example: losses .5, 1, 1.5, 2 and radius .05, value 1.426776695."""
    rule = make("chi2_dro", 4, ball_radius=0.05)
    losses = np.asarray([0.5, 1, 1.5, 2])
    state = rule.observe(rule.init(), batch([8, 8, 8, 8], loss=losses))
    weights = np.asarray(rule.knobs(state).loss_weight)
    expected = [0.1439339828, 0.2146446609, 0.2853553391, 0.3560660172]
    close(weights / 4, expected, rtol=1e-5)
    close(np.mean(weights * losses), 1.426776695)


def test_chi2_dro_equals_a_generic_solver_where_weights_vanish(rng):
    for _ in range(30):
        size, ball_radius = rng.integers(2, 8), rng.uniform(0.01, 2)
        losses, share = rng.normal(size=size), rng.dirichlet(np.full(size, 3.0))
        with jax.enable_x64(True):
            ratios = chi2_dro.worst_ratios(
                jnp.asarray(losses), jnp.asarray(share), ball_radius=ball_radius
            )
        found = optimize.minimize(
            lambda p, g=losses: -g @ p,
            share,
            bounds=[(0, 1)] * size,
            constraints=[
                {"type": "eq", "fun": lambda p: p.sum() - 1},
                {
                    "type": "ineq",
                    "fun": lambda p, s=share, r=ball_radius: r - 0.5 * np.sum((p - s) ** 2 / s),
                },
            ],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        value = losses @ (share * np.asarray(ratios))
        assert value == pytest.approx(-found.fun, abs=1e-6)
        assert np.sum(share * np.asarray(ratios)) == pytest.approx(1)


def test_variance():
    """Mean losses 1, 2; excess -.5, .5; 2 x .1 / (2 - 1) x 4 / 2 = .4 for each unit of excess."""
    rule = make("variance", 3, alpha=0.1)
    state = rule.observe(rule.init(), batch([2, 2, 0], loss=[1, 2, 0]))
    close(rule.knobs(state).loss_weight, [0.8, 1.2, 1])


def test_variance_has_the_gradient_of_the_penalised_loss(rng):
    labels = np.asarray([0] * 5 + [1] * 3 + [2] * 4)
    members = jnp.asarray(np.eye(3)[labels], jnp.float32)
    number = members.sum(0)

    def losses(x):
        return jnp.exp(x)

    def penalised(x):
        means = losses(x) @ members / number
        return jnp.mean(losses(x)) + 0.7 * jnp.var(means, ddof=1)

    x = jnp.asarray(rng.normal(size=12), jnp.float32)
    rule = make("variance", 3, alpha=0.7)
    means = np.asarray(losses(x) @ members / number)
    weights = rule.knobs(rule.observe(rule.init(), batch([5, 3, 4], loss=means))).loss_weight
    ours = jax.grad(lambda x: jnp.mean(weights[labels] * losses(x)))(x)
    close(ours, jax.grad(penalised)(x), rtol=1e-4)


def test_fairmix_adaptive():
    """Robust risks .1, .5, mean .3, gain 2; z = -1.28155, 0, so 1 - z^2 = -.64238, 1.

    The advantages are .2 times .64238 and .2, which lie .2 times .17881 around their mean.
    """
    told = epoch(1, robust=counts([10, 10], [9, 5]))
    easy = make("fairmix_adaptive", 2)
    close(easy.knobs(easy.update(easy.init(), told)).mixing, [1.4, 0.6])
    boundary = make("fairmix_adaptive", 2, signal="boundary")
    state = boundary.update(boundary.init(), told)
    close(boundary.knobs(state).mixing, [1 - 0.2 * 0.35762, 1 + 0.2 * 0.35762])
    clean = make("fairmix_adaptive", 2, risk="clean")
    told = epoch(1, clean=counts([10, 10], [10, 0]))
    close(clean.knobs(clean.update(clean.init(), told)).mixing, [2, 0])


@pytest.mark.parametrize("signal", ["easy", "boundary"])
def test_fairmix_adaptive_in_the_model_that_it_comes_from(rng, signal):
    """Against uniform mixing of the same mean strength (docs/theory/statements.md, S16)."""
    rule = make("fairmix_adaptive", 2, signal=signal)
    number = 0
    while number < 300:
        ratio, margin = rng.uniform(1.1, 4), rng.uniform(0.1, 3)
        plus, minus = theory.class_risks(theory.optimal_bias(margin, ratio), margin, ratio)
        z = special.ndtri(np.asarray([plus, minus]))
        if (z**2 > 4).any() or abs((z**2).sum() - 2) < 0.05 or plus - minus < 0.01:
            continue
        number += 1
        images = 1e6
        right = np.round(images * np.asarray([1 - plus, 1 - minus]))
        told = epoch(1, robust=counts([images, images], right))
        strength = np.asarray(rule.knobs(rule.update(rule.init(), told)).mixing, np.float64)
        close(strength.mean(), 1)
        gaps = []
        for plus_strength, minus_strength in (strength, np.ones(2)):
            s, s_minus = 1 - 1e-4 * plus_strength, 1 - 1e-4 * minus_strength
            beta = theory.optimal_bias(margin, ratio, s=s, s_minus=s_minus)
            gaps.append(float(theory.disparity(beta, margin, ratio)))
        helps = signal == "boundary" or (z**2).sum() > 2
        assert (gaps[0] < gaps[1]) == helps, (ratio, margin, z, strength, gaps)


@pytest.mark.parametrize(
    "name, options",
    [
        ("frl", dict(rate=0.0, radius_rate=0.0)),
        ("wat", dict(eta=0.0, normalize=True)),
        ("dafa", dict(strength=0.0, warmup_epochs=1)),
        ("trix", dict(strength=0.0, warmup_epochs=1, mixed=False)),
        ("cfol", dict(learning_rate=0.0)),
        ("faal", dict(ball_radius=0.0)),
        ("chi2_dro", dict(ball_radius=0.0)),
        ("variance", dict(alpha=0.0)),
        ("fairmix_adaptive", dict(gain=0.0)),
        ("none", {}),
    ],
)
def test_without_gain_every_knob_is_one(name, options, rng):
    rule = make(name, 4, **options)
    state = driven(rule, *(random_epoch(rng, number) for number in (1, 2, 3)))
    for knob in rule.knobs(state):
        close(knob, np.ones(4), rtol=2e-6)


def test_weights_keep_their_sums(rng):
    """FRL's have mean 1; WAT's with the last expert sum to K; CFOL's frequencies to K."""
    frl, wat, cfol = make("frl", 4, tolerance=0.0), make("wat", 4), make("cfol", 4)
    for number in range(20):
        told = [random_epoch(rng, number), random_epoch(rng, number)]
        knobs = frl.knobs(driven(frl, *told))
        close(jnp.mean(knobs.ce_weight), 1)
        close(jnp.mean(knobs.beta), 1)
        state = driven(wat, *told)
        last = 4 * jax.nn.softmax(0.1 * state["gains"])[-1]
        close(jnp.sum(wat.knobs(state).loss_weight) - 3 * last, 4)
        close(jnp.sum(cfol.knobs(driven(cfol, *told)).sampling), 4)


def test_the_official_variance_is_not_ours():
    """Over ten losses and ninety zeros it is (v + m^2) / 11, mostly the squared mean."""
    losses = np.random.default_rng(0).uniform(0.5, 2, 10)
    official = np.var(np.append(losses, np.zeros(90)), ddof=1)
    mean, variance = losses.mean(), losses.var(ddof=1)
    assert official == pytest.approx((variance + mean**2) / 11)
    assert official > 1.5 * variance / 11 and mean**2 > variance


def test_cfa_of_equal_classes_is_plain():
    rule = make("cfa", 4, warmup_epochs=0)
    for knob in rule.knobs(driven(rule, equal_epoch())):
        close(knob, np.ones(4))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("frl", dict(limit=2.0), "rule.limit=2.0 is out of range"),
        ("dafa", dict(warmup_epochs=0), "rule.warmup_epochs=0 is out of range"),
        ("cfol", dict(gamma=0.0), "rule.gamma=0.0 is out of range"),
        ("cfol", dict(by="hand"), "rule.by='hand' is unknown"),
        ("cfa", dict(radius_offset="0.5"), "rule.radius_offset='0.5' has the wrong type"),
        (
            "faal",
            dict(ball_radius=99.0),
            r"rule.ball_radius=99.0 is out of range; give a number in \[0, 9\]",
        ),
        ("chi2_dro", dict(ball_radius=-1.0), "rule.ball_radius=-1.0 is out of range"),
        ("variance", dict(alpha=float("nan")), "rule.alpha=nan is out of range"),
        ("fairmix_adaptive", dict(signal="hard"), "rule.signal='hard' is unknown"),
        ("fairmix_adaptive", dict(risk="none"), "rule.risk='none' is unknown"),
        ("fairmix_adaptive", dict(gain=-1.0), "rule.gain=-1.0 is out of range"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, 3, **options)
