"""What decides multiplies at full precision wherever it is lowered to; CPUs keep their programs.

The text of a program lowered for TPU, which this machine need not have, shows the precision of
every product; test_compile.py has what XLA's compiler for TPUs makes of it.
"""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from fairmix_jax.attacks import ThreatModel, apgd, autoattack, device_pools, fab, pgd, plan, square
from fairmix_jax.attacks.autoattack import members
from fairmix_jax.attacks.stepwise import misclassified, partial_of
from fairmix_jax.calibration import margin_table
from fairmix_jax.classwise import Settings, attack_names, evaluate, step_attacks
from fairmix_jax.methods.class_bias import margin_tables
from fairmix_jax.models.rewrite_convolutions import rewrite_convolutions
from fairmix_jax.runtime import inputs, precision
from fairmix_jax.training import epoch_end
from fairmix_jax.types import Batch, Weights

THREAT, CLOSE = ThreatModel("linf", 0.004), ThreatModel("linf", 0.0005)
IMAGES = jax.random.uniform(jax.random.key(0), (40, 8, 8, 3))
LABELS = jnp.arange(40, dtype=jnp.int32) % 5
BATCH = Batch(IMAGES, LABELS, jnp.arange(40), jnp.ones(40, bool))
KEY, ONE = jax.random.key(1), jnp.float32(1)
PASS = 3
"""Products of a forward pass of the network, two convolutions and one of matrices."""


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(nn.relu(nn.Conv(5, (3, 3))(x))))
        return nn.Dense(5)(x.reshape(len(x), -1))


def network():
    variables = Network().init(jax.random.key(2), IMAGES)
    return Partial(Network().apply, variables)


def products(function, *arguments, platform="tpu"):
    """How many products of a program, lowered for a platform, have which precision."""
    traced = jax.jit(function).trace(*arguments)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    lines = [x for x in text.splitlines() if re.search(r"stablehlo\.(convolution|dot_gen)", x)]
    return Counter("highest" if "HIGHEST" in line else "default" for line in lines)


def judge(name, **settings):
    (choice,) = attack_names.parse(name)
    found = step_attacks.make_judge(choice, threat=THREAT, settings=Settings(**settings))
    return found.__wrapped__, network(), BATCH, KEY, ONE


def one_batch(attack, **options):
    attack = partial(attack, threat=THREAT, **options)
    return lambda x: attack(network(), KEY, x, LABELS), IMAGES


def pools(search_precision):
    (attack,) = members(["apgd-ce"], THREAT).values()
    mesh = jax.sharding.Mesh(jax.devices()[:1], "device")
    shape, model = IMAGES.shape, partial_of(network(), IMAGES)
    local = device_pools._advance.__wrapped__
    queue, pool = queue_and_pool(attack, mesh, shape)
    how = attack, mesh, True, search_precision
    return partial(local, *how), model, None, queue, pool, np.int32(1), np.int32(0)


def queue_and_pool(attack, mesh, shape):
    state = plan.Plan(
        partial_of(network(), IMAGES), np.asarray(IMAGES), np.asarray(LABELS), np.arange(40),
        np.ones(40, bool), THREAT, {"apgd-ce": attack}, devices=mesh.devices.ravel(),
    )  # fmt: skip
    found = device_pools.VerdictState(state.images, state.attacked, 2)
    found.begin(1)
    return device_pools._fill(state, attack, KEY, found)[:2]


def clean_logits():
    return plan.predict, partial_of(network(), IMAGES), IMAGES, BATCH.index, KEY


def table_rows():
    attack = margin_tables.make_apgd(
        norm="linf", bounds=(0.0, 1.0), targeted=True, num_targets=1, loss="margin", num_steps=2
    )
    rows = partial(margin_tables._rows.__wrapped__, attack, 1)
    return rows, partial_of(network(), IMAGES), IMAGES, LABELS, BATCH.index, KEY, jnp.float32(0.004)


def validation(attack=None):
    variables = network().args[0]

    def apply_fn(params, batch_stats, images, train):
        return Network().apply({"params": params}, images), batch_stats

    weights = Weights(variables["params"], {})
    return partial(epoch_end._counts, apply_fn, 5, attack), weights, BATCH, KEY


PGD = partial(pgd, threat=THREAT, num_steps=2, step_size=0.002)
PROGRAMS = {  # what is lowered; forward passes that decide; whether others search
    "clean": (lambda: judge("clean"), 1, False),
    "fgsm": (lambda: judge("fgsm"), 1, True),
    "mifgsm": (lambda: judge("mifgsm2"), 1, True),
    "pgd": (lambda: judge("pgd2"), 2, True),  # the last iterate, and any
    "pgd with restarts": (lambda: judge("pgd2", num_restarts=2), 6, True),
    "pgd at the highest": (lambda: judge("pgd2", search_precision="highest"), None, False),
    "pgd alone": (lambda: (partial(PGD, network()), KEY, IMAGES, LABELS), 0, True),
    "apgd": (lambda: one_batch(apgd, num_steps=2), 2, True),
    "fab": (lambda: one_batch(fab, num_steps=2), 2, True),
    "square": (lambda: one_batch(square, num_queries=2), 2, True),
    "clean logits": (clean_logits, 1, 0),
    "autoattack": (lambda: pools("default"), 1, True),
    "autoattack at the highest": (lambda: pools("highest"), None, False),
    "margin table": (table_rows, 2, True),
    "validation": (validation, 1, False),
    "validation under attack": (lambda: validation(PGD), 1, True),
    "coupling": (
        lambda: (partial(inputs._answers, by_gradient=False), network(), IMAGES),
        1,
        False,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_decides_is_at_full_precision_and_what_searches_at_the_platforms(name):
    make, passes, is_searched = PROGRAMS[name]
    found, on_cpu = (products(*make(), platform=platform) for platform in ("tpu", "cpu"))
    assert passes is None or found["highest"] == passes * PASS
    assert (found["default"] > 0) == is_searched
    assert set(on_cpu) == {"default"}


def text_of(function):
    """The optimised program for this CPU, without the names of what it was traced from."""
    text = jax.jit(function).lower(IMAGES).compile().as_text()
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    return text[re.search(r"\n(ENTRY )?%\S+ \(", text).start() :]


@pytest.mark.filterwarnings("error")  # such as that of convolutions that cannot be restated
def test_on_cpu_nothing_is_another_program_than_it_was():
    model = rewrite_convolutions(network())
    assert text_of(precision.at_full_precision(model)) == text_of(model)


def rough(weights, images):
    """A network on a platform that rounds the pixels of products, unless it is told not to."""
    pixels = images.reshape(len(images), -1)
    if jax.config.jax_default_matmul_precision is None:
        pixels = pixels + jax.lax.stop_gradient(jnp.round(16 * pixels) / 16 - pixels)
    return jnp.matmul(pixels - 0.5, weights, precision="highest")


@pytest.fixture
def rounded(monkeypatch):
    """This machine as such a platform; images, their exact classes, and where rounding errs."""
    other = lambda *arguments, cpu, default: default(*arguments)  # noqa: E731
    monkeypatch.setattr(precision.lax, "platform_dependent", other)
    weights = jax.random.normal(jax.random.key(3), (8 * 8 * 3, 5))
    model = Partial(rough, weights)
    exact = jax.jit(precision.at_full_precision(model))
    is_wrong = misclassified(model(IMAGES), jnp.argmax(exact(IMAGES), 1))
    assert 0 < is_wrong.sum() < 20
    return model, exact, np.argmax(exact(IMAGES), 1).astype(np.int32)


def test_where_products_are_rounded_the_exact_network_has_the_last_word(rounded, tmp_path):
    model, exact, labels = rounded
    names = [f"class {k}" for k in range(5)]
    found = evaluate(
        model, np.asarray(IMAGES), labels, class_names=names, threat=CLOSE, directory=tmp_path,
        settings=Settings(attacks="clean,pgd3,apgd-ce", save_adversarial=True, masking=False),
    )  # fmt: skip
    results = found["attacks"]
    assert results["clean"]["average"] == 1 and results["apgd-ce"]["detail"]["unconfirmed"] == 0
    with np.load(tmp_path / "attacks" / "apgd-ce" / "verdicts.npz") as saved:
        adversarial, robust = saved["adversarial"], saved["robust"]
        predictions = saved["prediction"]
    np.testing.assert_array_equal(np.argmax(exact(adversarial), 1), predictions)
    np.testing.assert_array_equal(predictions == labels, robust)
    assert 0 < robust.sum() < 40
    assert (misclassified(model(IMAGES), labels) & robust).any()  # which the search believed broken
    assert found["settings"]["search_precision"] == "default"
    assert results["pgd3"]["average"] >= results["pgd3"]["any_iterate"]["average"]


@pytest.mark.parametrize("attack", [partial(apgd, num_steps=3), partial(square, num_queries=9)])
def test_an_attack_on_one_batch_returns_what_the_exact_network_misclassifies(rounded, attack):
    model, exact, labels = rounded
    found = attack(model, jax.random.key(4), IMAGES, labels, threat=THREAT)
    is_changed = jnp.any(found != IMAGES, axis=(1, 2, 3))
    np.testing.assert_array_equal(is_changed, misclassified(exact(found), labels))
    assert 0 < is_changed.sum() < 40


def test_a_margin_table_has_exact_margins(rounded):
    model, exact, labels = rounded
    table = margin_table(model, IMAGES, labels, threat=ThreatModel("linf", 0.0))
    logits = np.asarray(exact(IMAGES))
    margins = logits[np.arange(40), labels][:, None] - logits
    np.testing.assert_allclose(table, np.where(np.eye(5)[labels], np.inf, margins), atol=1e-5)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="search_precision='high' is unknown; choose one of"):
        autoattack(network(), IMAGES, LABELS, threat=THREAT, search_precision="high")
