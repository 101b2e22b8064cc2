"""Networks as pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny import build, run, tiny

from fairmix_jax.attacks import ThreatModel, pgd
from fairmix_jax.models import described, small_cnn
from fairmix_jax.models.convolution import lowering
from fairmix_jax.models.described import build_model, logits_partial
from fairmix_jax.models.layers import Conv
from fairmix_jax.runtime import registry
from fairmix_jax.types import Weights

SMALL = {
    "linear": {},
    "small_cnn": dict(width=8),
    "preact_resnet": dict(depth=10, width=8),
    "resnet": dict(depth=10, width=8),
    "wide_resnet": dict(depth=10, width=1),
}


def make(name, norm="batch", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)):
    arguments = SMALL[name] if name == "linear" else SMALL[name] | {"norm": norm}
    module = registry.load("models", name)(10, **arguments)
    return described.from_linen(module, (8, 8, 3), mean=mean, std=std)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((6, 8, 8, 3)), jnp.float32)


def test_every_model_file_is_covered():
    assert set(SMALL) == set(registry.names("models"))


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
        ("resnet", dict(depth=50), 23.52),
        ("wide_resnet", dict(depth=28, width=10), 36.48),
        ("wide_resnet", dict(depth=34, width=10), 46.16),
    ],
)
def test_published_networks_have_their_published_size(name, arguments, millions):
    module = registry.load("models", name)(10, **arguments)
    model = described.from_linen(module, (32, 32, 3), mean=[0.5] * 3, std=[0.25] * 3)
    params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(size / 1e6 - millions) < 0.01


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("preact_resnet", dict(depth=17), "model.depth=17"),
        ("preact_resnet", dict(depth=50), "model.depth=50 is unknown; choose one of 10, 18, 34"),
        ("preact_resnet", dict(activation="gelu"), "model.activation='gelu' is unknown"),
        ("wide_resnet", dict(shortcut="none"), "model.shortcut='none' is unknown"),
        ("wide_resnet", dict(last_norm=0), "model.last_norm=0 has the wrong type"),
        ("resnet", dict(depth=17), "model.depth=17"),
        ("wide_resnet", dict(depth=11), "model.depth=11"),
    ],
)
def test_impossible_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        registry.load("models", name)(10, **arguments)


@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_the_padding_same_is_that_of_xla(size, stride, images):
    layer = Conv(4, size, stride, "same")
    kernel = layer.init(jax.random.key(0), images)["params"]["kernel"]
    ours = layer.apply({"params": {"kernel": kernel}}, images)
    theirs = jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_padding_same_refuses_images_that_do_not_halve():
    module = registry.load("models", "wide_resnet")(10, depth=10, width=1, padding="same")
    model = described.from_linen(module, (14, 14, 3))
    with pytest.raises(ValueError, match=r"model.padding='same' .* a layer has \(7, 7\) pixels"):
        jax.eval_shape(model.init, jax.random.key(0))


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


class Bare(nn.Module):
    """A user's own module, whose signature names neither `train` nor `hidden`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1))


def test_a_module_with_neither_train_nor_hidden_is_a_model(images):
    """Its hidden features are its normalised input, and training changes nothing."""
    model = described.from_linen(Bare(), (8, 8, 3), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    params, stats = model.init(jax.random.key(0))
    normalised = (images - jnp.asarray([[[[0.5, 0.4, 0.3]]]])) / jnp.asarray([[[[0.2, 0.3, 0.25]]]])
    for train in (True, False):
        logits, same = model.apply(params, stats, images, train=train)
        np.testing.assert_allclose(
            logits, Bare().apply({"params": params}, normalised), rtol=1e-4, atol=1e-5
        )
        assert same == stats == {}
        mixed, _ = model.apply(params, stats, images, train=train, hidden=lambda x: x[::-1])
        np.testing.assert_allclose(mixed, logits[::-1], rtol=1e-5, atol=1e-5)


def test_a_module_may_name_one_of_the_two(images):
    class Trained(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(not train)(nn.Dense(10)(x.reshape(len(x), -1)))

    model = described.from_linen(Trained(), (8, 8, 3), mean=[0.5] * 3, std=[0.25] * 3)
    params, stats = model.init(jax.random.key(0))
    _, followed = model.apply(params, stats, images, train=True)
    assert jax.tree.leaves(stats) and (followed["BatchNorm_0"]["mean"] != 0).any()


def test_a_module_with_neither_is_trained_on_mixed_hidden_features_and_attacked(monkeypatch):
    monkeypatch.setattr(small_cnn, "make", lambda num_classes, *, width=8, norm="batch": Bare())
    config = tiny(mixing__name="same_class", mixing__stage="hidden", mixing__probability=1.0)
    mixed, plain = (run(c)[1] for c in (config, tiny(mixing__name="none")))
    for a, b in zip(*(jax.tree.leaves(state.params) for state in (mixed, plain)), strict=True):
        assert np.isfinite(a).all() and (a != b).any()
    task = build(config)
    logits_fn = logits_partial(task.model.apply, Weights(mixed.params, mixed.batch_stats))
    images = jnp.asarray(task.train.images[:40], jnp.float32) / 255
    labels = jnp.argmax(logits_fn(images), axis=1)
    found = pgd(
        logits_fn, jax.random.key(0), images, labels, threat=ThreatModel(epsilon=0.3),
        num_steps=5, step_size=0.1,
    )  # fmt: skip
    assert (jnp.argmax(logits_fn(found), axis=1) != labels).any()


def test_without_mean_and_std_a_module_sees_the_images_as_they_are(images):
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images):
            return images.reshape(len(images), -1)

    logits, _ = described.from_linen(Flat(), (8, 8, 3)).apply({}, {}, images, train=False)
    np.testing.assert_array_equal(logits, images.reshape(len(images), -1))
