"""Losses and gradients of the bases against formulas written in PyTorch from their description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from fairmix_jax.methods import awp  # noqa: E402
from fairmix_jax.methods.training_attack import TrainingAttack  # noqa: E402
from fairmix_jax.runtime import registry  # noqa: E402
from fairmix_jax.types import StepInput, ThreatModel  # noqa: E402

SIZE, CLASSES = 16, 5


def apply_fn(params, batch_stats, images, *, train, hidden=lambda x: x):
    features = hidden(jnp.tanh(images.reshape(len(images), -1) @ params["first"]))
    return features @ params["second"] + params["bias"][None], batch_stats


def apply_torch(params, images):
    return torch.tanh(images @ params["first"]) @ params["second"] + params["bias"]


def trades(params, clean, robust, labels, beta):
    p, q = F.softmax(apply_torch(params, clean), 1), apply_torch(params, robust)
    divergence = F.kl_div(F.log_softmax(q, 1), p, reduction="none").sum(1)
    return F.cross_entropy(apply_torch(params, clean), labels, reduction="none") + beta * divergence


def mart(params, clean, robust, labels, beta):
    p, q = (F.softmax(apply_torch(params, x), 1) for x in (clean, robust))
    own, others = q[range(SIZE), labels], q.clone()
    others[range(SIZE), labels] = -1
    boosted = -own.log() - (1.0001 - others.max(1).values + 1e-12).log()
    divergence = F.kl_div(q.log(), p, reduction="none").sum(1)
    return boosted + beta * divergence * (1.0000001 - p[range(SIZE), labels])


@pytest.fixture
def problem(rng):
    params = {
        "first": rng.normal(size=(12, 8)), "second": rng.normal(size=(8, CLASSES)),
        "bias": rng.normal(size=CLASSES),
    }  # fmt: skip
    images = rng.uniform(size=(2, SIZE, 12))
    return params, images, rng.integers(0, CLASSES, SIZE), rng.uniform(size=SIZE)


@pytest.mark.parametrize("name, reference", [("trades", trades), ("mart", mart)])
def test_losses_and_gradients(name, reference, problem):
    params, (clean, robust), labels, weights = problem
    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in params.items()}
    expected = reference(
        theirs, torch.tensor(clean), torch.tensor(robust), torch.tensor(labels), 4.0
    )
    (expected * torch.tensor(weights)).sum().backward()
    with jax.enable_x64(True):
        attack = TrainingAttack(ThreatModel(), num_steps=1, step_size=0.1)
        base = registry.load("bases", name)(apply_fn, attack, beta=4.0)
        ones = jnp.ones(SIZE)
        images, adversarial = (jnp.asarray(x).reshape(SIZE, 2, 6, 1) for x in (clean, robust))
        targets = jax.nn.one_hot(labels, CLASSES, dtype=jnp.float64)
        inputs = StepInput(images, targets, jnp.asarray(labels), *[ones] * 4)

        def loss(params):
            losses = base.loss(params, (), inputs, adversarial).losses
            return jnp.sum(losses * jnp.asarray(weights)), losses

        ours = {k: jnp.asarray(v) for k, v in params.items()}
        gradient, losses = jax.grad(loss, has_aux=True)(ours)
    np.testing.assert_allclose(losses, expected.detach(), rtol=1e-10)
    for key in params:
        np.testing.assert_allclose(gradient[key], theirs[key].grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("proxy_rate", [0.01, 0.1])
def test_weight_perturbation(proxy_rate, problem):
    """The original's: one ascent step of a copy, its difference rescaled to the weights."""
    params, (clean, _), labels, _ = problem
    proxy = {k: torch.tensor(v, requires_grad=True) for k, v in params.items()}
    optimizer = torch.optim.SGD(proxy.values(), lr=proxy_rate)
    (-F.cross_entropy(apply_torch(proxy, torch.tensor(clean)), torch.tensor(labels))).backward()
    gradient = {k: -v.grad.numpy().copy() for k, v in proxy.items()}
    optimizer.step()
    with jax.enable_x64(True):
        arrays = (jax.tree.map(jnp.asarray, tree) for tree in (params, gradient))
        moved = awp.perturb(*arrays, gamma=0.01)
    for key, weight in params.items():
        step = proxy[key].detach().numpy() - weight
        scale = 0.01 * np.linalg.norm(weight) / (np.linalg.norm(step) + 1e-20)
        expected = weight + scale * step if weight.ndim > 1 else weight
        np.testing.assert_allclose(moved[key], expected, rtol=1e-9)
