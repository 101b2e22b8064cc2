"""Networks of Flax NNX, Equinox and Haiku: the same network as in linen, and the traps of each."""

import importlib
import re

import chex
import equinox as eqx
import guests
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT
from flax import nnx
from guests import GUESTS, SHAPE
from tiny import StopAfter, build, fit, run, tiny

from fairmix_jax import Batch, ThreatModel, autoattack, classwise, load_model, pgd
from fairmix_jax.data import balanced_rows
from fairmix_jax.export import torch_export
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run
from fairmix_jax.methods import calibrations
from fairmix_jax.methods.averaging import ema
from fairmix_jax.methods.bases import pgd_at
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.models.adapters.equinox import from_equinox
from fairmix_jax.models.adapters.nnx import from_nnx, nnx_logits
from fairmix_jax.models.described import logits_partial, normalised
from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import Interrupted, UsageError
from fairmix_jax.training import assembly, loop
from fairmix_jax.training.step import initial_state, make_train_step
from fairmix_jax.types import Weights

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (ROOT / "docs/extend.md").read_text().partition("### Of Flax NNX")[2].partition("\n## ")[0],
    re.S,
)
NO_KEY = r"the network fails in training, where it is given no random key; set .*to 0 \(.*\)"


@pytest.fixture(autouse=True)
def _users_jax():
    with guests.jax_as_users_have_it():
        yield


@pytest.fixture(params=GUESTS)
def guest(request):
    return GUESTS[request.param]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).random((24, *SHAPE)), jnp.float32)


def start(guest):
    """Linen's model and weights, and the guest's with the same params."""
    ours, theirs = guests.linen_model(), guest.model()
    params, stats = ours.init(jax.random.key(0))
    return ours, (params, stats), theirs, (guest.params(params), theirs.init(jax.random.key(0))[1])


def close(a, b, **room):
    chex.assert_trees_all_close(a, b, **({"rtol": 2e-4, "atol": 2e-5} | room))


def test_logits_gradients_and_statistics_are_those_of_linen(guest, images):
    ours, (params, stats), theirs, own = start(guest)
    chex.assert_trees_all_equal_shapes_and_dtypes(own, theirs.init(jax.random.key(1)))

    def loss(model):
        def mean(params, stats, images):
            logits, stats = model.apply(params, stats, images, train=True)
            return jnp.mean(jnp.square(logits)), (logits, stats)

        return jax.jit(jax.value_and_grad(mean, (0, 2), has_aux=True))

    (_, (logits, followed)), gradient = loss(ours)(params, stats, images)
    (_, (own_logits, own_followed)), own_gradient = loss(theirs)(*own, images)
    close(own_logits, logits)
    close(own_gradient[0], guest.params(gradient[0]))
    close(own_gradient[1], gradient[1], atol=1e-7)
    close(own_followed, guest.follows(followed, 1))
    _, (_, followed) = loss(ours)(params, followed, images[:12])[0]
    _, (_, own_followed) = loss(theirs)(own[0], own_followed, images[:12])[0]
    close(own_followed, guest.follows(followed, 2))
    evaluate = [
        jax.jit(lambda p, s, m=m: m.apply(p, s, images, train=False)) for m in (ours, theirs)
    ]
    own_logits, same = evaluate[1](own[0], own_followed)
    close(own_logits, evaluate[0](params, guest.judges(followed, 2))[0])
    chex.assert_trees_all_equal(same, own_followed)


def test_evaluation_couples_no_examples(guest, images):
    model = guest.model()
    logits_fn = logits_partial(model.apply, Weights(*model.init(jax.random.key(0))))
    together = jax.jit(logits_fn)(images)
    close(jax.jit(jax.vmap(lambda image: logits_fn(image[None])[0]))(images), together)
    close(jax.jit(lambda x: jax.lax.map(lambda i: logits_fn(i[None])[0], x))(images), together)


def defence(model, *, num_parts=1, awp_gamma=0.0):
    """PGD-AT with everything that looks at weights leaf by leaf."""
    attack = TrainingAttack(
        ThreatModel(epsilon=0.2), num_steps=2, step_size=0.1, batch_norm="train"
    )
    averaging = ema.make(decay=0.5)
    decay = optax.add_decayed_weights(0.1, lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p))
    tx = optax.chain(decay, optax.sgd(0.1, momentum=0.9))
    step = make_train_step(
        base=pgd_at.make(model.apply, attack), tx=tx, averaging=averaging, num_classes=10,
        num_parts=num_parts, awp_gamma=awp_gamma,
    )  # fmt: skip
    return step, lambda weights: initial_state(weights, tx=tx, averaging=averaging)


@pytest.mark.parametrize("options", [{}, {"num_parts": 2}, {"awp_gamma": 0.01}], ids=str)
def test_adversarial_training_from_equal_weights_goes_the_same_way(guest, options, images):
    """Parts of a batch, weight decay and perturbation of matrices only, averaged statistics."""
    ours, weights, theirs, own = start(guest)
    labels = jnp.arange(len(images), dtype=jnp.int32) % 10
    batch = Batch(images, labels, labels, jnp.ones(len(images), bool))
    ends = []
    for model, begin in ((ours, weights), (theirs, own)):
        step, initial = defence(model, **options)
        step, state = jax.jit(step), initial(Weights(*begin))
        for _ in range(3):
            state, metrics = step(state, batch, jax.random.key(7))
        ends.append((state, metrics))
    (a, at), (b, bt) = ends
    close(b.params, guest.params(a.params), atol=2e-4)
    close(b.batch_stats, guest.follows(a.batch_stats, 3), rtol=1e-3, atol=1e-4)
    close(b.average.params, guest.params(a.average.params), atol=2e-4)
    close(bt.loss, at.loss, rtol=1e-3)
    assert bt.statistics.counts.correct.tolist() == at.statistics.counts.correct.tolist()
    chex.assert_trees_all_equal_shapes_and_dtypes(b.average, Weights(b.params, b.batch_stats))


@pytest.mark.parametrize("name", ["equinox", "haiku"])
def test_averages_have_the_average_of_a_counter_and_evaluate(name, images):
    """Counters are integers in the library, floats outside, and come back as integers."""
    guest = GUESTS[name]
    *_, model, (params, stats) = start(guest)
    for _ in range(3):
        _, stats = jax.jit(lambda s: model.apply(params, s, images, train=True))(stats)
    counters = [leaf for leaf in jax.tree.leaves(stats) if leaf.ndim == 0]
    assert counters and all(leaf.dtype == jnp.float32 and leaf == 3 for leaf in counters)
    other = jax.tree.map(lambda leaf: leaf + 1, stats)
    average = jax.tree.map(lambda a, b: 0.4 * a + 0.6 * b, stats, other)  # counters of 3.6
    near = jax.tree.map(lambda a, b: a if a.ndim == 0 else b, other, average)
    a, b = (model.apply(params, s, images, train=False)[0] for s in (average, near))
    np.testing.assert_array_equal(a, b)
    _, after = model.apply(params, average, images, train=True)
    assert {float(leaf) for leaf in jax.tree.leaves(after) if leaf.ndim == 0} == {5.0}


def test_vectors_have_rank_one_and_names_no_slash(guest):
    params, stats = guest.model().init(jax.random.key(0))
    ranks = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, stats)):
        keys = [entry.key for entry in path[1:]]
        assert all(isinstance(key, str) and "/" not in key for key in keys)
        ranks["/".join(keys)] = leaf.ndim
    matrices = {name for name, rank in ranks.items() if rank > 1}
    assert {name.split("/")[0] for name in matrices} == {"conv", "head"} and len(matrices) == 2


def test_dropout_is_refused_in_training_and_off_in_evaluation(guest, images):
    model, plain = guest.with_dropout(), guest.model()
    weights = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=NO_KEY):
        jax.eval_shape(lambda: model.apply(*weights, images, train=True))
    a, b = (m.apply(*weights, images, train=False)[0] for m in (model, plain))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", GUESTS)
def test_a_trained_network_is_evaluated_and_left_alone(name, dropout, images):
    """By its weights as arguments, with running statistics, without dropout."""
    (network, logits_fn), labels = guests.trained(name, dropout=dropout), np.arange(24) % 10
    before = jax.tree.map(
        np.array, [x for x in jax.tree.leaves(network) if eqx.is_inexact_array(x)]
    )
    logits = jax.jit(lambda f, x: f(x))(logits_fn, images)
    close(logits_fn(images[:1]), logits[:1])
    assert np.ptp(np.asarray(logits)) > 0 and len(jax.tree.leaves(logits_fn)) >= 8
    found = classwise.evaluate(
        logits_fn, images, labels, class_names="0123456789", threat=ThreatModel(epsilon=0.1),
        settings=classwise.Settings(attacks="clean,pgd2"),
    )  # fmt: skip
    assert sum(found["attacks"]["clean"]["class_correct"]) == (logits.argmax(1) == labels).sum()
    own = np.asarray(logits.argmax(1))
    attacked = pgd(
        logits_fn, jax.random.key(0), images, jnp.asarray(own), threat=ThreatModel(epsilon=0.3),
        num_steps=5, step_size=0.1,
    )  # fmt: skip
    broken = (logits_fn(attacked).argmax(1) != own).mean()
    assert broken > 0.5
    if dropout:  # compiles for long
        report = autoattack(
            logits_fn, images, own, threat=ThreatModel(epsilon=0.3), version=["apgd-ce"]
        )
        assert report.robust_accuracy <= 1 - broken + 0.1
    after = [x for x in jax.tree.leaves(network) if eqx.is_inexact_array(x)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)  # which a tracer would fail
    if name == "nnx":
        assert network.norm.use_running_average is False


def test_nnx_networks_of_one_structure_share_a_program(images):
    traces = []

    @jax.jit
    def judged(logits_fn, images):
        traces.append(1)
        return logits_fn(images)

    a, b = (judged(nnx_logits(guests.NNX(nnx.Rngs(seed))), images) for seed in (0, 1))
    assert len(traces) == 1 and (a != b).any()


def test_nnx_networks_may_name_train_and_hidden_and_exist_already(images):
    class Told(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, images, *, train, hidden):
            x = hidden(2 * images)
            return self.out(x.reshape(len(x), -1)) + float(train)

    module = Told(nnx.Rngs(3))
    model = from_nnx(lambda rngs: module)
    params, stats = model.init(jax.random.key(0))
    np.testing.assert_array_equal(params["out"]["kernel"], module.out.kernel[...])
    plain, _ = model.apply(params, stats, images, train=False)
    trained, _ = model.apply(params, stats, images, train=True)
    close(trained, plain + 1)
    moved, _ = model.apply(params, stats, images, train=False, hidden=lambda x: x / 2)
    close(moved, module.out(images.reshape(len(images), -1)))


class Holds(nnx.Module):
    """A linear network that reads an attribute that the test gives it."""

    def __init__(self, rngs, held):
        self.held, self.out = held, nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        return self.out(images.reshape(len(images), -1) - self.held)


@pytest.mark.parametrize("array", [jnp.asarray, np.asarray])
def test_plain_arrays_of_nnx_networks_are_state(array, images):
    """Also those that are made inside of `make`, which NNX takes for static while it is traced."""
    model = from_nnx(lambda rngs: Holds(rngs, array(np.linspace(0, 1, 64, dtype=np.float32))))
    params, stats = jax.jit(model.init)(jax.random.key(0))
    np.testing.assert_array_equal(stats["held"], np.linspace(0, 1, 64, dtype=np.float32))
    flat = images.reshape(len(images), -1) - stats["held"]
    logits, after = jax.jit(lambda p, s: model.apply(p, s, images, train=True))(params, stats)
    close(logits, flat @ params["out"]["kernel"] + params["out"]["bias"])
    chex.assert_trees_all_equal(after, stats)


@pytest.mark.parametrize(
    "held, message",
    [
        (np.ones(64, np.complex64), r"'held' is of type complex64; .* real floats"),
        (np.full(64, 2**24 + 1, np.int32), r"'held' holds whole numbers beyond 2\*\*24"),
        (np.full(64, -(2**31), np.int32), r"'held' holds whole numbers beyond 2\*\*24"),
    ],
)
@pytest.mark.parametrize("kind", [nnx.Param, nnx.Variable])
def test_what_float32_does_not_hold_is_refused(kind, held, message):
    with pytest.raises(ValueError, match=message):
        from_nnx(lambda rngs: Holds(rngs, kind(jnp.asarray(held))))


def test_whole_numbers_up_to_the_limit_come_back_exactly(images):
    model = from_nnx(lambda rngs: Holds(rngs, nnx.Variable(jnp.full(64, 2**24, jnp.int32))))
    params, stats = model.init(jax.random.key(0))
    _, after = model.apply(params, stats, images, train=True)
    assert (after["held"] == 2**24).all()


def test_other_models_mix_their_input_as_hidden_features_and_normalise(guest, images):
    model = guest.model()
    weights = model.init(jax.random.key(0))
    inside = normalised(model, mean=[0.5], std=[0.25])
    plain, _ = inside.apply(*weights, images, train=False)
    close(plain, model.apply(*weights, (images - 0.5) / 0.25, train=False)[0])
    mixed, _ = inside.apply(*weights, images, train=False, hidden=lambda x: x[::-1])
    close(mixed, plain[::-1])


def test_equinox_constants_stay_and_keys_in_a_state_are_refused(images):
    class Shuffled(eqx.Module):
        order: jax.Array
        scale: float
        out: eqx.nn.Linear

        def __init__(self, key):
            own, other = jax.random.split(key)
            self.order, self.scale = jax.random.permutation(own, 64), 2.0
            self.out = eqx.nn.Linear(64, 10, key=other)

        def __call__(self, image):
            return self.scale * self.out(image.ravel()[self.order])

    model = from_equinox(Shuffled)
    params, stats = model.init(jax.random.key(1))
    assert set(params) == {"out"} and stats == {}
    order = Shuffled(jax.random.key(0)).order
    flat = images.reshape(len(images), -1)[:, order]
    expected = 2 * (flat @ params["out"]["weight"].T + params["out"]["bias"])
    close(model.apply(params, stats, images, train=True)[0], expected)

    class Keyed(eqx.Module):
        index: eqx.nn.StateIndex

        def __init__(self, key):
            self.index = eqx.nn.StateIndex(jax.random.clone(key))

    with pytest.raises(ValueError, match=r"is of type key<fry>; .* hold no random keys"):
        from_equinox(Keyed)


def test_equinox_norms_with_a_first_time_flag_keep_their_types_and_follow(images):
    model = from_equinox(lambda key: guests.Equinox(key, mode="ema"))
    params, stats = model.init(jax.random.key(0))
    _, after = jax.jit(lambda s: model.apply(params, s, images, train=True))(stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(stats, after)
    assert float(stats["0"]) == 1 and float(after["0"]) == 0
    assert (after["1"]["0"] != stats["1"]["0"]).all()


def test_calibrations_find_the_last_layer_in_every_library(guest, images):
    model = guest.model()
    weights = Weights(*model.init(jax.random.key(0)))
    layer, offsets = calibrations.head(weights, 10), jnp.arange(10.0)
    assert {name: leaf.shape for name, leaf in layer.items()} == {
        "kernel": (128, 10),
        "bias": (10,),
    }
    moved = calibrations.with_head(
        weights, 10, bias=layer["bias"] + offsets, kernel=layer["kernel"] * offsets
    )
    chex.assert_trees_all_equal_shapes(weights, moved)
    before, after = (model.apply(*w, images, train=False)[0] for w in (weights, moved))
    close(after, (before - layer["bias"]) * offsets + layer["bias"] + offsets)


def test_search_in_half_precision(guest, images):
    model = guest.model()
    weights = Weights(*model.init(jax.random.key(0)))
    _, stats = model.apply(*weights, images, train=True)
    weights = weights._replace(batch_stats=stats)
    single, half = (logits_partial(model.apply, weights, t) for t in (jnp.float32, jnp.bfloat16))
    close(half(images), single(images), rtol=0.1, atol=0.1)


MEMBER = """
import guests

def make(num_classes: int, *, width: int = 8):
    return lambda shape: {made}
"""


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder of a user's own on the path, and what writes a model's file into it."""
    folder = tmp_path / "fairmix_jax" / "models"
    folder.mkdir(parents=True)
    package = importlib.import_module("fairmix_jax.models")
    monkeypatch.setattr(package, "__path__", list(package.__path__))
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code):
        (folder / f"{name}.py").write_text(code)
        importlib.invalidate_caches()

    return write


def config_of(model, **changes):
    return tiny(
        model__name=model, total_epochs=8, attack__batch_norm="train", rule__name="trix",
        mixing__name="same_class", mixing__probability=0.5, optim__learning_rate=0.05,
        checkpoint__every_epochs=2, evaluate__attacks="clean,pgd5", **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def linen_evaluation(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("linen")
    with pytest.MonkeyPatch.context() as patched, guests.jax_as_users_have_it():
        package = importlib.import_module("fairmix_jax.models.small_cnn")
        patched.setattr(package, "make", lambda classes, *, width=8: guests.Linen())
        config = config_of("small_cnn")
        task = build(config)
        fit(config, task, workdir)
        return evaluate_run.run(config_lib.settings(config), task, workdir)["attacks"]


@pytest.mark.parametrize("name", GUESTS)
def test_a_member_in_ones_own_folder_trains_resumes_is_evaluated_and_exported(
    name, own_folder, linen_evaluation, tmp_path, monkeypatch
):
    """Traced once, with linen's weights to begin with and linen's accuracy in the end."""
    own_folder(f"own_{name}", MEMBER.format(made=f"guests.with_linen_weights({name!r})"))
    traces, make = [], assembly.make_train_step

    def counted(**options):
        step = make(**options)
        return lambda *arguments: traces.append(1) or step(*arguments)

    monkeypatch.setattr(assembly, "make_train_step", counted)
    config = config_of(f"own_{name}")
    task, settings = build(config), config_lib.settings(config)
    whole = fit(config, task, tmp_path / "whole")
    assert len(traces) == 1
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", lambda: StopAfter(17))
        with pytest.raises(Interrupted, match="saved at step"):
            fit(config, task, tmp_path / "parts")
    assert fit(config, task, tmp_path / "parts") == whole
    found = evaluate_run.run(settings, task, tmp_path / "whole")["attacks"]
    for attack in ("clean", "pgd5"):
        low, high = linen_evaluation[attack]["ci95"]["average"]
        assert low <= found[attack]["average"] <= high
    assert found["clean"]["average"] > 0.5
    logits_fn, card = load_model(tmp_path / "whole")
    assert card["model"]["name"] == f"own_{name}"
    rows = balanced_rows(task.dataset.test.labels, config.evaluate.num_examples)
    split = task.dataset.test.take(rows)
    right = logits_fn(split.images / np.float32(255)).argmax(-1) == split.labels
    assert right.sum() == sum(found["clean"]["class_correct"])
    with pytest.raises(
        UsageError, match=f"model.name='own_{name}' has .* no PyTorch name is known"
    ):
        torch_export.export(tmp_path / "whole", tmp_path / "torch")


@pytest.mark.parametrize(
    "name, made, message",
    [
        ("own_wet_nnx", "guests.GUESTS['nnx'].with_dropout()", NO_KEY),
        ("own_wet_equinox", "guests.GUESTS['equinox'].with_dropout()", NO_KEY),
        ("own_wet_haiku", "guests.GUESTS['haiku'].with_dropout()", NO_KEY),
        ("own_wide", "guests.with_an_axis_too_many()", r"it maps two images to \[2, 1, 10\], not"),
    ],
)
def test_a_member_that_cannot_be_trained_is_refused_in_a_line(name, made, message, own_folder):
    own_folder(name, MEMBER.format(made=made))
    with pytest.raises(UsageError, match=f"^model.name='{name}': {message}"):
        build(tiny(model__name=name, model__width=8))


@pytest.mark.parametrize("number", range(3), ids=["nnx", "equinox", "haiku"])
def test_the_members_that_the_docs_show_train(number, own_folder):
    """Also on mixed hidden features."""
    assert len(BLOCKS) == 3 and len([x for x in BLOCKS[number].splitlines() if x]) <= 10
    own_folder(f"shown_{number}", BLOCKS[number])
    config = tiny(
        model__name=f"shown_{number}", model__width=16, mixing__name="same_class",
        mixing__stage="hidden",
    )  # fmt: skip
    initial, state, metrics = run(config)
    assert np.isfinite(metrics.loss) and metrics.statistics.counts.total.sum() == 40
    for a, b in zip(*map(jax.tree.leaves, (initial.params, state.params)), strict=True):
        assert (a != b).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("base", registry.names("bases"))
def test_every_base_trains_a_guest_with_mixed_features_and_a_gated_average(
    name, base, own_folder, tmp_path
):
    own_folder(f"any_{name}", MEMBER.format(made=f"guests.GUESTS[{name!r}].model()"))
    config = tiny(
        model__name=f"any_{name}", base__name=base, averaging__name="fawa", averaging__decay=None,
        mixing__name="same_class", mixing__stage="hidden", rule__name="variance",
        averaging__threshold=0.0, validation__every_epochs=1,
    )  # fmt: skip
    fit(config, build(config), tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and len(text.splitlines()) == 2
