"""Attacks at a radius that is traced: one program for any radius, and many radii at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairmix_jax import attacks
from fairmix_jax.attacks import ThreatModel

RADII = np.float32([0.0, 0.02, 0.1, 0.4])
CASES = [
    ("pgd", "linf", {"num_steps": 3}), ("pgd", "l2", {"num_steps": 3, "num_restarts": 2}),
    ("fgsm", "linf", {}), ("mi_fgsm", "l2", {"num_steps": 3}), ("apgd", "l2", {"num_steps": 6}),
    ("apgd_targeted", "linf", {"num_steps": 4, "num_targets": 2}), ("fab", "l2", {"num_steps": 3}),
    ("fab_targeted", "linf", {"num_steps": 3, "num_targets": 2}),
    ("square", "linf", {"num_queries": 12}), ("square", "l2", {"num_queries": 12}),
]  # fmt: skip
# These programs run for milliseconds: the lowest level of optimisation compiles fastest.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def attack_of(name, norm, options):
    """Returns `epsilon -> adversarial images` of an attack on a small network."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((12, 5, 4, 2)), jnp.float32)
    weights = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((40, 16), (16, 4))]

    def logits_fn(x):
        return jnp.tanh(x.reshape(len(x), -1) @ weights[0]) @ weights[1]

    labels = jnp.argmax(logits_fn(images), axis=1).at[0].add(1) % 4
    attack = functools.partial(getattr(attacks, name), logits_fn, **options)

    def run(epsilon):
        step = {"step_size": epsilon / 4} if name == "pgd" else {}
        return attack(jax.random.key(0), images, labels, threat=ThreatModel(norm, epsilon), **step)

    return run


@pytest.mark.parametrize("name, norm, options", CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_one_program_serves_all_radii_and_a_map_over_radii_equals_a_loop(name, norm, options):
    attack, traces = attack_of(name, norm, options), []

    def run(epsilon):
        traces.append(1)
        return attack(epsilon)

    one_program = quick_jit(run)
    one_by_one = np.stack([one_program(epsilon) for epsilon in RADII])
    assert len(traces) == 1
    assert not np.array_equal(one_by_one[0], one_by_one[-1])
    np.testing.assert_allclose(quick_jit(jax.vmap(run))(RADII), one_by_one, atol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_traced_radius_gives_the_bits_of_a_number(norm):
    attack = attack_of("pgd", norm, {"num_steps": 5})
    traced = jax.jit(attack)
    for epsilon in RADII[1::2].tolist():
        number = jax.jit(functools.partial(attack, epsilon))()
        np.testing.assert_array_equal(traced(epsilon), number)


def test_a_threat_is_a_pytree_whose_leaf_is_the_radius():
    threat = ThreatModel("l2", 0.5, (-1.0, 1.0))
    assert jax.tree.leaves(threat) == [0.5]
    assert jax.tree.map(lambda epsilon: 2 * epsilon, threat) == ThreatModel("l2", 1.0, (-1.0, 1.0))
    assert jax.tree.map(str, threat).epsilon == "0.5"  # JAX puts placeholders there
    assert {threat: "hashable"}[ThreatModel("l2", 0.5, (-1.0, 1.0))] == "hashable"

    mapped = jax.vmap(lambda threat: threat.epsilon * 2)(ThreatModel("l2", RADII))
    np.testing.assert_array_equal(mapped, 2 * RADII)
    assert jax.jit(lambda threat: threat)(threat) == threat


@pytest.mark.parametrize(
    "epsilon",
    [-0.1, float("nan"), jnp.float32(-0.1), np.float32([0.1, np.inf]), jnp.asarray([0.1, -0.1])],
)
def test_a_bad_radius_is_refused_wherever_its_value_is_known(epsilon):
    with pytest.raises(ValueError, match="is not a radius"):
        ThreatModel("linf", epsilon)
    with pytest.raises(ValueError, match="is not a radius"):
        jax.jit(lambda x: x * ThreatModel("linf", epsilon).epsilon)(1.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_result_has_the_type_of_the_images(norm):
    images, labels = jnp.full((3, 4, 4, 1), 0.5, jnp.bfloat16), jnp.zeros(3, jnp.int32)

    @jax.jit
    def run(epsilon):
        return attacks.pgd(
            lambda x: x.reshape(len(x), -1)[:, :2], jax.random.key(0), images, labels,
            threat=ThreatModel(norm, epsilon), num_steps=2, step_size=epsilon / 4,
        )  # fmt: skip

    with jax.numpy_dtype_promotion("standard"):
        assert run(np.float32(0.1)).dtype == jnp.bfloat16
