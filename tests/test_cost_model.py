"""The cost model against counts of its own: what meets what, summed over ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

from fairmix_jax.lab.compile import cost_model
from fairmix_jax.lab.compile.pod_programs import next_size

V5E, V5P = cost_model.CHIPS["TPU v5 lite"], cost_model.CHIPS["TPU v5"]


def convolve(images, kernel, stride, padding, gap, dilation):
    return lax.conv_general_dilated(
        images, kernel, (stride,) * 2, padding, (gap,) * 2, (dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@given(
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)), kernel=st.integers(1, 3),
    stride=st.integers(1, 3), low=st.integers(0, 2), high=st.integers(0, 2),
    gap=st.integers(1, 2), dilation=st.integers(1, 2),
)  # fmt: skip
def test_a_convolution_of_ones_sums_to_its_multiply_adds(
    size, kernel, stride, low, high, gap, dilation
):
    """Every product of a one with a one is a one; what falls on padding adds nothing."""
    options = (stride, ((low, high), (high, low)), gap, dilation)
    images, weights = jnp.ones((2, *size, 3)), jnp.ones((kernel, kernel, 3, 4))
    work = cost_model.operations_of(lambda x, w: convolve(x, w, *options), images, weights)
    assert work.multiply_adds == work.first == int(convolve(images, weights, *options).sum())
    assert work.elements == 0


@given(size=st.integers(4, 8), kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2))
def test_each_gradient_of_a_convolution_takes_as_much_again(size, kernel, stride):
    padding = ((kernel // 2,) * 2,) * 2
    images, weights = jnp.ones((2, size, size, 3)), jnp.ones((kernel, kernel, 3, 4))

    def loss(x, w):
        return convolve(x, w, stride, padding, 1, 1).sum()

    whole = cost_model.operations_of(
        lambda x, w: convolve(x, w, stride, padding, 1, 1), images, weights
    )
    for argument in (0, 1):
        gradient = cost_model.operations_of(jax.grad(loss, argument), images, weights)
        assert gradient.multiply_adds == 2 * whole.multiply_adds


def test_products_loops_and_everything_else_by_hand():
    """A product of [5, 3] and [3, 7], a sum with [7], a loop's body once."""
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((5, 3), (3, 7), (7, 7))]

    def function(x, w, v):
        return lax.fori_loop(0, 9, lambda _, y: y @ v, x @ w)

    work = cost_model.operations_of(function, *shapes)
    assert (work.multiply_adds, work.first) == (5 * 3 * 7 + 5 * 7 * 7, 5 * 3 * 7)
    work = cost_model.operations_of(lambda x: jnp.exp(x) * 2.0, shapes[0])
    assert work == (0, 0, 30)


def test_a_step_by_hand():
    """Forward 100 multiply-adds, 10 of them in the first layer, 7 other numbers; 4 attack steps."""
    work = cost_model.Operations(100, 10, 7)
    assert cost_model.step_flops(work, 4) == (200 + 7) * 4 * 2 + (200 + 7) * 3 - 20
    assert cost_model.reduced_bytes({"a": jnp.zeros((3, 4)), "b": [jnp.zeros(5)]}) == 68


def test_one_chip_waits_for_nobody_and_more_chips_wait_longer():
    cost = dict(flops=1e12, memory_bytes=1e9, num_bytes=4e7)
    for chip in (V5E, V5P):
        shares = [cost_model.efficiency(**cost, num_chips=n, chip=chip) for n in (1, 8, 64, 4096)]
        assert shares[0] == 1.0 and shares == sorted(shares, reverse=True) and shares[-1] > 0
    slow = cost_model.efficiency(**cost | {"memory_bytes": 1e12}, num_chips=64, chip=V5E)
    assert slow > cost_model.efficiency(**cost, num_chips=64, chip=V5E)


def test_a_large_slice_sends_twice_its_bytes():
    """Far from the delays: 2 S / bandwidth within a slice, and the parts between two slices."""
    num_bytes = 1e12
    within = cost_model.reduction_seconds(num_bytes, 256, V5E)
    assert within == pytest.approx(2 * num_bytes / 200e9, rel=0.01)
    between = cost_model.reduction_seconds(num_bytes, 512, V5E) - within
    assert between == pytest.approx(num_bytes / 256 / (25e9 / 8), rel=0.01)


@given(
    start=st.integers(1, 100), fixed=st.floats(0, 0.9), slope=st.floats(1e-7, 1e-3),
    curve=st.floats(0.8, 1.2),
)  # fmt: skip
def test_the_search_for_the_largest_batch_ends_near_it(start, fixed, slope, curve):
    """Memory 1, need nearly linear: the answer fits, and an eighth more does not."""

    def need(size):
        return fixed + (slope * size) ** curve

    assume(need(start) < 1)
    needs, refused, size, tries = {start: need(start)}, None, 2 * start, 0
    while size is not None:
        tries += 1
        if need(size) < 1:
            needs[size] = need(size)
        else:
            refused = size
        size = next_size(needs, refused, memory=1.0, most=10**6)
        assert tries < 40
    largest = max(needs)
    assert refused is None or need(refused) >= 1
    assert largest == 10**6 or refused - largest <= max(largest / 8, 1)
    assert np.all(np.asarray(list(needs.values())) < 1)
