"""Robust accuracy of each class at many radii from one compiled program: `jit` and `vmap` over it.

The radius of a `ThreatModel` may be traced, so JAX treats it like any other input. A small network
learns scikit-learn's digits; then PGD-20 attacks it at twelve radii, once in a loop that calls one
compiled program and once in a single call. No download; under a minute on two cores:

    python examples/epsilon_sweep.py
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fairmix_jax import ThreatModel, pgd, tune

RADII = np.linspace(0, 0.22, 12, dtype=np.float32)


class Network(nn.Module):
    """Your network; it maps `[B, 8, 8, 1]` to logits `[B, 10]`."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(64)(images.reshape(len(images), -1)))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


tune()  # faster convolutions on CPU; before the first computation
images, labels = load_digits(return_X_y=True)
images, labels = (images / 16).reshape(-1, 8, 8, 1).astype("float32"), labels.astype("int32")
x_train, x_test, y_train, y_test = train_test_split(images, labels, stratify=labels, random_state=0)

init_key, attack_key = jax.random.split(jax.random.key(0))
network, tx = Network(), optax.sgd(0.1, momentum=0.9)
params = network.init(init_key, x_train[:1])


def logits_of(params, x):
    """Returns `[B, 10]`."""
    return network.apply(params, x)


@jax.jit
def train(params):
    """Returns the parameters after 200 steps on all training images."""

    def loss(params):
        logits = logits_of(params, x_train)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y_train).mean()

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=200)[0][0]


params = train(params)


def class_accuracy(params, epsilon):
    """Returns `[K]`, each class's accuracy under PGD-20 at one radius, `[]`."""
    logits_fn = partial(logits_of, params)
    adversarial = pgd(
        logits_fn,
        attack_key,
        x_test,
        y_test,
        threat=ThreatModel("linf", epsilon),
        num_steps=20,
        step_size=epsilon / 4,
    )
    correct = jnp.argmax(logits_fn(adversarial), axis=1) == y_test
    members = jax.nn.one_hot(y_test, 10)
    return correct.astype(jnp.float32) @ members / members.sum(axis=0)


traces = []


@jax.jit
def at_one_radius(params, epsilon):
    """Compiled once: for the second radius nothing is traced again."""
    traces.append(epsilon)
    return class_accuracy(params, epsilon)


start = time.perf_counter()
one_by_one = np.stack([at_one_radius(params, epsilon) for epsilon in RADII])
assert len(traces) == 1
print(f"{len(RADII)} calls of one program: {time.perf_counter() - start:.1f} s with compiling")

start = time.perf_counter()
together = np.asarray(jax.jit(jax.vmap(class_accuracy, (None, 0)))(params, RADII))
print(f"one call for all radii: {time.perf_counter() - start:.1f} s with compiling")
assert np.abs(together - one_by_one).max() < 0.03  # rounding may decide on one image of a class

print("radius  average  worst class")
for epsilon, accuracy in zip(RADII, together, strict=True):
    print(f"{epsilon:6.2f} {accuracy.mean():8.1%} {accuracy.min():8.1%} ({accuracy.argmin()})")
