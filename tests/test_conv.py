"""`conv` is `lax.conv_general_dilated`, whichever way its input gradient is lowered."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

from fairmix_jax.models import described
from fairmix_jax.models.convolution import conv, same_padding
from fairmix_jax.runtime import registry


def plain(images, kernel, *, stride, padding):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@given(
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    channels=st.sampled_from([1, 3, 5]),  # few and many
)
def test_value_and_gradients_equal_the_plain_convolution(
    height, width, kernel, stride, padding, channels
):
    # jaxlib 0.10.2 aborts while compiling the plain gradient of such a convolution on CPU.
    assume(stride <= min(kernel) or stride < 3)
    # It also reads out of bounds where the gradient's padding would be negative.
    assume(all(max(pair) < size for pair, size in zip(padding, kernel, strict=True)))
    images, weights = arrays((2, height, width, channels), (*kernel, channels, 4))
    ours, our_vjp = jax.vjp(
        lambda x, k: conv(x, k, stride=stride, padding=padding), images, weights
    )
    theirs, their_vjp = jax.vjp(
        lambda x, k: plain(x, k, stride=stride, padding=padding), images, weights
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    (cotangent,) = arrays(ours.shape)
    for a, b in zip(our_vjp(cotangent), their_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)  # sums of up to 200 terms


def test_gradient_of_gradient(rng):
    images, kernel = arrays((2, 6, 6, 3), (3, 3, 3, 4))

    def slope(f, x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x) ** 2)

    ours = jax.grad(
        lambda x: slope(lambda x: conv(x, kernel, stride=1, padding=same_padding(3)), x)
    )(images)
    theirs = jax.grad(
        lambda x: slope(lambda x: plain(x, kernel, stride=1, padding=same_padding(3)), x)
    )(images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_per_example_vmap_equals_the_batch():
    images, kernel = arrays((4, 8, 8, 3), (3, 3, 3, 4))

    def energy(x):
        return jnp.sum(conv(x, kernel, stride=2, padding=same_padding(3)) ** 2)

    single = jax.vmap(lambda x: jax.grad(lambda x: energy(x[None]))(x))(images)
    np.testing.assert_allclose(single, jax.grad(energy)(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerator_programs_have_the_convolutions_of_the_plain_one(platform, monkeypatch):
    """Exported from this machine; the whole gradient of a residual network is compared."""

    def convolutions():
        module = registry.load("models", "preact_resnet")(10, depth=10, width=8)
        model = described.from_linen(module, (16, 16, 3), mean=[0.5] * 3, std=[0.25] * 3)
        params, stats = jax.eval_shape(lambda: model.init(jax.random.key(0)))

        def loss(params, images):
            return jnp.sum(model.apply(params, stats_value, images, train=False)[0] ** 2)

        stats_value = jax.tree.map(lambda s: jnp.ones(s.shape), stats)
        images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
        exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=[platform])
        text = exported(params, images).mlir_module()
        # "%3 = stablehlo.convolution(%1, %2) dim_numbers = ..., window = ... loc(#loc4)"
        found = re.findall(r"stablehlo\.convolution\([^)]*\)(.*?)(?: loc\(.*)?$", text, re.M)
        return sorted(found)

    ours = convolutions()
    monkeypatch.setattr("fairmix_jax.models.layers.conv", plain)
    assert ours == convolutions()
    assert len(ours) > 20
