"""Networks as pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairmix_jax import models, plugins
from fairmix_jax.conv import lowering
from fairmix_jax.experiment import build_model

SMALL = {
    "linear": {},
    "small_cnn": dict(width=8),
    "preact_resnet": dict(depth=10, width=8),
    "resnet": dict(depth=10, width=8),
    "wide_resnet": dict(depth=10, width=1),
}


def make(name, norm="batch", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)):
    arguments = SMALL[name] if name == "linear" else SMALL[name] | {"norm": norm}
    module = plugins.load("models", name)(10, **arguments)
    return models.build(module, (8, 8, 3), mean=mean, std=std)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((6, 8, 8, 3)), jnp.float32)


def test_every_model_file_is_covered():
    assert set(SMALL) == set(plugins.names("models"))


@pytest.mark.parametrize("name", SMALL)
def test_logits_statistics_and_independence_of_examples(name, images):
    model = make(name)
    params, stats = model.init(jax.random.key(0))
    evaluate = jax.jit(lambda x: model.apply(params, stats, x, train=False))
    logits, same_stats = evaluate(images)
    assert logits.shape == (6, 10) and logits.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, same_stats, stats)
    np.testing.assert_allclose(evaluate(images[2:4])[0], logits[2:4], atol=1e-5)
    _, new_stats = jax.jit(lambda x: model.apply(params, stats, x, train=True))(images)
    assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
    changed = [
        bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (stats, new_stats)), strict=True)
    ]
    assert all(changed) and (len(changed) > 0) == (name != "linear")


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_that_of_flax(train, images):
    model = make("preact_resnet")
    params, stats = model.init(jax.random.key(0))
    stats = jax.tree.map(lambda leaf: leaf + 0.5, stats)
    apply = jax.jit(lambda x: model.apply(params, stats, x, train=train))
    ours = apply(images)
    with lowering("plain"):
        plain = apply(images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, plain)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_other_normalisations_have_no_statistics(norm, images):
    model = make("preact_resnet", norm)
    params, stats = model.init(jax.random.key(0))
    assert not jax.tree.leaves(stats)
    logits, _ = jax.jit(lambda x: model.apply(params, stats, x, train=True))(images)
    assert np.isfinite(logits).all()


def test_normalisation_is_inside():
    images = jnp.asarray(np.random.default_rng(1).random((4, 8, 8, 3)), jnp.float32)
    inside, outside = make("small_cnn"), make("small_cnn", mean=(0.0,) * 3, std=(1.0,) * 3)
    params, stats = inside.init(jax.random.key(0))
    mean, std = jnp.asarray([[[[0.5, 0.4, 0.3]]]]), jnp.asarray([[[[0.2, 0.3, 0.25]]]])
    a, _ = inside.apply(params, stats, images, train=False)
    b, _ = outside.apply(params, stats, (images - mean) / std, train=False)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, arguments, millions",
    [  # published sizes, for ten classes
        ("preact_resnet", dict(depth=18), 11.17),
        ("wide_resnet", dict(depth=28, width=10), 36.48),
        ("wide_resnet", dict(depth=34, width=10), 46.16),
    ],
)
def test_published_networks_have_their_published_size(name, arguments, millions):
    module = plugins.load("models", name)(10, **arguments)
    model = models.build(module, (32, 32, 3), mean=[0.5] * 3, std=[0.25] * 3)
    params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(size / 1e6 - millions) < 0.01


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("preact_resnet", dict(depth=17), "model.depth=17"),
        ("wide_resnet", dict(depth=11), "model.depth=11"),
    ],
)
def test_impossible_sizes_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        plugins.load("models", name)(10, **arguments)


def test_model_card_rebuilds_the_model(images):
    card = {
        "model": {"name": "small_cnn", "width": 8},
        "image_shape": [8, 8, 3],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "classes": [str(n) for n in range(10)],
    }
    ours, theirs = build_model(card), make("small_cnn")
    params, stats = theirs.init(jax.random.key(0))
    a, b = (m.apply(params, stats, images, train=False)[0] for m in (ours, theirs))
    np.testing.assert_array_equal(a, b)
