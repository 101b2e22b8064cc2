"""One program on many devices: what they tell each other, and that results stay the same."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import linen as nn

from fairmix_jax.lab.compile.tpu import collectives
from fairmix_jax.models.layers import BatchNorm
from fairmix_jax.runtime import sharding
from fairmix_jax.runtime.errors import UsageError

ONCE = ["plain", "seven_steps", "trades", "fgsm", "dafa", "augmented"]


@pytest.fixture(scope="module")
def eight():
    """What `eight_devices.py` found."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "eight_devices.py")],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", [*ONCE, "faal", "awp", "synchronised"])
def test_nothing_is_said_in_a_loop(name, eight):
    """Attacks are loops: none of them, nor anything else that repeats, communicates."""
    assert not [c for c in eight["counts"][name]["found"] if c["in_loop"]]


@pytest.mark.parametrize("name", ONCE)
def test_a_step_reduces_gradients_and_metrics_once(name, eight):
    """One reduction of integers (the counts) and one of floats: weights, statistics, sums."""
    found, weights = eight["counts"][name]["found"], eight["counts"][name]["weights"]
    assert [c["kind"] for c in found] == ["all-reduce"] * 2
    counts, floats = sorted(c["num_bytes"] for c in found)
    assert counts == 2 * 10 * 4
    passes = 2 if name == "trades" else 1  # XLA:CPU reduces both passes' gradients, then adds
    assert weights <= floats <= passes * weights + 4 * (10 * 10 + 2 * 10 + 2)


def test_rules_that_weigh_a_batch_and_perturbed_weights_cost_one_more_each(eight):
    """FAAL must know the batch's losses before its gradient; AWP takes two gradients."""
    assert len(eight["counts"]["faal"]["found"]) == 3
    assert len(eight["counts"]["awp"]["found"]) == 3
    kinds = {c["kind"] for name in ("faal", "awp") for c in eight["counts"][name]["found"]}
    assert kinds == {"all-reduce"}


def test_plain_batch_norm_is_synchronised(eight):
    assert len(eight["counts"]["synchronised"]["found"]) > 2


@pytest.mark.parametrize("number", ["2", "4", "8"])
def test_twenty_steps_agree_on_any_number_of_devices(number, eight):
    """Sums over a batch are taken in another order, which rounds otherwise: a few 1e-7 a step.

    Signs of gradients near zero may then flip in the attack, so differences grow; 20 steps stay
    within 1e-4 of the loss and 1e-3 of the largest parameter.
    """
    one, many = eight["runs"]["1"], eight["runs"][number]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-4)
    scale = np.abs(one["params"]).max()
    np.testing.assert_allclose(many["params"], one["params"], atol=1e-3 * scale)


def test_verdicts_are_the_same_on_any_number_of_devices(eight):
    one, *others = eight["verdicts"].values()
    assert set(one) == {"clean", "pgd5", "apgd-ce", "union"} and len(others) == 3
    assert all(other == one for other in others)


def test_programs_are_read_as_written():
    program = """HloModule m
%body.1 (p: f32[4]) -> f32[4] {
  %x = f32[4]{0} all-reduce(%p), to_apply=%add
}

%cond.1 (p: f32[4]) -> pred[] {
  ROOT %c = pred[] compare(%p, %p)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %w = f32[4] while(%a), condition=%cond.1, body=%body.1
  %g = (f32[2,3]{1,0}, s32[5]{0}) all-gather-start(%w), dimensions={0}
}
"""
    assert [tuple(c) for c in collectives(program)] == [
        ("all-reduce", 16, True), ("all-gather", 44, False),
    ]  # fmt: skip


def test_batch_norm_of_one_part_is_flax_batch_norm_and_of_parts_that_of_each():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 5)) * 2 + 1
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    variables = theirs.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.3, variables)

    def run(module, x):
        y, new = module.apply(variables, x, mutable=["batch_stats"])
        return y, new["batch_stats"]

    y, stats = run(BatchNorm(1, True), x)
    expected, new = run(theirs, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stats, new)
    y, stats = run(BatchNorm(4, True), x)
    parts = [run(theirs, part) for part in x.reshape(4, 2, 3, 3, 5)]
    np.testing.assert_allclose(y, jnp.concatenate([own for own, _ in parts]), atol=1e-5)
    for name in ("mean", "var"):
        mean = np.mean([own[name] for _, own in parts], axis=0)
        np.testing.assert_allclose(stats[name], mean, atol=1e-5)
    frozen = nn.BatchNorm(use_running_average=True).apply(variables, x)
    np.testing.assert_allclose(BatchNorm(4, False).apply(variables, x), frozen, atol=1e-5)
    with pytest.raises(ValueError, match="'batch:3' does not divide a batch of 8"):
        run(BatchNorm(3, True), x)


def test_more_devices_than_there_are_is_a_mistake():
    with pytest.raises(UsageError, match="num_devices=9, but there are 2"):
        sharding.chosen_devices(9)
    assert len(sharding.chosen_devices(0)) == 2 and len(sharding.chosen_devices(1)) == 1


def test_batches_that_do_not_divide_are_on_every_device():
    mesh = sharding.data_mesh()
    assert not sharding.spread(jnp.zeros((4, 3)), mesh).sharding.is_fully_replicated
    assert sharding.spread(jnp.zeros((5, 3)), mesh).sharding.is_fully_replicated
