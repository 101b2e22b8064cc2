"""What every base, rule, mixing and averaging has in common; finds the members by itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statistics_of_classes import (
    NUM_CLASSES,
    driven,
    equal_epoch,
    make_rule,
    permuted,
    random_epoch,
)
from tiny import TOTAL_STEPS, StopAfter, assemble, build, fit, run, tiny

from fairmix_jax.methods import mixing
from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import Interrupted
from fairmix_jax.training import loop
from fairmix_jax.training.checkpoints import digest
from fairmix_jax.types import VALIDATION, Knobs, Source

RULES = registry.names("rules")
AXES = [("base", name) for name in registry.names("bases")]
AXES += [("rule", name) for name in RULES]
AXES += [("averaging", name) for name in registry.names("averaging")]
AXES += [("mixing", name) for name in mixing.NAMES]

FIELDS = [
    pytest.param(axis, name, field, id=f"{name}.{field.name}")
    for axis in ("bases", "rules", "averaging", "calibrations")
    for name in registry.names(axis)
    for field in registry.fields(axis, name).values()
]

LOWEST = dict.fromkeys(Knobs._fields, 0.0) | {"sampling": 0.5}  # gamma of cfol
HIGHEST = {"mixing": 2}
MAY_BE_NEGATIVE = {("variance", "loss_weight")}


@pytest.mark.parametrize("axis, name, field", FIELDS)
def test_direct_callers_are_told_what_an_annotation_excludes(axis, name, field):
    given = {"bases": (None, None), "averaging": ()}.get(axis, (3,))
    make, argument = registry.load(axis, name), field.name.split(".")[1]
    with pytest.raises(ValueError, match=f"{field.name}=b'x' has the wrong type; "):
        make(*given, **{argument: b"x"})


def test_the_members_that_the_project_promises():
    assert set(registry.names("bases")) >= {
        "standard", "pgd_at", "trades", "mart", "fgsm_rs", "n_fgsm",
    }  # fmt: skip
    assert set(RULES) >= {
        "none", "frl", "cfa", "wat", "dafa", "cfol", "faal", "chi2_dro", "variance", "trix",
        "fairmix_adaptive",
    }  # fmt: skip
    assert set(registry.names("averaging")) >= {"none", "ema", "fawa"}
    assert set(registry.names("calibrations")) >= {"none", "class_bias", "head_norm"}


@pytest.mark.parametrize("axis", ["bases", "rules", "averaging", "calibrations"])
def test_every_member_names_its_source(axis):
    for name in registry.names(axis):
        assert registry.member(axis, name).SOURCE != Source("not stated")


@pytest.mark.parametrize("name", RULES)
def test_rule_reads_and_sets_what_there_is(name):
    rule = make_rule(name)
    assert set(rule.sets) <= set(Knobs._fields)
    assert set(rule.reads) <= VALIDATION | {"batch", "train"}


@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 2**32 - 1))
def test_knobs_are_finite_in_range_and_one_where_the_rule_does_not_set_them(name, seed):
    rng, rule = np.random.default_rng(seed), make_rule(name)
    epochs = [random_epoch(rng, number, is_sparse=True) for number in (1, 2)]
    for field, knob in rule.knobs(driven(rule, *epochs))._asdict().items():
        assert knob.shape == (NUM_CLASSES,) and knob.dtype == jnp.float32
        assert np.isfinite(knob).all()
        if (name, field) not in MAY_BE_NEGATIVE:
            assert (np.asarray(knob) >= LOWEST[field]).all(), (field, knob)
        assert (np.asarray(knob) <= HIGHEST.get(field, np.inf)).all()
        if field not in rule.sets:
            assert (np.asarray(knob) == 1).all()


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_sets_moves(name, rng):
    rule = make_rule(name)
    knobs = rule.knobs(driven(rule, *(random_epoch(rng, number) for number in (1, 2, 3))))
    for field in rule.sets:
        assert (np.asarray(getattr(knobs, field)) != 1).any(), field


@pytest.mark.parametrize("name", RULES)
def test_a_rule_depends_on_nothing_that_it_does_not_read(name, rng):
    rule = make_rule(name)
    one, other = random_epoch(rng), random_epoch(rng)
    states = []
    for epoch in (one, other):
        kept = {field: getattr(one, field) for field in VALIDATION & set(rule.reads)}
        kept |= {"train": one.train} if "train" in rule.reads else {}
        seen = one.train if "batch" in rule.reads else epoch.train
        states.append(rule.update(rule.observe(rule.init(), seen), epoch._replace(**kept)))
    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize("name", RULES)
def test_classes_of_equal_statistics_have_equal_knobs(name):
    rule = make_rule(name)
    for knob in rule.knobs(driven(rule, equal_epoch(), equal_epoch())):
        np.testing.assert_allclose(knob, np.full(NUM_CLASSES, knob[0]), rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_permuted_classes_have_permuted_knobs(name, rng):
    rule, order = make_rule(name), np.asarray([2, 0, 3, 1])
    epochs = [random_epoch(rng, number) for number in (1, 2)]
    plain = rule.knobs(driven(rule, *epochs))
    moved = rule.knobs(driven(rule, *(permuted(epoch, order) for epoch in epochs)))
    chex.assert_trees_all_close(permuted(plain, order), moved, rtol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_updates_are_pure_and_keep_the_state_fixed(name, rng):
    rule, epoch = make_rule(name), random_epoch(rng)
    before = digest((rule.init(), epoch))
    once, twice = driven(rule, epoch), driven(rule, epoch)
    chex.assert_trees_all_equal(once, twice)
    chex.assert_trees_all_equal_shapes_and_dtypes(rule.init(), once)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(once))
    assert digest((rule.init(), epoch)) == before
    jitted = jax.jit(rule.update)(jax.jit(rule.observe)(rule.init(), epoch.train), epoch)
    chex.assert_trees_all_close(jitted, once, rtol=1e-5)


def member(axis, name, *, is_linear=True):
    """A tiny config with one axis changed."""
    changes = {f"{axis}__name": name}
    if is_linear:
        changes |= dict(model__name="linear", model__width=None)
    if axis == "averaging":
        changes |= dict(averaging__decay=None)
    if axis == "rule" and "warmup_epochs" in registry.parameters("rules", name):
        changes |= dict(rule__warmup_epochs=1)
    if name == "fairmix_adaptive":
        changes |= dict(mixing__name="same_class", mixing__probability=0.5)
    return tiny(**changes)


@pytest.mark.parametrize("axis, name", AXES)
def test_one_trace_finite_and_the_same_on_two_devices(axis, name):
    """Sums over the batch are split in two, so equality is up to rounding through three steps.

    TRADES starts its attack next to the image, where the gradient is so small that rounding
    turns its sign; a uniform start takes that away.
    """
    config = member(axis, name, is_linear=axis != "base")
    if name == "trades":
        config.base.start = "uniform"
    initial, one, metrics = run(config)
    chex.assert_trees_all_equal_shapes_and_dtypes(initial, one)
    assert np.isfinite(metrics.loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one.params))
    trainer, data = assemble(config)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        for spec in (("data",), ())
    )
    two = jax.device_put(trainer.initial_state, everywhere)
    key, step = jax.device_put(jax.random.key(7), everywhere), jax.jit(trainer.train_step)
    for batch in data:
        two, metrics_too = step(two, jax.device_put(batch, rows), key)
    chex.assert_trees_all_close(one.params, two.params, atol=2e-4)
    chex.assert_trees_all_close(one.rule_state, two.rule_state, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(metrics.loss, metrics_too.loss, rtol=1e-4)
    assert metrics.statistics.counts.total.tolist() == metrics_too.statistics.counts.total.tolist()


@pytest.mark.parametrize("axis, name", AXES)
def test_interrupted_and_resumed_equals_uninterrupted(axis, name, tmp_path, monkeypatch):
    config = member(axis, name)
    config.total_epochs, config.validation.every_epochs = 2, 1
    task = build(config)
    whole = fit(config, task, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", lambda: StopAfter(7))
        with pytest.raises(Interrupted, match="saved at step"):
            fit(config, task, tmp_path / "parts")
    assert fit(config, task, tmp_path / "parts") == whole


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("base", registry.names("bases"))
def test_every_base_with_every_rule_trains_twenty_steps(base, rule, tmp_path):
    """The digits smoke: four epochs of five steps, with validations in between."""
    config = tiny(base__name=base, rule__name=rule, total_epochs=4, model__width=8)
    config.validation.every_epochs = 1
    if "warmup_epochs" in registry.parameters("rules", rule):
        config.rule.warmup_epochs = 1
    if rule == "fairmix_adaptive":
        config.mixing.name, config.mixing.probability = "same_class", 0.5
    fit(config, build(config), tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert len(text.splitlines()) == 4 and f'"step": {TOTAL_STEPS}' in text
    assert "NaN" not in text and "Infinity" not in text
