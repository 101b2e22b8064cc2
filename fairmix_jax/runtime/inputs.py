"""What is checked before images, labels and a model are believed, in every entry point.

A `ValueError` names in one line what does not fit, and the remedy. Shapes and types are checked
always, values where they are known: not where JAX traces them.
"""

import warnings
from functools import partial
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from fairmix_jax.runtime.closures import as_partial
from fairmix_jax.runtime.precision import at_full_precision
from fairmix_jax.types import Array, Key, LogitsFn, ThreatModel

_COUPLED = 1e-3  # of the largest logit; rounding in another place of a batch is far less


def check_batch(images: Any, labels: Any, threat: ThreatModel | None = None) -> None:
    """Checks images `[B, H, W, C]`, floats inside the threat's bounds, and their labels."""
    check_images(images)
    if jnp.ndim(images) != 4:
        raise ValueError(f"images has shape {jnp.shape(images)}; give [B, H, W, C]")
    check_labels(labels, len(images))
    if threat is not None and (shape := jnp.shape(threat.epsilon)):
        raise ValueError(f"threat.epsilon has shape {shape}; give one radius, or use jax.vmap")
    if threat is None or isinstance(images, Tracer) or not len(images):
        return
    (low, high), known = threat.bounds, np.asarray(images)
    smallest, largest = float(known.min()), float(known.max())
    slack = 1e-6 * (high - low) if np.isfinite(high - low) else 0.0  # mixed images are rounded
    is_inside = low - slack <= smallest and largest <= high + slack
    if not (is_inside and np.isfinite([smallest, largest]).all()):
        raise ValueError(
            f"images range over [{smallest}, {largest}]; give finite values inside "
            f"threat.bounds={threat.bounds}, with any normalisation inside logits_fn"
        )


def check_images(images: Any) -> None:
    """Checks that images are floats."""
    if not hasattr(images, "dtype"):
        raise ValueError(f"images is of type {type(images).__name__}; give an array of floats")
    dtype = jnp.result_type(images)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images has type {dtype}; give floats, e.g. images / 255")


def check_labels(
    labels: Any, num_images: int, num_classes: int | None = None, name: str = "labels"
) -> None:
    """Checks that labels are `[B]` class numbers, from 0 to `num_classes - 1`."""
    check_rows(name, labels, num_images)
    if isinstance(labels, Tracer) or not num_images:
        return
    known = np.asarray(labels)
    low, high = int(known.min()), int(known.max())
    limit = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    if low < 0 or high > limit:
        last = "" if num_classes is None else f" to {limit}, one of logits_fn's classes"
        raise ValueError(f"{name} range over [{low}, {high}]; give class numbers from 0{last}")


def check_whole(low: int, **given: Any) -> None:
    """Checks that each is a whole number of at least `low`."""
    for name, value in given.items():
        if not isinstance(value, Integral) or value < low:
            raise ValueError(f"{name}={value!r} is not a whole number of at least {low}")


def check_finite(low: float, high: float = np.inf, **given: Any) -> None:
    """Checks that numbers, or arrays of them, are finite and in a range, where they are known."""
    for name, value in given.items():
        if isinstance(value, Tracer) or value is None:
            continue
        try:
            known = np.asarray(value, np.float64)
        except (TypeError, ValueError):
            known = np.asarray(np.nan)
        if not (np.isfinite(known) & (low <= known) & (known <= high)).all():
            limit = f"between {low:g} and {high:g}" if np.isfinite(high) else f"of at least {low:g}"
            raise ValueError(f"{name}={value!r} is not a finite number {limit}")


def check_rows(name: str, rows: Any, num_images: int) -> None:
    """Checks that there is a whole number for each image, e.g. to tell its random numbers apart."""
    kind = rows.dtype if hasattr(rows, "dtype") else np.asarray(rows).dtype
    shape, wanted = np.shape(rows), (num_images,)
    if shape != wanted or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"{name} has shape {shape}, type {kind}; give integers of shape {wanted}")


def check_function(logits_fn: Any) -> None:
    """Checks that a model is a function, of images alone."""
    if not callable(logits_fn):
        raise ValueError(
            f"logits_fn is of type {type(logits_fn).__name__}, no function of images; give one (a "
            "Randomized model only to attacks.autoattack, with version='rand')"
        )


def checked_model(logits_fn: LogitsFn, labels: Any, targets: Any = None) -> LogitsFn:
    """Returns the model with logits that are `[B, K]` and, from half precision, float32.

    What it returns is checked while it is traced or called, and the labels, and targets if they
    are classes, against `K`.
    """
    check_function(logits_fn)

    def checked(images: Array) -> Array:
        logits = checked_logits(logits_fn(images), len(images))
        check_labels(labels, len(labels), logits.shape[1])
        if targets is not None:
            check_labels(targets, len(labels), logits.shape[1], "targets")
        return logits

    return checked


def checked_logits(logits: Any, num_images: int) -> Array:
    """Returns logits of so many images, float32 if they are less; else raises a `ValueError`."""
    shape = getattr(logits, "shape", None)
    is_sound = shape is not None and len(shape) == 2 and shape[0] == num_images and shape[1] > 1
    if not is_sound or not jnp.issubdtype(logits.dtype, jnp.floating):
        given = type(logits).__name__ if shape is None else f"{logits.dtype} of shape {shape}"
        raise ValueError(
            f"logits_fn returns {given} for {num_images} images; give floats of shape "
            f"({num_images}, K), K of at least 2, the logits alone"
        )
    return as_single(logits)


def check_model(
    logits_fn: LogitsFn, images: Array | np.ndarray, *, by_gradient: bool = True
) -> None:
    """Looks at what a model makes of up to four images, unless JAX traces them or the model.

    A `ValueError` says that its answer to an image depends on the others in the batch: it is called
    on the images, on the same in another order, and on the first one repeated. A `UserWarning` says
    that it returns probabilities, or, `by_gradient`, that the cross-entropy of its answer has no
    gradient to follow on most of the images.
    """
    check_function(logits_fn)
    if isinstance(images, Tracer) or not len(images):
        return
    model = as_partial(logits_fn, images[:1])
    several = np.asarray(images)[np.unique(np.linspace(0, len(images) - 1, 4).astype(int))]
    answers = _answers(model, several, by_gradient=by_gradient)
    if isinstance(answers[0], Tracer):
        return
    repeated = np.repeat(several[:1], len(several), axis=0)
    others = (
        _answers(model, each, by_gradient=by_gradient)[0] for each in (repeated, several[::-1])
    )
    logits, is_blind, again, moved = map(np.asarray, (*answers, *others))
    moved, size = moved[::-1], np.abs(logits).max(initial=0.0, where=np.isfinite(logits))
    finite = np.isfinite(logits) & np.isfinite(moved)
    elsewhere = np.abs(logits - moved).max(initial=0.0, where=finite)
    difference = max(elsewhere, np.max(np.abs(logits[0] - again[0])))
    if difference > _COUPLED * size:
        raise ValueError(
            f"logits_fn answers an image with logits that differ by {difference:.3g} when the "
            "other images of its batch or its place there change; give a model that judges every "
            "image by itself, and always alike, e.g. batch norm with running statistics, no dropout"
        )
    if are_probabilities(logits):
        told = "returns what looks like probabilities; give logits, since a softmax hides gradients"
    elif 2 * is_blind.sum() > len(several):
        told = (
            f"has no gradient to follow, zero or not finite, at {is_blind.sum()} of {len(several)} "
            "images, where attacks by gradients are blind and find it too robust; give logits of "
            "ordinary size, not classes, or trust Square alone (see masking.examine)"
        )
    else:
        return
    warnings.warn(f"logits_fn {told}", stacklevel=2)


def are_probabilities(logits: np.ndarray) -> bool:
    """Whether all rows of `[B, K]` are at least 0 and sum to 1, up to rounding."""
    return bool(logits.min() >= -1e-5 and np.abs(logits.sum(axis=1) - 1).max() < 1e-5)


@partial(jax.jit, static_argnames="by_gradient")
def _answers(model: Partial, images: Array, *, by_gradient: bool) -> tuple[Array, Array]:
    """Logits `[B, K]`, and `[B]` bool, whether the loss of the answer has no gradient there."""

    def loss(images: Array) -> tuple[Array, Array]:
        logits = checked_logits(model(images), len(images))
        top, is_top = jnp.max(logits, 1), jax.nn.one_hot(jnp.argmax(logits, 1), logits.shape[1])
        others = jnp.where(is_top > 0, 0.0, jnp.exp(logits - top[:, None]))
        return jnp.sum(jnp.log1p(jnp.sum(others, axis=1))), logits  # exact where it is small

    if not by_gradient:
        return at_full_precision(loss)(images)[1], jnp.zeros(len(images), bool)
    gradient, logits = at_full_precision(jax.grad(loss, has_aux=True))(images)
    rows = gradient.reshape(len(images), -1)
    return logits, ~(jnp.all(jnp.isfinite(rows), axis=1) & jnp.any(rows != 0, axis=1))


def threefry(key: Key) -> Key:
    """Returns a key whose draws under `vmap` are those of each key alone, as JAX's default has.

    Of other kinds, as `rbg`, what one example draws depends on the others of its batch.
    """
    if "threefry" in str(jax.random.key_impl(key)):
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), "uint32"), impl="threefry2x32")


def as_single(values: Any) -> Any:
    """Returns an array of half precision as float32, any other as it is."""
    return values.astype(jnp.float32) if values.dtype.itemsize < 4 else values
