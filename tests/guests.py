"""One network four times: in linen and in three other libraries, with equal weights.

A convolution, batch norm, ReLU, and a linear layer, for 8x8 grey images. Each class of a library
has its own way with batch norm: what it follows, and what it evaluates with, is said here.
"""

import contextlib
from typing import Any, NamedTuple

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen, nnx

from fairmix_jax.models.adapters.equinox import equinox_logits, from_equinox
from fairmix_jax.models.adapters.haiku import from_haiku, haiku_logits
from fairmix_jax.models.adapters.nnx import from_nnx, nnx_logits
from fairmix_jax.models.described import from_linen

SHAPE, WIDTH, CLASSES, MOMENTUM = (8, 8, 1), 8, 10, 0.9


class Linen(linen.Module):
    @linen.compact
    def __call__(self, images, *, train):
        x = linen.Conv(WIDTH, (3, 3), strides=2)(images)
        x = linen.relu(linen.BatchNorm(not train, momentum=MOMENTUM)(x))
        return linen.Dense(CLASSES)(x.reshape(len(x), -1))


class NNX(nnx.Module):
    def __init__(self, rngs, *, dropout=0.0):
        self.conv = nnx.Conv(1, WIDTH, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=MOMENTUM, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.List([nnx.Linear(16 * WIDTH, CLASSES, rngs=rngs)])

    def __call__(self, images):
        x = self.dropout(nnx.relu(self.norm(self.conv(images))))
        return self.head[0](x.reshape(len(x), -1))


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: list

    def __init__(self, key, *, dropout=0.0, mode="batch"):
        first, last = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, WIDTH, 3, stride=2, padding="SAME", key=first)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", momentum=MOMENTUM, mode=mode)
        self.dropout = eqx.nn.Dropout(dropout)
        self.head = [eqx.nn.Linear(16 * WIDTH, CLASSES, key=last)]

    def __call__(self, image, state, key=None):
        x, state = self.norm(self.conv(image), state)
        x = self.dropout(jax.nn.relu(x), key=key)
        return self.head[0](x.ravel()), state


def haiku(images, is_training, *, dropout=0.0):
    x = hk.Conv2D(WIDTH, 3, stride=2, name="conv")(images)
    x = jax.nn.relu(hk.BatchNorm(True, True, MOMENTUM, name="norm")(x, is_training))
    if dropout and is_training:
        x = hk.dropout(hk.next_rng_key(), dropout, x)
    return hk.Linear(CLASSES, name="head")(x.reshape(len(x), -1))


def haiku_with_dropout(images, is_training):
    return haiku(images, is_training, dropout=0.5)


def _as_nnx(params):
    conv, norm, head = _layers(params)
    return {"conv": conv, "norm": norm, "head": {"0": head}}


def _as_equinox(params):
    """Kernels are OIHW; columns of a matrix behind an image are in the order C, H, W."""
    conv, norm, head = _layers(params)
    matrix = head["kernel"].reshape(4, 4, WIDTH, CLASSES).transpose(3, 2, 0, 1)
    return {
        "conv": {"weight": conv["kernel"].transpose(3, 2, 0, 1), "bias": conv["bias"]},
        "norm": {"weight": norm["scale"], "bias": norm["bias"]},
        "head": {"0": {"weight": matrix.reshape(CLASSES, -1), "bias": head["bias"]}},
    }


def _as_haiku(params):
    conv, norm, head = _layers(params)
    plain = {k: {"w": v["kernel"], "b": v["bias"]} for k, v in (("conv", conv), ("head", head))}
    return plain | {"norm": {"scale": norm["scale"], "offset": norm["bias"]}}


def _layers(params):
    return params["Conv_0"], params["BatchNorm_0"], params["Dense_0"]


def _nnx_follows(stats, count):
    return {"norm": stats["BatchNorm_0"]}


def _equinox_follows(stats, count):
    """The averages that linen has, and how many batches were seen."""
    mean, var = (stats["BatchNorm_0"][name] for name in ("mean", "var"))
    return {"0": jnp.float32(count), "1": {"0": mean, "1": var}}


def _haiku_follows(stats, count):
    """Averages that begin at zero, also that of the variance, and what they are without that."""
    followed = {}
    for name, start in (("mean", 0.0), ("var", 1.0)):
        hidden = stats["BatchNorm_0"][name] - start * MOMENTUM**count
        average = hidden / (1 - MOMENTUM**count)
        numbers = {"counter": jnp.float32(count), "hidden": hidden, "average": average}
        followed[f"{name}_ema"] = numbers
    return {"norm": {"~": followed}}


def _nnx_judges(stats, count):
    return stats


def _equinox_judges(stats, count):
    return jax.tree.map(lambda leaf: leaf / (1 - MOMENTUM**count), stats)


def _haiku_judges(stats, count):
    found = _haiku_follows(stats, count)["norm"]["~"]
    return {"BatchNorm_0": {name: found[f"{name}_ema"]["average"] for name in ("mean", "var")}}


class Guest(NamedTuple):
    """A library's network as a `Model`, and how linen's weights are written in that library."""

    model: Any  # () -> Model
    params: Any  # linen's params -> the model's
    follows: Any  # (linen's statistics, batches seen) -> the model's statistics
    judges: Any  # (linen's statistics, batches seen) -> those that linen evaluates equally with
    with_dropout: Any  # () -> Model


GUESTS = {
    "nnx": Guest(
        lambda: from_nnx(NNX), _as_nnx, _nnx_follows, _nnx_judges,
        lambda: from_nnx(lambda rngs: NNX(rngs, dropout=0.5)),
    ),
    "equinox": Guest(
        lambda: from_equinox(Equinox), _as_equinox, _equinox_follows, _equinox_judges,
        lambda: from_equinox(lambda key: Equinox(key, dropout=0.5)),
    ),
    "haiku": Guest(
        lambda: from_haiku(haiku, SHAPE), _as_haiku, _haiku_follows, _haiku_judges,
        lambda: from_haiku(haiku_with_dropout, SHAPE),
    ),
}  # fmt: skip


def linen_model():
    return from_linen(Linen(), SHAPE)


def with_linen_weights(name):
    """A guest's model that starts at the parameters that linen's starts at, for any key."""
    guest = GUESTS[name]
    model = guest.model()

    def init(key):
        _, stats = model.init(jax.random.clone(key))
        return guest.params(linen_model().init(key)[0]), stats

    return model._replace(init=init)


def with_an_axis_too_many():
    """A network whose logits have an axis too many."""

    def forward(images, is_training):
        return haiku(images, is_training)[:, None]

    return from_haiku(forward, SHAPE)


def trained(name, *, dropout=0.0):
    """A network in its library's own hands, after one batch, and its `logits_fn`."""
    images = jax.random.uniform(jax.random.key(5), (20, *SHAPE))
    if name == "nnx":
        module = NNX(nnx.Rngs(3), dropout=dropout)
        module(images)
        return module, nnx_logits(module)
    if name == "equinox":
        model, state = eqx.nn.make_with_state(Equinox)(jax.random.key(3), dropout=dropout)
        rows = jnp.moveaxis(images, -1, 1)
        keys = jax.random.split(jax.random.key(4), 20)
        call = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
        state = call(rows, state, keys)[1]
        return (model, state), equinox_logits(model, state)
    forward = haiku_with_dropout if dropout else haiku
    transformed = hk.transform_with_state(forward)
    params, state = transformed.init(jax.random.key(3), images, True)
    _, state = transformed.apply(params, state, jax.random.key(4), images, True)
    return (params, state), haiku_logits(forward, params, state)


@contextlib.contextmanager
def jax_as_users_have_it():
    """JAX without the tests' strictness about types and ranks, which libraries do not keep."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
