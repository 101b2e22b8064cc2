"""Data sets, splits, order and augmentation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairmix_jax import data
from fairmix_jax.data import Split, batches, digits, gaussian, noise
from fairmix_jax.runtime import sharding
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training.loop import epoch_order


def test_digits_are_all_there_once():
    dataset = digits.make()
    assert dataset.train.images.shape == (1297, 8, 8, 1)
    assert dataset.test.images.shape == (500, 8, 8, 1)
    assert np.bincount(dataset.test.labels).tolist() == [50] * 10
    whole = np.concatenate([dataset.train.images, dataset.test.images]).reshape(1797, -1)
    assert len(np.unique(whole, axis=0)) == 1797
    assert whole.dtype == np.uint8 and whole.max() == 255


def test_gaussian_has_the_stated_moments():
    dataset = gaussian.make(separation=2.5, ratio=2.0, dimension=10, examples_per_class=20_000)
    images, labels = dataset.train
    assert images.shape == (40_000, 1, 1, 10) and dataset.bounds == (-math.inf, math.inf)
    eta = 2.5 / math.sqrt(10)
    for label, mean, std in ((0, -eta, 1.0), (1, eta, 2.0)):
        sample = images[labels == label]
        error = std / math.sqrt(sample.size)
        assert abs(sample.mean() - mean) < 4 * error
        assert abs(sample.std() - std) < 4 * error
    other = gaussian.make(draw=1)
    assert (other.train.images[:5] != images[:5]).all()


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array),
    fraction=st.floats(0, 0.9),
)
def test_stratified_split_is_a_partition_with_equal_shares(labels, fraction):
    train, validation = data.stratified_split(labels, fraction)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label in np.unique(labels):
        size = (labels == label).sum()
        assert (labels[validation] == label).sum() == round(fraction * size)


def test_balanced_rows():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    assert data.balanced_rows(labels, 0).tolist() == list(range(8))
    assert data.balanced_rows(labels, 6).tolist() == [0, 1, 3, 4, 5, 6]
    with pytest.raises(UsageError, match="cannot hold all 3 classes"):
        data.balanced_rows(labels, 2)


def test_epoch_order_is_a_permutation_and_a_function_of_key_and_epoch():
    key = jax.random.key(0)
    first, second = (epoch_order(key, epoch, size=50) for epoch in (0, 1))
    assert sorted(first.tolist()) == list(range(50))
    assert (first != second).any()
    np.testing.assert_array_equal(first, epoch_order(jax.random.key(0), 0, size=50))


def test_batches_in_order_cover_the_split_once_with_masked_padding(rng):
    split = Split(rng.integers(0, 256, (7, 2, 2, 1), dtype=np.uint8), np.arange(7, dtype=np.int32))
    parts = list(batches.feed(split, sharding.data_mesh()).in_order(3))
    assert [part.images.shape for part in parts] == [(3, 2, 2, 1)] * 3
    kept = [part.index[part.mask].tolist() for part in parts]
    assert kept == [[0, 1, 2], [3, 4, 5], [6]]
    np.testing.assert_allclose(parts[1].images, split.images[3:6] / 255, atol=1e-7)


@pytest.mark.parametrize("size", [4, 5])
def test_batches_taken_from_memory_are_those_taken_from_the_device(size, rng):
    """Two devices: a batch of five is on each."""
    images = rng.integers(0, 256, (9, 2, 2, 1), dtype=np.uint8)
    split, mesh = Split(images, np.arange(9, dtype=np.int32)), sharding.data_mesh()
    rows = rng.permutation(9)[:size].astype(np.int32)
    there = batches.feed(split, mesh).take(rows, 3)
    for ours, theirs in zip(batches.Feed(split, mesh).take(rows, 3), there, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert there.images.sharding.is_fully_replicated == (size == 5)


def test_augmentation_shifts_and_mirrors_each_image_by_itself():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1) + 1
    many = jnp.tile(images, (400, 1, 1, 1))
    augmented = np.asarray(batches.augment(jax.random.key(0), many, crop_padding=1, flip=True))
    padded = np.pad(np.asarray(images[0]), ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    possible = {w.tobytes() for window in windows for w in (window, window[:, ::-1])}
    seen = {image.tobytes() for image in augmented}
    assert seen == possible and len(possible) == 18


def test_no_augmentation_is_the_identity():
    images = jnp.ones((2, 3, 3, 1))
    assert batches.augment(jax.random.key(0), images, crop_padding=0, flip=False) is images


@pytest.mark.parametrize("name, shape", [("fashion_mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_real_tfds_sets(name, shape, tfds_dir):
    dataset = data.load({"name": name, "dir": tfds_dir, "num_train": 0})
    assert dataset.test.images.shape == (10_000, *shape)
    assert dataset.train.images.dtype == np.uint8
    assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
    assert len(dataset.class_names) == 10


@pytest.mark.parametrize(
    "name, directory, message",
    [
        ("cifar10", "{tmp}/none", "data.dir='{tmp}/none' does not exist"),
        ("cifar10", "{tmp}", "not prepared in {tmp}; run python -m fairmix_jax.data.prepare"),
        ("nosuchset", "{tmp}", "data.name='nosuchset' is unknown"),
    ],
)
def test_missing_data_is_named_with_the_remedy(name, directory, message, tmp_path):
    with pytest.raises(UsageError) as raised:
        data.load({"name": name, "dir": directory.format(tmp=tmp_path), "num_train": 0})
    assert message.format(tmp=tmp_path) in str(raised.value)


@pytest.mark.parametrize("names", [np.arange(2), np.array(["a", "a"]), np.array(["a"])])
def test_classes_need_different_names_that_are_texts(names, tmp_path):
    images, labels = np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2, np.int32)
    np.savez(
        tmp_path / "own.npz", train_images=images, train_labels=labels, test_images=images,
        test_labels=labels, class_names=names,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"data.name='own' .* are not two or more different texts"):
        data.load({"name": "own", "dir": str(tmp_path), "num_train": 0})


def test_noise_has_the_shape_that_is_asked_for_and_is_the_same_again():
    dataset, again = (
        noise.make(height=4, width=6, channels=2, num_classes=3, examples=10) for _ in range(2)
    )
    for part, same in zip(dataset[:2], again[:2], strict=True):
        assert part.images.shape == (10, 4, 6, 2) and part.images.dtype == np.uint8
        assert np.bincount(part.labels).tolist() == [4, 3, 3]
        np.testing.assert_array_equal(part.images, same.images)
    assert (dataset.train.images != dataset.test.images).any()
