"""Our attacks against pyautoattack's, which are their authors' own, point by point in float64.

Both attack one small network, from the same starts and with the same draws. Whole attacks, in
float32, must come to the same results.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fairmix_jax import attacks
from fairmix_jax.attacks import ThreatModel, losses
from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.fab import make as make_fab
from fairmix_jax.attacks.projections import to_hyperplane
from fairmix_jax.attacks.square import Draw
from fairmix_jax.attacks.square import make as make_square
from fairmix_jax.attacks.stepwise import Example, Stepwise
from fairmix_jax.models.convolution import conv

torch = pytest.importorskip("torch")
autopgd_base = pytest.importorskip("pyautoattack.autopgd_base")
fab_projections = pytest.importorskip("pyautoattack.fab_projections")
fab_pt = pytest.importorskip("pyautoattack.fab_pt")
reference_square = pytest.importorskip("pyautoattack.square")
F = torch.nn.functional

K = 10
NUM_IMAGES = 40
NUM_QUERIES = 300  # four sizes of squares
BOUNDS = (0.0, 1.0)
NORMS = {"linf": "Linf", "l2": "L2"}  # and their names in the reference
EPSILON = {"linf": 0.05, "l2": 0.8}
LARGE = 1e3  # a radius in which FAB keeps whatever it finds
COMPILER = {"xla_backend_optimization_level": 1}  # compiles in half the time
each_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More threads only wait for each other on arrays as small as these."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def float64(monkeypatch):
    """Float64 on both sides, even where the reference converts to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def nchw(images):
    return torch.tensor(np.array(images)).permute(0, 3, 1, 2).contiguous()


def nhwc(images):
    return images.detach().permute(0, 2, 3, 1).numpy().copy()


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


class Weights(NamedTuple):
    """Of two convolutions with stride 2 and ReLU and a linear layer, in float64."""

    kernels: list
    dense: np.ndarray
    bias: np.ndarray


def logits_of(weights, images):
    """The network in JAX, `[B, H, W, C]` to `[B, K]`, in the dtype of the images."""
    x = images - 0.5
    for kernel in weights.kernels:
        kernel = jnp.asarray(kernel, x.dtype)
        x = jax.nn.relu(conv(x, kernel, stride=2, padding=((1, 1), (1, 1))))
    dense, bias = (jnp.asarray(a, x.dtype) for a in (weights.dense, weights.bias))
    return x.reshape(len(x), -1) @ dense + bias[None]


def features(kernels, images):
    """The convolutions in torch, `[B, C, H, W]` to `[B, D]`."""
    x = images - 0.5
    for kernel in kernels:
        x = F.relu(F.conv2d(x, torch.tensor(kernel).to(x).permute(3, 2, 0, 1), None, 2, 1))
    return x.permute(0, 2, 3, 1).flatten(1)


class TorchNetwork:
    """The network in torch; `seen` lists the images it was given, `[B, H, W, C]` each."""

    def __init__(self, weights):
        self.weights = weights
        self.seen = []

    def __call__(self, images):
        self.seen.append(nhwc(images))
        x = features(self.weights.kernels, images)
        return x @ torch.tensor(self.weights.dense).to(x) + torch.tensor(self.weights.bias).to(x)


class Problem(NamedTuple):
    """Weights; images `[N, H, W, C]`; the classes `[N, K]` by falling logit, labels first."""

    weights: Weights
    images: np.ndarray
    classes: np.ndarray


@pytest.fixture(scope="module")
def problem():
    """Images of 16 x 12 around ten prototypes, all classified correctly.

    The convolutions are random and the linear layer is fitted, which makes the network so
    robust that perturbations reach its kinks and the bounds.
    """
    rng = np.random.default_rng(0)
    shapes = (3, 3, 3, 8), (3, 3, 8, 16)
    kernels = [rng.normal(size=s) * (2 / np.prod(s[:-1])) ** 0.5 for s in shapes]
    labels = rng.integers(K, size=512)
    prototypes = rng.integers(2, size=(K, 4, 3, 3))
    share = rng.uniform(0.2, 0.9, (512, 1, 1, 1))
    blocks = share * prototypes[labels] + (1 - share) * rng.random((512, 4, 3, 3))
    images = blocks.repeat(4, 1).repeat(4, 2)
    x = features(kernels, nchw(images)).numpy()
    center = x.mean(0)
    ridge = x.T @ x + len(x) * np.eye(x.shape[1])
    dense = np.linalg.solve(ridge, 10 * (x - center).T @ np.eye(K)[labels])
    weights = Weights(kernels, dense, -center @ dense)
    images = images[:NUM_IMAGES]
    logits = TorchNetwork(weights)(nchw(images)).numpy()
    return Problem(weights, images, np.argsort(-logits))


def check_broken(ours, theirs):
    """Checks that both break the same images: some, not all."""
    np.testing.assert_array_equal(ours, theirs)
    assert NUM_IMAGES / 8 <= np.sum(theirs) <= NUM_IMAGES * 7 / 8


def trajectory(attack: Stepwise, problem, epsilon, begin, observe, *, runs=None, starts=None):
    """Takes all steps of one run of our attack on every image.

    Args:
      attack: see `Stepwise`.
      problem: see `Problem`.
      epsilon: the radius.
      begin: `(State, start) -> State`, puts in the image to start from.
      observe: `(State before a step, images the network was given in it) -> pytree`.
      runs: `[N]` int, the number of each image's run; 0 if `None`.
      starts: `[N, H, W, C]`; the images if `None`.

    Returns: what was observed, `[steps, N, ...]`, and the last state, `[N, ...]`.
    """
    images, classes = jnp.asarray(problem.images), jnp.asarray(problem.classes)
    runs = jnp.zeros(len(images), jnp.int32) if runs is None else jnp.asarray(runs)
    starts = images if starts is None else jnp.asarray(starts)
    radii = jnp.full(len(images), epsilon)
    keys = jax.random.split(jax.random.key(0), (2, len(images)))
    examples = Example(images, classes[:, 0], classes[:, 1:], radii, *keys)

    def one(example, run, image):
        def step(state, count):
            given = []

            def network(image, _):
                given.append(image)
                return logits_of(problem.weights, image[None])[0]

            after = attack.step(network, example, run, count, state)
            return after, observe(state, given)

        state = begin(attack.start(example, run), image)
        state, observed = lax.scan(step, state, jnp.arange(attack.num_steps, dtype=jnp.int32))
        return observed, state

    run_all = jax.jit(jax.vmap(one, out_axes=(1, 0)), compiler_options=COMPILER)
    return jax.tree.map(np.asarray, run_all(examples, runs, starts))


def whole_attack(attack, problem, threat, **arguments):
    """Returns `[N, H, W, C]` float32, the result of one of our attacks on float32 images."""

    def run(key, images, labels):
        return attack(
            lambda x: logits_of(problem.weights, x), key, images, labels,
            threat=threat, **arguments,
        )  # fmt: skip

    images, labels = jnp.asarray(problem.images, jnp.float32), jnp.asarray(problem.classes[:, 0])
    return np.asarray(jax.jit(run, compiler_options=COMPILER)(jax.random.key(0), images, labels))


# Losses


def their_losses(labels, targets):
    """Functions of logits `[B, K]`, under the names of ours."""
    untargeted = autopgd_base.APGDAttack(None, eps=1.0)
    targeted = autopgd_base.APGDAttack_targeted(None, eps=1.0)
    targeted.y_target = targets
    search = reference_square.SquareAttack(torch.clone, eps=1.0)
    return {
        "cross_entropy": lambda logits: F.cross_entropy(logits, labels, reduction="none"),
        "margin": lambda logits: -search.margin_and_loss(logits, labels)[0],
        "dlr": lambda logits: untargeted.dlr_loss(logits, labels),
        "targeted_dlr": lambda logits: targeted.dlr_loss_targeted(logits, labels),
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "num_classes"),
    [(name, k) for name in ("cross_entropy", "margin", "dlr", "targeted_dlr") for k in (4, 10)]
    + [("dlr", 3)],
)
def test_losses_and_their_gradients(name, num_classes, rng):
    """Equal; among equal logits, which one gets the gradient is a matter of choice."""
    labels = rng.integers(num_classes, size=200)
    targets = (labels + rng.integers(1, num_classes, size=200)) % num_classes
    arguments = (labels, targets) if name == "targeted_dlr" else (labels,)
    ours = jax.jit(jax.vmap(jax.value_and_grad(getattr(losses, name))))
    theirs = their_losses(torch.tensor(labels), torch.tensor(targets))[name]
    different = 3 * rng.normal(size=(200, num_classes))
    with_ties = rng.integers(-2, 3, (200, num_classes)).astype(float)
    for logits in different, with_ties:
        value, gradient = ours(jnp.asarray(logits), *map(jnp.asarray, arguments))
        z = torch.tensor(logits, requires_grad=True)
        their_value = theirs(z)
        np.testing.assert_allclose(value, their_value.detach(), rtol=1e-12, atol=1e-12)
        if logits is different:
            their_value.sum().backward()
            np.testing.assert_allclose(gradient, z.grad, rtol=1e-12, atol=1e-12)


# Projection onto a hyperplane


class Hyperplanes(NamedTuple):
    """Points and weights, `[N, D]`; levels `[N]`; which the box can reach, `[N]`."""

    points: np.ndarray
    weights: np.ndarray
    levels: np.ndarray
    reachable: np.ndarray


@pytest.fixture(scope="module")
def hyperplanes():
    """In turn through the point, out of reach, and twice through another point of the box.

    Of the points' coordinates none, some or all lie on the bounds; of the weights none, some
    or nearly all are zero; of the other point's coordinates any share is that of the point.
    """
    rng = np.random.default_rng(1)
    shape = n, _ = 800, 24
    is_on_bound = rng.random(shape) < rng.choice([0.0, 0.3, 1.0], size=(n, 1))
    points = np.where(is_on_bound, rng.integers(2, size=shape), rng.random(shape))
    is_zero = rng.random(shape) < rng.choice([0.0, 0.3, 0.9], size=(n, 1))
    weights = np.where(is_zero, 0.0, rng.normal(size=shape))
    is_shared = rng.random(shape) < rng.random((n, 1))
    others = np.where(is_shared, points, rng.random(shape))
    beyond = rng.choice([-1, 1], size=n) * (np.abs(weights).sum(1) + 0.5)
    kind = np.arange(n) % 4
    through = np.where((kind == 0)[:, None], points, others)
    levels = np.where(kind == 1, beyond, np.sum(weights * through, 1))
    return Hyperplanes(points, weights, levels, kind != 1)


def our_moves(hyperplanes, norm):
    @jax.jit
    @jax.vmap
    def move(points, weights, levels):
        return to_hyperplane(points, weights, levels, norm=norm, bounds=BOUNDS)

    return np.asarray(move(*map(jnp.asarray, hyperplanes[:3])))


@pytest.mark.usefixtures("float64")
@each_norm
def test_projection_onto_hyperplane_equals(norm, hyperplanes):
    reference = {"linf": fab_projections.projection_linf, "l2": fab_projections.projection_l2}
    theirs = reference[norm](*map(torch.tensor, hyperplanes[:3]))
    close(our_moves(hyperplanes, norm), theirs.numpy(), 1e-12)


@pytest.mark.usefixtures("float64")
@each_norm
def test_projection_onto_hyperplane_is_the_shortest(norm, hyperplanes):
    """It is feasible, and moves each coordinate by one multiplier or to its bound.

    For a convex problem these conditions (Karush, Kuhn and Tucker) suffice. The multiplier
    of a hyperplane out of reach is infinite.
    """
    points, weights, levels, reachable = hyperplanes
    moves = our_moves(hyperplanes, norm)
    excess = np.sum(weights * points, 1) - levels
    close((excess + np.sum(weights * moves, 1))[reachable], 0, 1e-12)
    slopes = -np.sign(excess)[:, None] * {"linf": np.sign(weights), "l2": weights}[norm]
    rates = np.divide(moves, slopes, out=np.zeros_like(moves), where=slopes != 0)
    multiplier = np.where(reachable, rates.max(1), 1e9)[:, None]
    close(moves, np.clip(multiplier * slopes, -points, 1 - points), 1e-12)


# APGD


@pytest.fixture(scope="module")
def starts(problem):
    """Points in both balls, `[N, H, W, C]`: random ones, and maxima of cross-entropy.

    From a maximum the loss falls, which the random half of the images rarely meets.
    """
    rng = np.random.default_rng(2)
    uniform = rng.uniform(-1, 1, problem.images.shape)
    normal = rng.normal(size=uniform.shape)
    l2 = normal / np.sqrt(np.sum(normal**2, (1, 2, 3), keepdims=True))
    points = {}
    for norm, offsets in {"linf": uniform, "l2": l2}.items():
        points[norm] = np.clip(problem.images + EPSILON[norm] * offsets, *BOUNDS)
        images, labels = nchw(problem.images), torch.tensor(problem.classes[:, 0])
        reference = autopgd_base.APGDAttack(
            TorchNetwork(problem.weights), norm=NORMS[norm], n_iter=10, eps=EPSILON[norm]
        )
        reference.init_hyperparam(images)
        best, *_ = reference.attack_single_run(images, labels, x_init=nchw(points[norm]))
        points[norm][::2] = nhwc(best)[::2]
    return points


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_steps", [10, 100])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted_dlr"])
@each_norm
def test_apgd_visits_the_same_points(norm, loss, num_steps, problem, starts):
    """With DLR, only up to an image's first success.

    After it the label can come third, where DLR is constant and its gradient mere rounding,
    or few logits be nearly equal, where it is so steep that rounding grows from step to step.
    """
    ours = dict(norm=norm, bounds=BOUNDS, num_steps=num_steps)
    theirs = dict(norm=NORMS[norm], n_iter=num_steps, eps=EPSILON[norm])
    runs = np.arange(NUM_IMAGES) % (K - 1)  # another target for each image
    network = TorchNetwork(problem.weights)
    if loss == "targeted_dlr":
        attack = make_apgd(targeted=True, **ours)
        reference = autopgd_base.APGDAttack_targeted(network, **theirs)
        reference.y_target = torch.tensor(problem.classes[np.arange(NUM_IMAGES), 1 + runs])
    else:
        attack = make_apgd(**ours, loss=loss)
        reference = autopgd_base.APGDAttack(network, **theirs, loss=loss)
    images, labels = nchw(problem.images), torch.tensor(problem.classes[:, 0])
    reference.init_hyperparam(images)
    best, is_right, best_loss, adversarial = reference.attack_single_run(
        images, labels, x_init=nchw(starts[norm])
    )
    (points, broken), state = trajectory(
        attack, problem, EPSILON[norm],
        lambda state, x: state._replace(image=x, previous=x, best=x, adversarial=x),
        lambda state, _: (state.image, state.broken),
        runs=runs, starts=starts[norm],
    )  # fmt: skip
    compared = ~broken | (loss == "ce")
    close(points[compared], np.stack(network.seen)[compared], 1e-10)
    check_broken(state.broken, ~is_right.numpy())
    compared = compared.all(0)
    close(state.best_loss[compared], best_loss.numpy()[compared], 1e-10)
    close(state.best[compared], nhwc(best)[compared], 1e-10)
    compared &= state.broken
    close(state.adversarial[compared], nhwc(adversarial)[compared], 1e-10)


@pytest.mark.parametrize("is_targeted", [False, True])
@each_norm
def test_apgd_breaks_as_many_images(norm, is_targeted, problem):
    """From random starts of each side's own."""
    num_steps = 20
    threat = ThreatModel(norm, EPSILON[norm])
    labels = problem.classes[:, 0]
    network = TorchNetwork(problem.weights)
    attack = attacks.apgd_targeted if is_targeted else attacks.apgd
    ours = whole_attack(attack, problem, threat, num_steps=num_steps)
    make = autopgd_base.APGDAttack_targeted if is_targeted else autopgd_base.APGDAttack
    reference = make(network, norm=NORMS[norm], n_iter=num_steps, eps=EPSILON[norm])
    theirs = reference.perturb(nchw(problem.images), torch.tensor(labels))
    ours, theirs = (network(x).argmax(1).numpy() != labels for x in (nchw(ours), theirs))
    assert abs(ours.sum() - theirs.sum()) <= 2
    assert NUM_IMAGES / 8 <= theirs.sum() <= NUM_IMAGES * 7 / 8


# FAB


def their_fab(problem, norm, num_steps, rank, dtype):
    """Returns the nearest points `[N, H, W, C]`, and all points `[2 num_steps, N, H, W, C]`.

    `rank` is the target's among the other classes by falling logit; `None` is untargeted.
    """
    network = TorchNetwork(problem.weights)
    reference = fab_pt.FABAttack_PT(network, norm=NORMS[norm], n_iter=num_steps)
    reference.target_class = None if rank is None else rank + 2
    nearest = reference.attack_single_run(
        nchw(problem.images.astype(dtype)), torch.tensor(problem.classes[:, 0]),
        is_targeted=rank is not None,
    )  # fmt: skip
    return nhwc(nearest), np.stack(network.seen[-2 * num_steps :])


def distances(problem, images, norm):
    offsets = (images - problem.images.astype(images.dtype)).reshape(len(images), -1)
    return np.linalg.norm(offsets, {"linf": np.inf, "l2": 2}[norm], axis=1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rank", [None, 0, 3])
@each_norm
def test_fab_visits_the_same_points(norm, rank, problem):
    """Those where it linearises the network, and those across the boundary."""
    ours = dict(norm=norm, bounds=BOUNDS, num_steps=100)
    attack = make_fab(**ours, targeted=rank is not None)
    (points, crossed), state = trajectory(
        attack, problem, LARGE,
        lambda state, _: state,
        lambda state, given: (state.image, given[-1]),
        runs=np.full(NUM_IMAGES, rank or 0),
    )  # fmt: skip
    nearest, seen = their_fab(problem, norm, 100, rank, np.float64)
    close(points, seen[::2], 1e-10)
    close(crossed, seen[1::2], 1e-10)
    close(state.adversarial, nearest, 1e-10)
    np.testing.assert_array_equal(state.broken, distances(problem, nearest, norm) > 0)


@pytest.mark.parametrize(("rank", "num_steps"), [(None, 20), (0, 1), (0, 20), (0, 100)])
@each_norm
def test_fab_finds_the_same_minimal_norms(norm, rank, num_steps, problem):
    """In float32, in which the reference computes whatever it is given.

    One step finds a quarter of the images, more find all.
    """
    attack = attacks.fab if rank is None else attacks.fab_targeted
    targets = {} if rank is None else {"num_targets": 1}
    ours = whole_attack(
        attack, problem, ThreatModel(norm, 1.0 if norm == "linf" else LARGE),  # the whole range
        num_steps=num_steps, early_exit=False, **targets,
    )  # fmt: skip
    theirs, _ = their_fab(problem, norm, num_steps, rank, np.float32)
    ours, theirs = (distances(problem, x, norm) for x in (ours, theirs))
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


# Square


class NotedSquare(reference_square.SquareAttack):
    """The reference, with the same signs for all images, which notes what it draws."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, resc_schedule=False)
        self.signs, self.corners, self.turned = [], [], []

    def random_choice(self, shape):
        signs = super().random_choice(shape[-3:])
        self.signs.append(signs.permute(1, 2, 0).numpy())
        return signs.expand(shape)

    def random_int(self, low=0, high=1):
        number = super().random_int(low, high)
        self.corners.append((number.item() + 0.5) / max(high, 1))  # of which ours is the floor
        return number

    def eta(self, s):
        bump = super().eta(s)
        self.turned.append(bool((bump[0] < 0).any()))
        return bump

    def draws(self):
        """Returns our source of randomness, which repeats the queries' draws."""
        corners = np.reshape(self.corners, (NUM_QUERIES, -1, 2))
        signs = np.stack(self.signs[-NUM_QUERIES:])  # after those of the start
        turned = np.array(self.turned[-NUM_QUERIES:] or [False] * NUM_QUERIES)
        table = jax.tree.map(jnp.asarray, Draw(corners[:, 0], corners[:, -1], signs, turned))
        return lambda key, count, num_channels: jax.tree.map(lambda column: column[count], table)


@pytest.mark.usefixtures("float64")
@each_norm
def test_square_makes_the_same_queries(norm, problem):
    """A query depends on which were kept before it; broken images make none.

    In L2 the mass to spare is the root of `epsilon^2 - ||delta||^2`, mostly the root of
    rounding, 1e-8. Ours stay about ten units of rounding inside of the ball, where that root is
    `sqrt(2 * 10 * 2.2e-16)` of epsilon, 7e-8, and queries on top of each other add it up.
    """
    tolerance = {"linf": 1e-10, "l2": 1e-5}[norm]
    torch.manual_seed(0)
    epsilon = 1.5 * EPSILON[norm]
    network = TorchNetwork(problem.weights)
    reference = NotedSquare(network, norm=NORMS[norm], n_queries=NUM_QUERIES, eps=epsilon)
    images, labels = nchw(problem.images), torch.tensor(problem.classes[:, 0])
    reference.init_hyperparam(images)
    _, best = reference.attack_single_run(images, labels)
    start, *_ = network.seen
    attack = make_square(norm=norm, bounds=BOUNDS, num_queries=NUM_QUERIES, draws=reference.draws())
    (queries, broken, kept_loss), state = trajectory(
        attack, problem, epsilon,
        lambda state, x: state._replace(best=x, adversarial=x),
        lambda state, given: (given[-1], state.broken, state.loss),
        starts=start,
    )  # fmt: skip
    for ours, was_broken, theirs in zip(queries, broken, network.seen, strict=True):
        close(ours[~was_broken], theirs, tolerance)
    margins = reference.margin_and_loss(best, labels)[0].numpy()
    check_broken(state.broken, margins <= 0)
    close(state.loss[~state.broken], margins[~state.broken], 10 * tolerance)
    kept = np.diff(kept_loss[1:, ~state.broken], axis=0) < 0
    assert all(queries.any() for queries in np.split(kept, [11, 51, 201]))  # of each size
