"""Scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels, no download."""

import numpy as np

from fairmix_jax.data import Dataset, Split

_TEST_PER_CLASS = 50


def make() -> Dataset:
    """Returns 1,297 training and 500 test images `[8, 8, 1]` of ten classes.

    Scikit-learn defines no split: the last 50 images of each class are the test set. The
    17 grey levels `g` are stored as `round(255 g / 16)`.

    Reference: Alpaydin and Kaynak 1998, UCI, https://doi.org/10.24432/C50P49.
    """
    from sklearn import datasets  # takes seconds to import

    images, labels = datasets.load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = labels.astype(np.int32)
    last = [np.flatnonzero(labels == label)[-_TEST_PER_CLASS:] for label in range(10)]
    test = np.sort(np.concatenate(last))
    train = np.setdiff1d(np.arange(len(labels)), test)
    everything = Split(images, labels)
    return Dataset(everything.take(train), everything.take(test), tuple("0123456789"))
