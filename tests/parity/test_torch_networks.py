"""Our networks against the same networks written with `torch.nn.functional`.

The torch side runs in float64, so that every difference is ours.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairmix_jax.models import described
from fairmix_jax.runtime import registry

torch = pytest.importorskip("torch")
F = torch.nn.functional

K = 7
SEED = 0  # no input of a ReLU is nearer to its kink than 4e-6, several float32 roundings
SHAPE = (16, 12, 3)  # not square; its halves are odd from the third on: 8x6, 4x3, 2x2
EVEN = (24, 16, 3)  # the halves that `padding="same"` takes: 12x8, 6x4, 3x2
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
SMOOTH = dict(activation="silu", padding="same")
NETWORKS = {
    "preact_resnet-10-8": ("preact_resnet", dict(depth=10, width=8)),
    "preact_resnet-18-4": ("preact_resnet", dict(depth=18, width=4)),
    "preact_resnet-10-8, DeepMind's": (
        "preact_resnet", dict(depth=10, width=8, shortcut="raw3x3", **SMOOTH),
    ),
    "preact_resnet-10-8, Wong's": (
        "preact_resnet", dict(depth=10, width=8, shortcut="raw", last_norm=False),
    ),
    "wide_resnet-10-1": ("wide_resnet", dict(depth=10, width=1)),
    "wide_resnet-10-2, DeepMind's": ("wide_resnet", dict(depth=10, width=2, **SMOOTH)),
    "resnet-10-8": ("resnet", dict(depth=10, width=8)),
    "resnet-14-4": ("resnet", dict(depth=14, width=4)),
    "small_cnn-8": ("small_cnn", dict(width=8)),
}  # fmt: skip


class TorchNetwork:
    """The reference; its leaves stay in flax layout, so that gradients compare leaf by leaf.

    With `train`, batch statistics normalise, torch updates `stats` in place, and `counts`
    collects the number of values behind each of them.
    """

    def __init__(self, name, params, stats, *, train):
        kind, self.options = NETWORKS[name]
        self.forward = self.small_cnn if kind == "small_cnn" else self.resnet
        self.blocks = (2, 2, 2, 2) if self.options.get("depth") == 18 else (1, 1, 1, 1)
        self.blocks = (1, 1, 1) if kind == "wide_resnet" else self.blocks
        self.block = next((key[:-1] for key in params if key.endswith("k_0")), None)
        self.activate = F.silu if self.options.get("activation") == "silu" else F.relu
        self.params = jax.tree.map(lambda a: tensor(a).requires_grad_(), params)
        self.stats, self.counts = jax.tree.map(tensor, stats), jax.tree.map(lambda _: 0, stats)
        self.train = train

    def __call__(self, images):
        """Maps `[B, H, W, C]` in pixel units to logits `[B, K]`."""
        x = (images - tensor(MEAN)) / tensor(STD)
        return self.forward(x.permute(0, 3, 1, 2))

    def small_cnn(self, x):
        for i, stride in enumerate((1, 2, 2)):
            x = self.conv(x, self.params[f"Conv_{i}"], stride)
            x = F.relu(self.batch_norm(x, f"BatchNorm_{i}"))
        return self.linear(x.permute(0, 2, 3, 1).flatten(1))  # rows, columns, channels

    def resnet(self, x):
        is_preact = self.block == "PreActBlock_"
        x = self.conv(x, self.params["Conv_0"])
        x = x if is_preact else F.relu(self.batch_norm(x, "BatchNorm_0"))
        strides = [
            2 if stage > 0 and i == 0 else 1
            for stage, n in enumerate(self.blocks)
            for i in range(n)
        ]
        for i, stride in enumerate(strides):
            block = self.preact_block if is_preact else self.plain_block
            x = block(x, f"{self.block}{i}", stride)
        if is_preact and self.options.get("last_norm", True):
            x = self.activate(self.batch_norm(x, "BatchNorm_0"))
        return self.linear(x.mean((2, 3)))

    def preact_block(self, x, name, stride):
        params = self.params[name]
        *projection, first, second = (params[key] for key in sorted(params) if "Conv" in key)
        assert bool(projection) == (stride > 1 or x.shape[1] != first["kernel"].shape[-1])
        active = self.activate(self.batch_norm(x, name, "BatchNorm_0"))
        y = self.conv(active, first, stride)
        y = self.conv(self.activate(self.batch_norm(y, name, "BatchNorm_1")), second)
        if not projection:
            return x + y
        shortcut = self.options.get("shortcut", "activated")
        assert len(projection[0]["kernel"]) == (3 if shortcut == "raw3x3" else 1)
        return y + self.conv(active if shortcut == "activated" else x, projection[0], stride)

    def plain_block(self, x, name, stride):
        params, y = self.params[name], x
        convolutions = [params[key] for key in sorted(params) if "Conv" in key]
        strides = {"BasicBlock_": (stride, 1), "Bottleneck_": (1, stride, 1)}[self.block]
        for i, (kernel, own) in enumerate(zip(convolutions, strides, strict=False)):
            y = F.relu(y) if i else y
            y = self.batch_norm(self.conv(y, kernel, own), name, f"BatchNorm_{i}")
        assert (len(convolutions) > len(strides)) == (stride > 1 or x.shape[1] != y.shape[1])
        if len(convolutions) > len(strides):
            x = self.conv(x, convolutions[-1], stride)
            x = self.batch_norm(x, name, f"BatchNorm_{len(strides)}")
        return F.relu(x + y)

    def conv(self, x, params, stride=1):
        kernel = params["kernel"].permute(3, 2, 0, 1)
        size = kernel.shape[-1]
        if self.options.get("padding") == "same" and stride == 2 and size == 3:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), kernel, stride=2)
        return F.conv2d(x, kernel, stride=stride, padding=size // 2)

    def batch_norm(self, x, *path):
        params, stats, counts = (
            functools.reduce(dict.get, path, tree)
            for tree in (self.params, self.stats, self.counts)
        )
        counts["mean"] = counts["var"] = x.numel() // x.shape[1]
        return F.batch_norm(
            x, stats["mean"], stats["var"], params["scale"], params["bias"],
            training=self.train, momentum=0.1, eps=1e-5,
        )  # fmt: skip

    def linear(self, x):
        return F.linear(x, self.params["Dense_0"]["kernel"].T, self.params["Dense_0"]["bias"])


def tensor(array):
    return torch.tensor(np.array(array), dtype=torch.float64)


def drawn(shapes, rng):
    """Returns random arrays: no mean or bias is 0, no variance or scale is 1."""

    def leaf(path, shape):
        if path[-1].key == "kernel":
            new = rng.normal(size=shape.shape) * (2 / np.prod(shape.shape[:-1])) ** 0.5
        elif path[-1].key == "var":
            new = 10 ** rng.uniform(-2, 0, shape.shape)  # near 0.01, an epsilon of 1e-5 shows
        elif path[-1].key == "scale":
            new = rng.uniform(0.5, 1.5, shape.shape)
        else:
            new = 0.3 * rng.normal(size=shape.shape)
        return jnp.asarray(new, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def close(ours, theirs, tolerance):
    """Checks the largest difference relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs.detach())
    assert ours.shape == theirs.shape
    size = np.abs(theirs).max()
    assert size > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * size)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network with all its arrays random, eight images and labels."""
    rng, model = np.random.default_rng(SEED), made(request.param)
    params, stats = drawn(jax.eval_shape(model.init, jax.random.key(0)), rng)
    images = jnp.asarray(rng.random((8, *shape_for(request.param))), jnp.float32)
    return request.param, model.apply, params, stats, images, np.arange(8) % K


def shape_for(name):
    return EVEN if NETWORKS[name][1].get("padding") == "same" else SHAPE


def made(name, **changes):
    """Returns a network of ours, some of its arguments changed."""
    kind, arguments = NETWORKS[name]
    module = registry.load("models", kind)(K, **(arguments | changes))
    return described.from_linen(module, shape_for(name), mean=MEAN, std=STD)


def ours(apply, params, stats, images, labels, *, train, argnums):
    """Returns logits, new statistics and the gradient of the summed cross-entropy."""

    def loss(params, images):
        logits, new_stats = apply(params, stats, images, train=train)
        picked = jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
        return -jnp.sum(picked), (logits, new_stats)

    gradient, aux = jax.jit(jax.grad(loss, argnums, has_aux=True))(params, images)
    return *aux, gradient


def theirs(name, params, stats, images, labels, *, train):
    """Returns the network after its backward pass, the images with their gradient, the logits."""
    net = TorchNetwork(name, params, stats, train=train)
    x = tensor(images).requires_grad_()
    logits = net(x)
    F.cross_entropy(logits, torch.tensor(labels), reduction="sum").backward()
    return net, x, logits


def test_logits_and_input_gradients_with_running_statistics(network):
    name, apply, *rest = network
    logits, _, gradient = ours(apply, *rest, train=False, argnums=1)
    _, x, their_logits = theirs(name, *rest, train=False)
    # Float32 over up to 18 layers: 1e-6 each and no cancellation.
    close(logits, their_logits, 1e-4)
    close(gradient, x.grad, 1e-4)


WRONG = {
    "preact_resnet-10-8": [dict(activation="silu"), dict(shortcut="raw"), dict(last_norm=False)],
    "preact_resnet-10-8, DeepMind's": [dict(activation="relu"), dict(padding="torch")],
    "preact_resnet-10-8, Wong's": [dict(activation="silu"), dict(shortcut="activated")],
    "wide_resnet-10-2, DeepMind's": [
        dict(activation="relu"), dict(padding="torch"), dict(shortcut="raw"), dict(last_norm=False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("network", WRONG, indirect=True)
def test_every_wrong_option_shows_in_the_logits(network):
    """So the parity above, which is a hundred times finer, is of the options that are named."""
    name, apply, params, stats, images, _ = network
    right, _ = jax.jit(lambda x: apply(params, stats, x, train=False))(images)
    for changes in WRONG[name]:
        other = made(name, **changes).apply
        wrong, _ = jax.jit(lambda x, other=other: other(params, stats, x, train=False))(images)
        assert np.abs(wrong - right).max() > 1e-2 * np.abs(right).max(), changes


def test_parameter_gradients_and_new_statistics_with_batch_statistics(network):
    """Flax keeps the biased variance of the batch and torch the unbiased one, `n / (n - 1)` of it.

    Flax's momentum 0.9 weighs the old value and is torch's 0.1, which weighs the new one.
    """
    name, apply, *rest = network
    logits, new_stats, gradients = ours(apply, *rest, train=True, argnums=0)
    net, _, their_logits = theirs(name, *rest, train=True)
    close(logits, their_logits, 1e-4)
    # Batch norm's gradient is a difference of nearly equal sums: less exact than the logits.
    for (path, leaf), reference in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(net.params), strict=True
    ):
        assert reference.grad is not None, path
        close(leaf, reference.grad, 1e-3)

    def expected(path, old, new, n):
        if path[-1].key == "mean":
            return new
        return 0.9 * old + (new - 0.9 * old) * (n - 1) / n

    old_stats = jax.tree.map(tensor, rest[1])
    stats = jax.tree_util.tree_map_with_path(expected, old_stats, net.stats, net.counts)
    assert jax.tree.structure(stats) == jax.tree.structure(new_stats)
    for leaf, reference in zip(jax.tree.leaves(new_stats), jax.tree.leaves(stats), strict=True):
        close(leaf, reference, 1e-5)  # float32 rounding of E[x^2] - E[x]^2
