"""Networks of other libraries are given the convolutions of `conv`, and nothing else is changed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fairmix_jax.attacks import ThreatModel, pgd
from fairmix_jax.models import described
from fairmix_jax.models.convolution import conv, lowering, same_padding
from fairmix_jax.models.rewrite_convolutions import rewrite_convolutions, rewrite_program
from fairmix_jax.runtime import registry


class Foreign(nn.Module):
    """Plain flax layers: a strided, a biased and a checkpointed convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = nn.relu(nn.remat(nn.Conv)(8, (5, 3), padding="VALID")(x))
        return nn.Dense(5)(nn.gelu(nn.Conv(6, (1, 1))(x)).reshape(len(x), -1))


def foreign():
    module, images = Foreign(), jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    variables = module.init(jax.random.key(1), images)
    return lambda x: module.apply(variables, x), images


def canonical_only(function, *arguments):
    """Whether all convolutions of the compiled gradient are those that XLA:CPU is fast at."""
    text = jax.jit(jax.grad(lambda x: jnp.sum(function(x) ** 2))).lower(*arguments).as_text("hlo")
    found = re.findall(r"dim_labels=(\S+)", text)
    assert found
    return set(found) == {"b01f_01io->b01f"} and "lhs_dilate" not in text


def same(function, images):
    ours, theirs = (
        jax.value_and_grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(images)
        for f in (rewrite_convolutions(function), function)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-5)


def test_a_flax_network_is_the_same_and_canonical():
    logits_fn, images = foreign()
    same(logits_fn, images)
    assert canonical_only(rewrite_convolutions(logits_fn), images)
    assert not canonical_only(logits_fn, images)


@pytest.mark.parametrize(
    "numbers", [("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NCHW"), ("HWNC", "IOHW", "NHWC")]
)
def test_any_layout(numbers, rng):
    lhs, rhs = (
        jnp.asarray(rng.normal(size=[sizes[axis] for axis in order]), jnp.float32)
        for order, sizes in zip(
            numbers, ({"N": 2, "H": 9, "W": 8, "C": 6}, {"O": 4, "I": 6, "H": 3, "W": 2}),
            strict=False,
        )
    )  # fmt: skip

    def function(x):
        return lax.conv_general_dilated(x, rhs, (2, 2), ((1, 0), (0, 1)), dimension_numbers=numbers)

    same(function, lhs)
    assert canonical_only(rewrite_convolutions(function), lhs)


def test_convolutions_in_control_flow_are_found(rng):
    kernel = jnp.asarray(rng.normal(size=(3, 3, 6, 6)) / 6, jnp.float32)
    plain = lambda x: lax.conv_general_dilated(  # noqa: E731
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

    def function(x):
        x, _ = lax.scan(lambda x, _: (jnp.tanh(jax.jit(plain)(x)), None), x, length=2)
        return lax.cond(jnp.sum(x) > 0, plain, lambda x: 2 * plain(x), x)

    images = jnp.asarray(rng.normal(size=(2, 6, 6, 6)), jnp.float32)
    same(function, images)
    assert canonical_only(rewrite_convolutions(function), images)


def test_what_cannot_be_restated_is_left_with_a_warning(rng):
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 6)), jnp.float32)

    def depthwise(x):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )  # fmt: skip

    images = jnp.asarray(rng.normal(size=(2, 6, 6, 6)), jnp.float32)
    with pytest.warns(UserWarning, match="1 convolutions of this network"):
        same(depthwise, images)


def test_our_networks_are_left_as_they_are():
    module = registry.load("models", "preact_resnet")(10, depth=10, width=8)
    model = described.from_linen(module, (16, 16, 3), mean=[0.5] * 3, std=[0.25] * 3)
    params, stats = model.init(jax.random.key(0))
    images = jnp.zeros((2, 16, 16, 3))
    logits_fn = lambda x: model.apply(params, stats, x, train=False)[0]  # noqa: E731
    program = jax.make_jaxpr(logits_fn)(images)
    assert rewrite_program(program) is program
    jax.eval_shape(rewrite_convolutions(logits_fn), images)  # warns of none that is left


def test_plain_lowering_is_plain():
    logits_fn, images = foreign()
    with lowering("plain"):
        assert not canonical_only(rewrite_convolutions(logits_fn), images)
        own = lambda x: conv(x, jnp.ones((3, 3, 3, 8)), stride=1, padding=same_padding(3))  # noqa: E731
        assert not canonical_only(own, images)


def test_an_attack_rewrites_the_network_it_is_given():
    logits_fn, images = foreign()

    def attack(x):
        return pgd(
            logits_fn, jax.random.key(0), x, jnp.arange(4), threat=ThreatModel(),
            num_steps=2, step_size=0.01,
        )  # fmt: skip

    text = jax.jit(attack).lower(images).as_text("hlo")
    assert set(re.findall(r"dim_labels=(\S+)", text)) == {"b01f_01io->b01f"}


def test_an_operation_that_means_something_inside_of_another_one_only_is_left_alone():
    """A `psum` has its axis inside of the `shard_map` around it, and nowhere else."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("d")

    def local(x):
        return x.reshape(len(x), -1)[:, :3] + lax.psum(jnp.ones(()), "d")

    model = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows)
    images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
    np.testing.assert_array_equal(rewrite_convolutions(model)(images), model(images))


@pytest.mark.filterwarnings("error")
def test_a_precision_that_is_set_for_all_products_is_inherited():
    logits_fn, images = foreign()
    own = nn.Conv(4, (3, 3), precision="high")
    variables = own.init(jax.random.key(0), images)
    with jax.default_matmul_precision("highest"):
        same(logits_fn, images)
        gradient = jax.grad(lambda x: jnp.sum(rewrite_convolutions(logits_fn)(x)))
        text = jax.jit(gradient).trace(images).lower(lowering_platforms=("tpu",)).as_text()
        program = jax.make_jaxpr(lambda x: own.apply(variables, x))(images)
    found = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(found) == 6 and all("HIGHEST" in line for line in found)
    assert rewrite_program(program) is program  # an operation's own stays
