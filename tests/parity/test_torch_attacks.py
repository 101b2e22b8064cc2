"""Our PGD against one written in torch and against foolbox; our convolution against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fairmix_jax.attacks import ThreatModel, pgd
from fairmix_jax.models import described
from fairmix_jax.models.convolution import conv
from fairmix_jax.runtime import registry

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore")  # foolbox imports deprecated names of scipy

K = 5
SHAPE = (8, 6, 3)
EPSILON = {"linf": 0.1, "l2": 0.5}


class TorchNetwork(torch.nn.Module):
    """`small_cnn` without normalisation layers; takes images `[B, H, W, C]`, as foolbox may."""

    def __init__(self, params):
        super().__init__()
        self.params = jax.tree.map(lambda a: torch.tensor(np.array(a)), params)

    def features(self, images):
        x = (images.permute(0, 3, 1, 2) - 0.5) / 0.25
        for i, stride in enumerate((1, 2, 2)):
            kernel = self.params[f"Conv_{i}"]["kernel"].permute(3, 2, 0, 1)
            x = F.relu(F.conv2d(x, kernel, stride=stride, padding=1))
        return x.permute(0, 2, 3, 1).flatten(1)

    def forward(self, images):
        dense = self.params["Dense_0"]
        return F.linear(self.features(images), dense["kernel"].T, dense["bias"])


@pytest.fixture(scope="module")
def problem():
    """Our logits, torch's network, 512 images around five prototypes, and their labels.

    The convolutions are random and the linear layer is fitted to the labels, so that clean
    images are classified correctly and the attacks below break some but not all of them.
    """
    rng = np.random.default_rng(0)
    module = registry.load("models", "small_cnn")(K, width=8, norm="none")
    model = described.from_linen(module, SHAPE, mean=[0.5] * 3, std=[0.25] * 3)
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(  # variance 2 / fan_in keeps the size of activations and gradients
        lambda s: np.float32(rng.normal(size=s.shape) * (2 / np.prod(s.shape[:-1])) ** 0.5), shapes
    )
    labels = rng.integers(K, size=512)
    prototypes = rng.integers(2, size=(K, 4, 3, 3))  # on the bounds, so that clipping matters
    share = rng.uniform(0.4, 0.9, (512, 1, 1, 1))
    blocks = share * prototypes[labels] + (1 - share) * rng.random((512, 4, 3, 3))
    images = np.float32(blocks.repeat(2, 1).repeat(2, 2))
    features = TorchNetwork(params).features(torch.tensor(images)).numpy()
    center = features.mean(0)
    ridge = features.T @ features + len(features) * np.eye(features.shape[1], dtype=np.float32)
    one_hot = np.eye(K, dtype=np.float32)[labels]
    weights = np.linalg.solve(ridge, 10 * (features - center).T @ one_hot)
    params["Dense_0"] = {"kernel": weights, "bias": -center @ weights}
    jax_params = jax.tree.map(jnp.asarray, params)
    return (
        lambda x: model.apply(jax_params, {}, x, train=False)[0],
        TorchNetwork(params),
        images,
        labels,
    )


def torch_loss(logits, labels, loss):
    """Returns one value an example."""
    if loss == "ce":
        return F.cross_entropy(logits, labels, reduction="none")
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, labels[:, None])[:, 0]


def torch_pgd(net, images, labels, start, *, norm, epsilon, steps, step_size, loss):
    """Steepest ascent in `norm`, projected onto the ball and then onto [0, 1]."""
    x = start
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(torch_loss(net(x), labels, loss).sum(), x)
        if norm == "linf":
            x = x + step_size * gradient.sign()
            x = torch.minimum(torch.maximum(x, images - epsilon), images + epsilon)
        else:
            x = x + step_size * F.normalize(gradient.flatten(1)).view_as(x)
            x = images + torch.renorm((x - images).flatten(1), 2, 0, epsilon).view_as(x)
        x = x.clamp(0, 1)
    return x.detach()


def our_pgd(problem, norm, **arguments):
    logits_fn, _, images, labels = problem
    attack = jax.jit(
        lambda: pgd(
            logits_fn, jax.random.key(1), jnp.asarray(images[:128]), jnp.asarray(labels[:128]),
            threat=ThreatModel(norm, EPSILON[norm]), step_size=EPSILON[norm] / 4, **arguments,
        )
    )  # fmt: skip
    return np.array(attack())


@pytest.fixture(scope="module", params=["linf", "l2"])
def norm_and_start(request, problem):
    """The random start is what `num_steps=0` returns."""
    start = our_pgd(problem, request.param, num_steps=0)
    assert np.abs(start - problem[2][:128]).mean() > EPSILON[request.param] / 100
    return request.param, start


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_pgd_equals_pgd_in_torch(norm_and_start, num_steps, loss, problem):
    """Both climb from the same start.

    Where rounding decides, one example in a hundred may go its own way: on which side of
    a ReLU's kink a step lands, or the sign of a gradient that is nearly zero.
    """
    (norm, start), (_, net, images, labels) = norm_and_start, problem
    ours = our_pgd(problem, norm, num_steps=num_steps, loss=loss)
    images, labels, start = (torch.tensor(a) for a in (images[:128], labels[:128], start))
    theirs = torch_pgd(
        net, images, labels, start,
        norm=norm, epsilon=EPSILON[norm], steps=num_steps, step_size=EPSILON[norm] / 4, loss=loss,
    )  # fmt: skip
    if num_steps <= 5:  # before rounding, of 1e-7 a step, can have grown
        different = np.abs(ours - theirs.numpy()) > 1e-5
        if norm == "linf":  # single pixels
            assert different.mean() <= 2e-3
        else:  # whole images
            assert different.any((1, 2, 3)).mean() <= 0.01
    logits = net(torch.tensor(ours)), net(theirs)
    ours, theirs = (torch_loss(x, labels, loss).numpy() for x in logits)
    assert np.isclose(ours, theirs, rtol=1e-3, atol=1e-3).mean() >= 0.99
    np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=1e-3)
    ours, theirs = ((x.argmax(1) != labels).numpy() for x in logits)
    assert (ours == theirs).mean() >= 0.99


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_as_strong_as_foolbox(norm, problem):
    """The same number of equal steps, each from its own random start, at several radii.

    Foolbox returns the last iterate, like us, but its success flags judge that iterate after
    one more clipping to the ball; both sides are judged here by the same network instead.
    Our radii are one attack, scaled.
    """
    foolbox = pytest.importorskip("foolbox")
    logits_fn, net, images, labels = problem
    num_steps, rel_stepsize = 10, 0.2
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm](
        steps=num_steps, rel_stepsize=rel_stepsize, random_start=True
    )

    @jax.jit
    def ours(key, scale):
        return pgd(
            logits_fn, key, jnp.asarray(images), jnp.asarray(labels), scale=scale,
            threat=ThreatModel(norm, EPSILON[norm]), num_steps=num_steps,
            step_size=rel_stepsize * EPSILON[norm],
        )  # fmt: skip

    torch.manual_seed(0)
    inputs, targets = torch.tensor(images), torch.tensor(labels)
    peer = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    factors = (0.5, 1.0, 1.5)
    epsilons = [factor * EPSILON[norm] for factor in factors]
    adversarial, _, _ = attack(peer, inputs, targets, epsilons=epsilons)
    for number, (factor, theirs) in enumerate(zip(factors, adversarial, strict=True)):
        mine = torch.tensor(np.array(ours(jax.random.key(number), factor)))
        logits = [net(x) for x in (mine, theirs)]
        losses = [torch_loss(x, targets, "ce").numpy() for x in logits]
        difference = losses[0] - losses[1]
        error = difference.std() / len(difference) ** 0.5
        accuracy = [(x.argmax(1) == targets).numpy().mean() for x in logits]
        assert abs(difference.mean()) <= 4 * error + 1e-6, factor
        assert abs(accuracy[0] - accuracy[1]) <= 0.02, factor


@settings(max_examples=20)
@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_convolution_equals_torch(size, kernel, stride, padding):
    """Value and both gradients; strides above the kernel size leave pixels unread."""
    assume(all(p < k for p, k in zip(padding, kernel, strict=True)))  # see conv's docstring
    rng = np.random.default_rng(0)
    shapes = (2, *size, 3), (*kernel, 3, 4)
    images, weights = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    x, k = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (images, weights))
    theirs = F.conv2d(
        x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), stride=stride, padding=padding
    ).permute(0, 2, 3, 1)
    cotangent = rng.normal(size=theirs.shape)
    theirs.backward(torch.tensor(cotangent))

    @jax.jit
    def ours(images, weights, cotangent):
        def f(x, k):
            return conv(x, k, stride=stride, padding=tuple((p, p) for p in padding))

        value, vjp = jax.vjp(f, images, weights)
        return value, *vjp(cotangent)

    mine = ours(*map(jnp.float32, (images, weights, cotangent)))
    for a, b in zip(mine, (theirs.detach(), x.grad, k.grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)  # sums of up to 160 terms
