"""Weights that a function closes over may change: every entry point takes those of now."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from fairmix_jax import ThreatModel, attacks, calibration, classwise
from fairmix_jax.attacks import masking
from fairmix_jax.runtime.closures import as_partial

THREAT = ThreatModel("linf", 0.1)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(12, 2, 2, 3)).astype(np.float32)
LABELS = np.arange(12) % 3
FIRST, SECOND = RNG.normal(size=(2, 12, 3)).astype(np.float32)
ONE = IMAGES[:1]


def linear(weights, images):
    return jnp.reshape(images, (len(images), -1)) @ weights


def on_one_batch(attack, **options):
    def run(logits_fn):
        return attack(logits_fn, jax.random.key(0), IMAGES, LABELS, threat=THREAT, **options)

    return run


@functools.cache
def randomized(logits_fn):
    return attacks.Randomized(lambda images, key: logits_fn(images))


def evaluated(logits_fn):
    settings = classwise.Settings(attacks="clean,pgd2,fast", masking=False)
    found = classwise.evaluate(
        logits_fn, IMAGES, LABELS, class_names=["a", "b", "c"], threat=THREAT, settings=settings
    )["attacks"]
    return [of["class_correct"] for of in found.values()]


def examined(logits_fn):
    findings = masking.examine(logits_fn, IMAGES, LABELS, threat=THREAT, num_steps=2).findings
    return [of.per_class for of in findings], [of.value for of in findings]


ENTRIES = {
    "pgd": on_one_batch(attacks.pgd, num_steps=2, step_size=0.05, random_start=False),
    "apgd": on_one_batch(attacks.apgd, num_steps=3),
    "apgd_targeted": on_one_batch(attacks.apgd_targeted, num_steps=3),
    "fab": on_one_batch(attacks.fab, num_steps=3),
    "square": on_one_batch(attacks.square, num_queries=20),
    "autoattack": lambda f: attacks.autoattack(
        f, IMAGES, LABELS, threat=THREAT, version="fast"
    ).adversarial,
    "random": lambda f: attacks.autoattack(
        randomized(f), IMAGES, LABELS, threat=THREAT, version="rand"
    ).adversarial,
    "robustness_curve": lambda f: attacks.robustness_curve(
        f, IMAGES, LABELS, threat=THREAT, epsilons=(0.05, 0.1), version="fast"
    ),
    "margin_table": lambda f: calibration.margin_table(
        f, IMAGES, LABELS, threat=THREAT, num_steps=2
    ),
    "evaluate": evaluated,
    "examine": examined,
}  # fmt: skip


def plain(found):
    leaves = jax.tree.leaves(found)
    return [leaf for leaf in leaves if not isinstance(leaf, str)]


@pytest.mark.filterwarnings("ignore:logits_fn ")
@pytest.mark.parametrize("name", ENTRIES)
def test_weights_bound_anew_are_those_that_are_attacked(name):
    weights = FIRST

    def logits_fn(images):
        return linear(weights, images)

    before = plain(ENTRIES[name](logits_fn))
    weights = SECOND
    after = plain(ENTRIES[name](logits_fn))
    expected = plain(ENTRIES[name](lambda images: linear(SECOND, images)))
    for ours, theirs in zip(after, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True))


def changes():
    """Functions, and what changes them: `(function, change)`."""
    module = nnx.Linear(12, 3, rngs=nnx.Rngs(0))
    array, number, rows = FIRST.copy(), [1.0], [0, 1, 2]

    class Model:
        weights = jnp.asarray(FIRST)

        def __call__(self, images):
            return linear(self.weights, images)

        def logits(self, images):
            return linear(self.weights, images)

    class WithoutHash(Model):
        __hash__ = None

    model, other = Model(), WithoutHash()
    return {
        "a module trained in place": (
            lambda x: module(x.reshape(len(x), -1)),
            lambda: setattr(module, "kernel", nnx.Param(jnp.asarray(SECOND))),
        ),
        "NumPy in place": (lambda x: linear(array, x), lambda: array.__imul__(2)),
        "a number": (lambda x: number[0] * linear(FIRST, x), lambda: number.__setitem__(0, 2.0)),
        "an order": (lambda x: linear(FIRST, x)[:, np.array(rows)], rows.reverse),
        "a method": (model.logits, lambda: setattr(model, "weights", jnp.asarray(SECOND))),
        "an object": (model, lambda: setattr(model, "weights", jnp.asarray(FIRST) * 3)),
        "no hash": (other, lambda: setattr(other, "weights", jnp.asarray(SECOND))),
    }


@pytest.mark.parametrize("name", changes())
def test_a_function_is_itself_until_what_it_computes_changes(name):
    function, change = changes()[name]
    first = as_partial(function, ONE)
    again = as_partial(function, ONE)
    assert (first == again) == (name != "no hash")
    before = np.asarray(jax.jit(lambda f, x: f(x))(first, IMAGES))
    change()
    now = as_partial(function, ONE)
    assert now != again
    after = np.asarray(jax.jit(lambda f, x: f(x))(now, IMAGES))
    np.testing.assert_allclose(after, np.asarray(function(IMAGES)), atol=1e-5)
    assert not np.array_equal(before, after)


def test_a_partial_is_left_alone_and_its_new_weights_compile_nothing():
    function = Partial(linear, jnp.asarray(FIRST))
    assert as_partial(function, ONE) is function


def test_a_second_call_of_the_same_function_compiles_nothing():
    def logits_fn(images):
        return linear(FIRST, images)

    run = ENTRIES["autoattack"]
    run(logits_fn)
    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax._src.compiler.compile_or_get_cached", lambda *a, **k: compiled.append(a))
        run(logits_fn)
    assert compiled == []


def test_weights_that_jax_traces_are_traced():
    def attacked(weights):
        return ENTRIES["pgd"](lambda images: linear(weights, images))

    both = jax.vmap(attacked)(jnp.stack([FIRST, SECOND]))
    for ours, weights in zip(both, (FIRST, SECOND), strict=True):
        np.testing.assert_allclose(ours, attacked(jnp.asarray(weights)), atol=1e-6)
