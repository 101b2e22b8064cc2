"""A trained CIFAR-10 network as ours: the ResNet-18 of pyautoattack on foolbox's 20 images.

Those are the first 20 test images; the network, trained without attacks, classifies all of
them correctly from pixels in [0, 1], without normalisation.
"""

from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fairmix_jax.attacks import ThreatModel, pgd
from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.stepwise import Example
from fairmix_jax.models import described
from fairmix_jax.runtime import registry

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")
resnet = pytest.importorskip("pyautoattack.examples.resnet")
autopgd = pytest.importorskip("pyautoattack.autopgd_base")
pytestmark = pytest.mark.filterwarnings("ignore")  # foolbox imports deprecated names of scipy

SHAPE = (32, 32, 3)
NUM_STEPS = 10
EPSILON = {"linf": 1 / 255, "l2": 40 / 255}  # these break 12 and 13 images
LAYERS = {
    "Conv_0": "conv1",
    "BatchNorm_0": "bn1",
    "Conv_1": "conv2",
    "BatchNorm_1": "bn2",
    "Conv_2": "shortcut.0",
    "BatchNorm_2": "shortcut.1",
    "Dense_0": "linear",
}
ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # torch's OI is our IO, its OIHW our HWIO


def converted(state, shapes):
    """Returns torch's state dictionary as our `(params, batch_stats)` of these shapes."""
    state = {name: a for name, a in state.items() if not name.endswith("num_batches_tracked")}

    def leaf(path, shape):
        *block, layer, array = (key.key for key in path[1:])
        prefix = ""
        if block:
            stage, number = divmod(int(block[0].removeprefix("BasicBlock_")), 2)
            prefix = f"layer{stage + 1}.{number}."
        theirs = state.pop(f"{prefix}{LAYERS[layer]}.{ARRAYS[array]}").numpy()
        ours = theirs.transpose(AXES[theirs.ndim])
        assert ours.shape == shape.shape, path
        return jnp.asarray(ours)

    trees = jax.tree_util.tree_map_with_path(leaf, shapes)
    assert not state
    return trees


def nchw(images):
    return torch.tensor(np.array(images)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def problem():
    """Our logits, torch's network, the images `[20, 32, 32, 3]` and their labels."""
    weights = resources.files("pyautoattack") / "examples" / "model_test.pt"
    net = resnet.ResNet18().eval()
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    module = registry.load("models", "resnet")(10)
    model = described.from_linen(module, SHAPE, mean=[0.0] * 3, std=[1.0] * 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, stats = converted(net.state_dict(), shapes)
    peer = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    images, labels = foolbox.utils.samples(peer, dataset="cifar10", batchsize=20)
    return (
        jax.jit(lambda x: model.apply(params, stats, x, train=False)[0]),
        net,
        jnp.asarray(images.permute(0, 2, 3, 1).numpy()),
        labels.numpy(),
    )


def margins(logits, labels):
    """Returns the largest other logit minus the label's, one value an example."""
    logits, is_label = np.asarray(logits), np.eye(10, dtype=bool)[labels]
    return np.where(is_label, -np.inf, logits).max(1) - logits[is_label]


@torch.no_grad()
def check_broken(problem, ours, theirs):
    """Checks that both break the same images, not all, each judged by its own network.

    Flags alone would not tell a step more or less; the median margin moves by 0.05 then, and
    the median leaves out the few images where rounding turns a sign or a checkpoint.
    """
    logits_fn, net, _, labels = problem
    ours, theirs = margins(logits_fn(ours), labels), margins(net(theirs), labels)
    broken = theirs > 0
    np.testing.assert_array_equal(ours > 0, broken)
    assert 5 <= broken.sum() <= 15
    assert np.median(np.abs(ours - theirs)[broken]) <= 0.03


@torch.no_grad()
def test_logits_equal(problem):
    logits_fn, net, images, labels = problem
    ours, theirs = np.asarray(logits_fn(images)), net(nchw(images)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)  # of values up to 20
    np.testing.assert_array_equal(ours.argmax(1), labels)
    np.testing.assert_array_equal(theirs.argmax(1), labels)


@pytest.mark.parametrize("norm", EPSILON)
def test_pgd_breaks_the_images_that_foolbox_breaks(norm, problem):
    """Equal steps from the image itself."""
    logits_fn, net, images, labels = problem
    rel_stepsize = 0.25
    ours = pgd(
        logits_fn, jax.random.key(0), images, jnp.asarray(labels),
        threat=ThreatModel(norm, EPSILON[norm]), num_steps=NUM_STEPS,
        step_size=rel_stepsize * EPSILON[norm], random_start=False,
    )  # fmt: skip
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm](
        steps=NUM_STEPS, rel_stepsize=rel_stepsize, random_start=False
    )
    peer = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    theirs, _, _ = attack(peer, nchw(images), torch.tensor(labels), epsilons=EPSILON[norm])
    check_broken(problem, ours, theirs)


@pytest.mark.parametrize("norm", EPSILON)
def test_apgd_breaks_the_images_that_pyautoattack_breaks(norm, problem, rng):
    """From the same points, half a radius from the images; both keep their last success."""
    logits_fn, net, images, labels = problem
    direction = rng.choice([-1.0, 1.0], size=images.shape)
    length = {"linf": 1.0, "l2": direction[0].size ** 0.5}[norm]
    start = np.clip(images + EPSILON[norm] / 2 / length * direction, 0, 1).astype(np.float32)
    attack = make_apgd(norm=norm, bounds=(0.0, 1.0), num_steps=NUM_STEPS)

    def one(image, label, x):
        key, rivals = jax.random.key(0), jnp.zeros(9, jnp.int32)
        example = Example(image, label, rivals, jnp.asarray(EPSILON[norm]), key, key)
        run, network = jnp.asarray(0), lambda image, _: logits_fn(image[None])[0]
        state = attack.start(example, run)
        state = state._replace(image=x, previous=x, best=x, adversarial=x)
        step = lambda count, state: attack.step(network, example, run, count, state)  # noqa: E731
        return lax.fori_loop(0, attack.num_steps, step, state).adversarial

    ours = jax.jit(jax.vmap(one))(images, jnp.asarray(labels), jnp.asarray(start))
    name = {"linf": "Linf", "l2": "L2"}[norm]
    attack = autopgd.APGDAttack(net, n_iter=NUM_STEPS, norm=name, eps=EPSILON[norm], loss="ce")
    attack.init_hyperparam(nchw(images))
    *_, theirs = attack.attack_single_run(nchw(images), torch.tensor(labels), x_init=nchw(start))
    check_broken(problem, ours, theirs)
