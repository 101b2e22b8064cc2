"""Base losses by hand and by reduction; the attack inside them; weight perturbation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import assemble, build, run, tiny

from fairmix_jax.methods import awp, mixing
from fairmix_jax.methods.rules import none
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.runtime import registry
from fairmix_jax.training.checkpoints import digest
from fairmix_jax.training.step import initial_state, make_train_step
from fairmix_jax.types import Base, BaseLoss, Batch, Knobs, Rule, StepInput, ThreatModel, Weights


def pixels_are_logits(params, batch_stats, images, *, train, hidden=lambda x: x):
    """A model without weights: image `[1, K, 1]` to logits `[K]`; counts training passes."""
    logits = params["scale"] * hidden(images)[:, 0, :, 0]
    return logits, batch_stats + 1 if train else batch_stats


def inputs_of(images, labels, num_classes, **changes):
    ones = jnp.ones(len(images))
    targets = jax.nn.one_hot(labels, num_classes)
    given = StepInput(images, targets, labels, *[ones] * 4)
    return given._replace(**changes)


def loss_by_hand(name, **options):
    """Logits (0, 0) at x and (ln 3, 0) at x', class 0: p = (1/2, 1/2), p' = (3/4, 1/4)."""
    attack = TrainingAttack(ThreatModel(bounds=(-9.0, 9.0)), num_steps=0, step_size=0.1)
    base = registry.load("bases", name)(pixels_are_logits, attack, **options)
    clean = jnp.zeros((1, 1, 2, 1))
    robust = clean.at[0, 0, 0, 0].set(jnp.log(3.0))
    knobs = {"beta": jnp.asarray([0.5]), "ce_weight": jnp.asarray([2.0])}
    inputs = inputs_of(clean, jnp.asarray([0]), 2, **knobs)
    params = {"scale": jnp.ones(())}
    return base.loss(params, jnp.zeros(()), inputs, robust)


KL = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)


def test_trades_by_hand():
    """Knob 2 x ln 2 + 6 x knob .5 x KL; two training passes, logits at x'."""
    result = loss_by_hand("trades")
    np.testing.assert_allclose(result.losses, [2 * np.log(2) + 3 * KL], rtol=1e-6)
    np.testing.assert_allclose(result.logits, [[np.log(3), 0]], rtol=1e-6)
    assert result.batch_stats == 2
    normal = loss_by_hand("trades", normalize=True)
    np.testing.assert_allclose(normal.losses, [(2 * np.log(2) + 3 * KL) / 4], rtol=1e-6)


def test_mart_by_hand():
    """2 x (-ln .75 - ln(1.0001 - .25)), the wrong class at .25; KL (1.0000001 - .5) x 5 x .5."""
    result = loss_by_hand("mart")
    expected = 2 * (-np.log(0.75) - np.log(0.7501)) + 2.5 * KL * 0.5000001
    np.testing.assert_allclose(result.losses, [expected], rtol=1e-6)
    assert result.batch_stats == 2


def test_trades_gradient_can_stop_at_the_clean_argument():
    """d/ds KL(p(s x) || p(s x')) has a part through p unless that is held."""

    def gradient(**options):
        attack = TrainingAttack(ThreatModel(bounds=(-9.0, 9.0)), num_steps=0, step_size=0.1)
        base = registry.load("bases", "trades")(pixels_are_logits, attack, **options)
        clean = jnp.asarray([[[[1.0], [0.0]]]])
        inputs = inputs_of(clean, jnp.asarray([0]), 2)

        def loss(scale):
            return base.loss({"scale": scale}, jnp.zeros(()), inputs, 2 * clean).losses[0]

        return float(jax.grad(loss)(jnp.ones(())))

    p, q = (1 / (1 + np.exp(-x)) for x in (1.0, 2.0))
    through_robust = 2 * (q - p)
    through_clean = p * (1 - p) * (np.log(p / q) - np.log((1 - p) / (1 - q)))
    clean = p - 1
    assert gradient() == pytest.approx(clean + 6 * (through_robust + through_clean), rel=1e-5)
    assert gradient(clean_gradient=False) == pytest.approx(clean + 6 * through_robust, rel=1e-5)


def assert_same_training(one, other, atol=1e-5):
    chex.assert_trees_all_close(run(one)[1].params, run(other)[1].params, atol=atol)


@pytest.mark.parametrize(
    "changes",
    [
        dict(base__name="trades", base__beta=0.0),
        dict(base__name="trades", attack__epsilon=0.0),
        dict(base__name="fgsm_rs", attack__epsilon=0.0),
        dict(base__name="n_fgsm", attack__epsilon=0.0),
        dict(base__name="pgd_at", attack__epsilon=0.0, attack__batch_norm="train"),
    ],
)
def test_without_a_robust_term_or_radius_a_base_is_standard(changes):
    assert_same_training(tiny(**changes), tiny(base__name="standard"))


def test_mart_without_divergence_is_its_boosted_loss():
    """Beta 0 and radius 0 agree with each other, and not with the plain cross-entropy."""
    without_beta = tiny(base__name="mart", base__beta=0.0, attack__epsilon=0.0)
    assert_same_training(without_beta, tiny(base__name="mart", attack__epsilon=0.0))
    standard = run(tiny(base__name="standard"))[2].loss
    assert float(run(without_beta)[2].loss) > float(standard)


def test_fgsm_rs_is_one_pgd_step_of_its_size():
    one_step = tiny(attack__num_steps=1, attack__step_size=1.25 * 0.2)
    assert digest(run(one_step)[1].params) == digest(run(tiny(base__name="fgsm_rs"))[1].params)


@pytest.mark.parametrize("noise, step, reach", [(2.0, 1.0, 3.0), (0.0, 1.0, 1.0)])
def test_n_fgsm_leaves_the_ball_but_not_the_bounds(rng, noise, step, reach):
    threat = ThreatModel(epsilon=0.1)
    attack = TrainingAttack(threat, num_steps=10, step_size=0.01)
    base = registry.load("bases", "n_fgsm")(pixels_are_logits, attack, noise=noise, step=step)
    images = jnp.asarray(rng.uniform(0, 1, (200, 1, 3, 1)), jnp.float32)
    inputs = inputs_of(images, jnp.zeros(200, jnp.int32), 3)
    params = {"scale": jnp.ones(())}
    offset = base.attack(params, jnp.zeros(()), jax.random.key(0), inputs) - images
    largest = float(jnp.max(jnp.abs(offset)))
    assert 0.8 * reach * 0.1 < largest <= reach * 0.1 + 1e-6
    assert float(jnp.min(images + offset)) >= 0 and float(jnp.max(images + offset)) <= 1
    assert base.single_step


@pytest.fixture(scope="module")
def network():
    """A small CNN with batch norm after three steps, and forty images."""
    config = tiny()
    model, (_, data) = build(config).model, assemble(config)
    _, state, _ = run(config)

    def apply(images, *, train):
        return model.apply(state.params, state.batch_stats, images, train=train)

    return apply, data[0]


def attacked(network, batch, *, key=0, inputs=None, **options):
    options = {"start": "none"} | options
    attack = TrainingAttack(ThreatModel(epsilon=0.2), num_steps=1, step_size=0.05, **options)
    inputs = inputs_of(batch.images, batch.labels, 10) if inputs is None else inputs
    return jax.jit(lambda: attack(network, jax.random.key(key), inputs))()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_one_step_follows_the_gradient_of_the_chosen_batch_norm(network, mode):
    apply, batch = network

    def total(images):
        logits, _ = apply(images, train=mode == "train")
        return -jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(batch.labels, 10))

    gradient = jax.grad(total)(batch.images)
    expected = jnp.clip(batch.images + 0.05 * jnp.sign(gradient), 0, 1)
    found = attacked(apply, batch, batch_norm=mode)
    is_clear = jnp.abs(gradient) > 1e-4 * jnp.max(jnp.abs(gradient))
    np.testing.assert_allclose(found[is_clear], expected[is_clear], atol=1e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_trades_compares_with_predictions_of_the_attack_s_own_mode(network, mode):
    """Where the attack starts at the image its divergence is zero, and so is its gradient."""
    apply, batch = network
    seen = []

    def apply_fn(params, batch_stats, images, *, train, hidden=None):
        seen.append(train)
        return apply(images, train=train)

    attack = TrainingAttack(ThreatModel(epsilon=0.2), 1, 0.05, batch_norm=mode)
    base = registry.load("bases", "trades")(apply_fn, attack, start="none")
    base.attack({}, {}, jax.random.key(0), inputs_of(batch.images, batch.labels, 10))
    assert set(seen) == {mode == "train"}


def test_examples_are_coupled_by_training_batch_norm_only(network):
    apply, batch = network
    other = batch._replace(images=batch.images.at[1:].set(0.5))
    for mode, is_same in (("eval", True), ("train", False)):
        pair = [attacked(apply, b, batch_norm=mode, start="uniform")[0] for b in (batch, other)]
        assert bool(jnp.allclose(*pair, atol=1e-6)) == is_same


@pytest.mark.parametrize("start, largest", [("none", 0.0), ("normal", 0.006), ("uniform", 0.2)])
def test_starts(network, start, largest):
    apply, batch = network
    attack = TrainingAttack(ThreatModel(epsilon=0.2, bounds=(-9.0, 9.0)), 0, 0.1, start=start)
    inputs = inputs_of(batch.images, batch.labels, 10)
    found = attack(apply, jax.random.key(3), inputs) - batch.images
    assert float(jnp.max(jnp.abs(found))) <= largest + 1e-6
    if largest:
        assert float(jnp.max(jnp.abs(found))) > 0.6 * largest
        assert abs(float(jnp.mean(found))) < 0.1 * largest


def test_radius_and_step_size_are_those_of_the_class(network):
    apply, batch = network
    factors = jnp.linspace(0, 2, 40)
    inputs = inputs_of(batch.images, batch.labels, 10, radius=factors, step_size=10 * factors)
    moved = jnp.abs(attacked(apply, batch, inputs=inputs) - batch.images).max((1, 2, 3))
    np.testing.assert_allclose(moved, 0.2 * factors, atol=1e-6)  # steps of ten radii at most
    inputs = inputs._replace(radius=jnp.ones(40), step_size=factors)
    moved = jnp.abs(attacked(apply, batch, inputs=inputs) - batch.images).max((1, 2, 3))
    np.testing.assert_allclose(moved, 0.05 * factors, atol=1e-6)


def test_targets_are_approached_and_the_rest_is_attacked_as_ever(network):
    apply, batch = network
    towards = jnp.where(jnp.arange(40) < 20, (batch.labels + 3) % 10, -1)
    found = attacked(apply, batch, targets=lambda key, probabilities, labels: towards)
    plain = attacked(apply, batch)
    np.testing.assert_allclose(found[20:], plain[20:], atol=1e-6)

    def probability(images):
        scores = jax.nn.softmax(apply(images, train=False)[0])
        return jnp.take_along_axis(scores, jnp.maximum(towards, 0)[:, None], axis=1)[:20]

    assert float(jnp.mean(probability(found) - probability(plain))) > 0
    assert float(jnp.min(probability(found) - probability(batch.images))) > 0


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("trades", dict(beta=-1.0), "base.beta=-1.0 is out of range"),
        ("mart", dict(beta=-1.0), "base.beta=-1.0 is out of range"),
        ("mart", dict(start="x"), "base.start='x' is unknown"),
        ("fgsm_rs", dict(step=0.0), "base.step=0.0 is out of range"),
        ("n_fgsm", dict(noise=-1.0), "base.noise=-1.0 is out of range"),
    ],
)
def test_wrong_options_of_a_base_are_named(name, options, message):
    attack = TrainingAttack(ThreatModel(), num_steps=1, step_size=0.1)
    with pytest.raises(ValueError, match=message):
        registry.load("bases", name)(pixels_are_logits, attack, **options)


@pytest.mark.parametrize("field", ["batch_norm", "start"])
def test_unknown_choices_are_named(network, field):
    apply, batch = network
    with pytest.raises(ValueError, match=f"{field}='x' is unknown"):
        attacked(apply, batch, **{field: "x"})


def test_awp_moves_each_matrix_by_gamma_of_its_length(rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)}
    gradient = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)}
    moved = awp.perturb(params, gradient, gamma=0.01)
    offset = moved["kernel"] - params["kernel"]
    assert float(jnp.linalg.norm(offset)) == pytest.approx(
        0.01 * float(jnp.linalg.norm(params["kernel"])), rel=1e-3
    )
    chex.assert_trees_all_equal(moved["bias"], params["bias"])
    chex.assert_trees_all_equal(awp.perturb(params, gradient, gamma=0.0), params)
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    chex.assert_trees_all_equal(awp.perturb(params, nothing, gamma=0.01), params)


@pytest.mark.parametrize("proxy_rate", [1e-3, 0.1, 10.0])
def test_awp_is_a_proxy_step_rescaled_whatever_its_rate(rng, proxy_rate):
    """The original: proxy = w + rate g, then w + gamma (proxy - w) ||w|| / ||proxy - w||."""
    weight, gradient = (rng.normal(size=(5, 6)) for _ in range(2))
    step = (weight + proxy_rate * gradient) - weight
    expected = weight + 0.01 * step * np.linalg.norm(weight) / np.linalg.norm(step)
    ours = awp.perturb(*(jnp.asarray(a, jnp.float32) for a in (weight, gradient)), gamma=0.01)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_awp_of_gamma_zero_and_before_its_warmup_is_the_base():
    plain = run(tiny())[1].params
    chex.assert_trees_all_close(run(tiny(awp__gamma=0.0))[1].params, plain, atol=0)
    waiting = tiny(awp__gamma=0.01, awp__warmup_epochs=1)
    chex.assert_trees_all_close(run(waiting)[1].params, plain, atol=1e-6)
    assert digest(run(tiny(awp__gamma=0.01))[1].params) != digest(plain)


def hand_made_step(rule, *, losses, seen=None, **options):
    """A training step of the parameters `[1, 2]` with losses and attack made by hand."""

    def attack(params, batch_stats, key, inputs):
        if seen is not None:
            seen.append(inputs)
        return inputs.images

    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    step = make_train_step(
        base=Base(
            attack, lambda p, stats, inputs, x: BaseLoss(losses(p), jnp.zeros((4, 2)), stats)
        ),
        rule=rule,
        tx=tx,
        num_classes=2,
        **options,
    )
    params = jnp.asarray([[3.0, 4.0]])
    state = initial_state(Weights(params, ()), tx=tx, rule=rule)
    labels = jnp.asarray([0, 1, 1, 1], jnp.int32)
    batch = Batch(jnp.zeros((4, 1, 1, 1)), labels, jnp.arange(4), jnp.ones(4, bool))
    return params, *step(state, batch, jax.random.key(0))


def test_a_step_without_a_rule_needs_the_number_of_classes():
    base = Base(lambda *_: None, lambda *_: None)
    with pytest.raises(ValueError, match="num_classes"):
        make_train_step(base=base, tx=optax.sgd(0.1), mixing=mixing.make("none", 2))


def test_awp_steps_from_the_weights_with_the_gradient_of_the_shifted_ones():
    """Loss ||w||^2 / 2, whose gradient is w: w + gamma ||w|| g / ||g|| = 1.1 w."""
    params, state, _ = hand_made_step(
        none.make(2), losses=lambda p: jnp.full(4, 0.5 * jnp.sum(p**2)), awp_gamma=0.1
    )
    shifted = 1.1 * params
    np.testing.assert_allclose(state.params, params - 0.1 * (shifted + 0.5 * shifted), rtol=1e-6)


def test_the_step_follows_the_knobs_and_the_weights_of_its_own_batch():
    """The rule's state counts the batch: class 0 once, class 1 three times.

    Losses are w_0 for the first example and w_1 for the others, so with weights 10 x counts
    the mean loss is (10 w_0 + 3 x 30 w_1) / 4, and its gradient 2.5, 22.5.
    """
    seen = []
    rule = Rule(
        init=lambda: jnp.zeros(2),
        knobs=lambda state: Knobs(
            loss_weight=10 * state,
            ce_weight=state + jnp.asarray([1.0, 2.0]),
            radius=state + jnp.asarray([3.0, 4.0]),
            step_size=state + jnp.asarray([5.0, 6.0]),
            beta=state + jnp.asarray([7.0, 8.0]),
            sampling=jnp.ones(2),
            mixing=jnp.ones(2),
        ),
        observe=lambda state, statistics: state + statistics.counts.total.astype(jnp.float32),
    )
    params, state, metrics = hand_made_step(
        rule, seen=seen, losses=lambda p: p[0][jnp.asarray([0, 1, 1, 1])]
    )
    expected = params - 0.1 * (jnp.asarray([[2.5, 22.5]]) + 0.5 * params)
    np.testing.assert_allclose(state.params, expected, rtol=1e-6)
    np.testing.assert_allclose(state.rule_state, [1, 3])
    assert float(metrics.loss) == pytest.approx(10 * 3 + 30 * 3 * 4)
    (inputs,) = seen
    for field, values in (
        ("ce_weight", [1, 2]), ("radius", [3, 4]), ("step_size", [5, 6]), ("beta", [7, 8])
    ):  # fmt: skip
        given = getattr(inputs, field)
        np.testing.assert_allclose(given, np.asarray(values)[[0, 1, 1, 1]])
