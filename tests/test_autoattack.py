"""AutoAttack: one verdict an image, however the work is cut up, spread, broken off and resumed."""

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from fairmix_jax.attacks import Randomized, ThreatModel, autoattack, device_pools, robustness_curve
from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.autoattack import members
from fairmix_jax.attacks.ensemble import ensemble
from fairmix_jax.attacks.report import summary

THREAT = ThreatModel("linf", 0.015)
STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
N = 500


def weights(num_classes=10, seed=0):
    """Of two networks `64 -> 32 -> K`, and the mean pixel above which logits are not a number."""
    rng = np.random.default_rng(seed)
    shapes = {"fine": (64, 32), "fine_out": (32, num_classes)}
    shapes |= {"coarse": (64, 32), "coarse_out": (32, num_classes)}
    drawn = {k: np.float32(rng.normal(size=s) / s[0] ** 0.5) for k, s in shapes.items()}
    return drawn | {"limit": np.float32(np.inf)}


def apply(params, images):
    """The second network sees rounded pixels, so that gradients do not see it."""
    pixels = images.reshape(len(images), -1) - 0.5
    logits = jnp.tanh(3 * pixels @ params["fine"]) @ params["fine_out"]
    rounded = jnp.round(10 * pixels) / 10
    logits += 1.5 * jnp.tanh(3 * rounded @ params["coarse"]) @ params["coarse_out"]
    is_bright = images.mean((1, 2, 3)) > params["limit"]
    return jnp.where(is_bright[:, None], jnp.nan, logits)


def predict(params, images):
    return np.argmax(apply(params, jnp.asarray(images)), 1)


@functools.cache
def examples(num_classes=10):
    """Images, and labels of which the first 20 are wrong."""
    images = np.random.default_rng(1).random((N, 8, 8, 1), np.float32)
    labels = predict(weights(num_classes), images)
    return images, np.where(np.arange(N) < 20, (labels + 1) % num_classes, labels)


def evaluate(params=None, *, threat=THREAT, batch_size=75, **options):
    """AutoAttack on all examples, unless told otherwise; odd batches do not shrink."""
    logits_fn = Partial(apply, weights() if params is None else params)
    data = dict(zip(("images", "labels"), examples(), strict=True))
    return autoattack(logits_fn, threat=threat, batch_size=batch_size, **data | options)


@pytest.fixture(scope="module")
def whole():
    """The evaluation that others are compared with, on two devices."""
    return evaluate()


@pytest.fixture
def quick_compilation():
    """For programs that run for a moment only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def assert_same(report, whole, images=True):
    np.testing.assert_array_equal(report.broken_by, whole.broken_by)
    np.testing.assert_array_equal(report.robust, whole.robust)
    if images:
        np.testing.assert_allclose(report.adversarial, whole.adversarial, atol=1e-6)


def assert_in_ball_and_bounds(report):
    change = np.abs(np.float64(report.adversarial) - examples()[0])
    assert change.max() <= THREAT.epsilon * (1 + 1e-6) + 1e-7
    assert report.adversarial.min() >= 0 and report.adversarial.max() <= 1


@pytest.mark.parametrize(
    "num_devices, options",
    [
        (2, dict(version=["apgd-t", "square"], batch_size=16)),
        (1, dict(version=["fab-t"], batch_size=500, early_exit=False)),
    ],
    ids=["small batches", "one batch on one device without early exit"],
)
def test_verdicts_do_not_depend_on_how_the_work_is_cut_up(num_devices, options):
    report = evaluate(devices=jax.devices()[:num_devices], **options)
    assert_same(report, evaluate(version=options["version"]), images="early_exit" not in options)


def test_verdicts_do_not_depend_on_the_order_and_the_other_images(whole):
    order = np.random.default_rng(2).permutation(N)
    back, chosen = np.argsort(order), np.random.default_rng(3).random(N) < 0.5
    images, labels = (part[order] for part in examples())
    for candidates in (np.ones(N, bool), chosen):
        report = evaluate(images=images, labels=labels, index=order, candidates=candidates[order])
        expected = np.where(candidates, whole.broken_by, 0)
        np.testing.assert_array_equal(report.broken_by[back], expected)
        adversarial = report.adversarial[back][candidates]
        np.testing.assert_allclose(adversarial, whole.adversarial[candidates], atol=1e-6)


class Interruption(Exception):
    pass


def interrupted(count, workdir, **options):
    """Evaluates until progress is reported for the `count`-th time; the report, if before."""
    calls = itertools.count(1)

    def on_progress(status):
        if next(calls) == count:
            raise Interruption

    try:
        return evaluate(workdir=workdir, save_seconds=0, on_progress=on_progress, **options)
    except Interruption:
        return None


@pytest.mark.parametrize(
    "version, batch_sizes", [(["apgd-ce", "fab-t"], [75]), (["apgd-t", "square"], [16, 75])]
)
def test_interrupted_and_resumed_ends_the_same(version, batch_sizes, tmp_path):
    seed = random.randrange(1000)
    rng, interruptions, report = random.Random(seed), -1, None
    while report is None:
        chunk, batch_size = rng.randint(8, 14), rng.choice(batch_sizes)
        report = interrupted(chunk, tmp_path, version=version, batch_size=batch_size)
        interruptions += 1
    assert interruptions > 0, f"seed {seed}"
    once = evaluate(version=version)
    assert_same(report, once)
    np.testing.assert_array_equal(report.forward_passes, once.forward_passes)
    np.testing.assert_array_equal(report.gradient_passes, once.gradient_passes)
    assert not any(tmp_path.iterdir())


def evaluate_and_be_killed(folder, version):
    """Saves an evaluation; begins it again in the folder `work` and dies in the middle."""
    report = evaluate(version=version)
    np.savez(folder / "four.npz", broken_by=report.broken_by, adversarial=report.adversarial)
    calls, last = itertools.count(1), random.randint(3, 10)

    def kill(status):
        if next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate(version=version, workdir=folder / "work", save_seconds=0, on_progress=kill)


def test_four_devices_give_the_same_and_two_go_on_where_they_were_killed(tmp_path):
    version = ["square"]
    code = (
        "import jax; jax.config.update('jax_num_cpu_devices', 4)\n"
        "import pathlib, test_autoattack\n"
        "assert jax.device_count() == 4\n"
        f"test_autoattack.evaluate_and_be_killed(pathlib.Path({str(tmp_path)!r}), {version})"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    two = evaluate(version=version)
    with np.load(tmp_path / "four.npz") as four:
        np.testing.assert_array_equal(four["broken_by"], two.broken_by)
        np.testing.assert_allclose(four["adversarial"], two.adversarial, atol=1e-6)
    assert jax.device_count() == 2 and (tmp_path / "work" / "under_way.npz").exists()
    assert_same(evaluate(version=version, workdir=tmp_path / "work"), two)


def test_workdir_of_another_evaluation_is_refused(tmp_path):
    assert interrupted(3, tmp_path) is None
    images, labels = examples()
    for field, change in [
        ("seed", dict(seed=1)),
        ("threat", dict(threat=ThreatModel("linf", 0.016))),
        ("predictions", dict(params=weights(seed=1))),
        ("attacks", dict(version="fast")),
        ("images", dict(images=1 - images)),
        ("images", dict(labels=(labels + 1) % 10)),
        ("early_exit", dict(early_exit=False)),
        ("search", dict(search=Partial(apply, weights(seed=1)))),
    ]:
        with pytest.raises(ValueError, match=f"an evaluation with {field}="):
            evaluate(workdir=tmp_path, **change)


def rewritten(path, **changes):
    """As a script would that knows nothing of digests; a field that is `None` is left out."""
    with np.load(path) as file:
        content = dict(file) | changes
    np.savez(path, **{name: value for name, value in content.items() if value is not None})


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        flipped,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: rewritten(path, broken_by=np.full(N, -1, np.int8)),
        lambda path: rewritten(path, current=np.int32(2), done=np.ones(N, bool)),
        lambda path: rewritten(path, sha256=None),
    ],
    ids=["flipped", "cut", "empty", "forged verdicts", "forged progress", "of version 0.1"],
)
def test_damaged_and_forged_work_counts_for_nothing(harm, tmp_path):
    version = ["apgd-ce", "square"]
    assert interrupted(12, tmp_path, version=version) is None
    harm(tmp_path / "under_way.npz")
    assert_same(evaluate(version=version, workdir=tmp_path), evaluate(version=version))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("other", [
    lambda x: apply(weights(), x) * 1.0001,
    lambda x: apply(weights(), x) + 1e-3 * jnp.round(x[:, 0, 0]),  # as it is on none of the images
    Partial(lambda params, x: 2 * apply(params, x), weights()),
])  # fmt: skip
def test_work_of_another_function_is_refused(other, tmp_path):
    """Also of one that classifies the images alike, and with the same weights."""
    images, labels = examples()
    images = images.copy()
    images[:, 0, 0] = 0.497
    one = (
        Partial(apply, weights())
        if isinstance(other, Partial)
        else functools.partial(apply, weights())
    )
    evaluation = functools.partial(
        autoattack, images=images, labels=labels, threat=THREAT, version=["apgd-ce"],
        workdir=tmp_path, batch_size=75, save_seconds=0,
    )  # fmt: skip

    calls = itertools.count(1)

    def stop(status):
        if next(calls) == 3:
            raise Interruption

    with pytest.raises(Interruption):
        evaluation(one, on_progress=stop)
    with pytest.raises(ValueError, match="an evaluation with function="):
        evaluation(other)


def test_zero_epsilon_is_clean_accuracy():
    threat, attacked = ThreatModel("linf", 0.0), np.arange(N) < 150
    report, (images, labels) = evaluate(threat=threat, candidates=attacked), examples()
    is_clean = predict(weights(), images) == labels
    np.testing.assert_array_equal(report.robust, is_clean & attacked)
    np.testing.assert_array_equal(report.adversarial, images)


def test_each_attack_breaks_some_and_changes_nothing_before_it(whole):
    assert (np.bincount(whole.broken_by + 1, minlength=6) > 0).all()
    for count in range(1, 4):
        report = evaluate(version=STANDARD[:count])
        expected = np.where(whole.broken_by <= count, whole.broken_by, -1)
        np.testing.assert_array_equal(report.broken_by, expected)


def test_curve_falls_and_neither_a_radius_nor_other_weights_compile_anything(
    whole, compilations, monkeypatch
):
    """Of pools of one size: another number of survivors may ask for another size."""
    monkeypatch.setattr(device_pools, "_EIGHTHS", (8,))
    logits_fn, epsilons = Partial(apply, weights()), [0.0, 0.005, 0.015, 0.03]
    compilations.clear()
    curve = robustness_curve(
        logits_fn, *examples(), threat=THREAT, epsilons=epsilons, version="fast", batch_size=75
    )
    other = evaluate(weights(seed=1))
    assert compilations == []
    assert (curve[1:] <= curve[:-1]).all() and (np.diff(curve.mean(1)) < 0).all()
    after_two = whole.robust | (whole.broken_by > 2)
    np.testing.assert_array_equal(curve[2], curve[1] & after_two)
    assert (other.robust != whole.robust).any()


@pytest.mark.parametrize(
    "version, names, steps, runs",
    [
        ("standard", STANDARD, [101, 101, 100, 5001], [1, 9, 9, 1]),
        ("plus", ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
         [101, 101, 100, 5001, 101, 100], [5, 5, 5, 1, 9, 9]),
        ("rand", ["apgd-ce", "apgd-dlr"], [101, 101], [1, 1]),
        ("fast", STANDARD[:2], [101, 101], [1, 9]),
    ],
)  # fmt: skip
def test_versions_are_autoattacks(version, names, steps, runs):
    attacks = members(version, THREAT)
    assert list(attacks) == names
    assert [attack.num_steps for attack in attacks.values()] == steps
    for num_classes in (100, 10, 4, 3, 2):
        expected = [min(r, num_classes - 1) if r == 9 else r for r in runs]
        assert [attack.num_runs(num_classes) for attack in attacks.values()] == expected
    assert attacks["apgd-ce"].passes(10) == (0, 20 if version == "rand" else 1)


@pytest.mark.usefixtures("quick_compilation")
def test_few_classes_are_attacked_and_noted(whole):
    assert whole.notes == ()
    margin = "2 classes: apgd-t uses the margin, its DLR needs four"
    for num_classes, name, notes in (
        (2, "apgd-t", (margin, "apgd-t have 1 targets, not nine")),
        (3, "fab-t", ("fab-t have 2 targets, not nine",)),
    ):
        images, labels = examples(num_classes)
        report = evaluate(weights(num_classes), images=images, labels=labels, version=[name])
        counts = np.bincount(report.broken_by + 1, minlength=3)
        assert counts[1] == 20 and counts[2] > 20 and counts[0] > 20
        assert report.notes == notes


@pytest.mark.parametrize(
    "version, message", [("best", "version='best'"), (["apgd-ce", "deepfool"], "'deepfool'")]
)
def test_unknown_versions_and_attacks_are_named(version, message):
    with pytest.raises(ValueError, match=message):
        evaluate(version=version)


def test_report_adds_up(whole):
    found, labels = json.loads(json.dumps(summary(whole))), examples()[1]
    np.testing.assert_array_equal(whole.labels, labels)
    total, robust = (np.bincount(part, minlength=10) for part in (labels, labels[whole.robust]))
    assert list(found["broken_by"]) == ["clean", *STANDARD]
    np.testing.assert_array_equal(np.sum([*found["broken_by"].values()], axis=0) + robust, total)
    np.testing.assert_array_equal(np.sum(found["confusion"], axis=1), total)
    np.testing.assert_array_equal(np.diag(found["confusion"]), robust)


def test_adversarial_images_are_what_the_report_says(whole):
    assert_in_ball_and_bounds(whole)
    unchanged = whole.robust | (whole.broken_by == 0)
    np.testing.assert_array_equal(whole.adversarial[unchanged], examples()[0][unchanged])
    predictions = predict(weights(), whole.adversarial)
    np.testing.assert_array_equal(whole.predictions, predictions)
    np.testing.assert_array_equal(predictions == examples()[1], whole.robust)
    assert whole.unconfirmed == 0 and not whole.non_finite.any()


def test_passes_are_those_of_the_published_cost_model(whole):
    """Of a robust image; others pay up to the attack that breaks them, and misclassified none."""
    published = {"gradient_passes": [0, 101, 909, 900, 0], "forward_passes": [0, 0, 0, 900, 5001]}
    is_later = (np.arange(5)[:, None] > whole.broken_by) & (whole.broken_by >= 0)
    for name, passes in published.items():
        spent, most = getattr(whole, name), np.asarray(passes)[:, None]
        assert (spent[:, whole.robust] == most).all() and (spent <= most).all()
        assert (spent[is_later] == 0).all()
    np.testing.assert_array_equal(np.flatnonzero(whole.broken_by == 0), np.arange(20))


def test_logits_that_are_not_finite_count_as_broken():
    limit = np.float32(0.53)
    report = evaluate(weights() | {"limit": limit})
    is_bright = examples()[0].mean((1, 2, 3)) > limit
    assert (report.broken_by[is_bright] == 0).all() and report.non_finite[is_bright].all()
    under_attack = report.non_finite & ~is_bright
    assert is_bright.any() and under_attack.any() and not report.robust[under_attack].any()
    assert report.unconfirmed == 0 and summary(report)["non_finite"] == report.non_finite.sum()
    assert_in_ball_and_bounds(report)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("early_exit", [True, False])
def test_search_finds_and_the_model_itself_decides(early_exit):
    """The search model is another one, whose adversarial images often fail on the model."""
    rng, version = np.random.default_rng(4), ["apgd-ce"]
    rough = {k: np.float32(v + 0.03 * rng.normal(size=v.shape)) for k, v in weights().items()}
    alone = evaluate(rough, version=version)
    transfers = predict(weights(), alone.adversarial) != examples()[1]
    assert 0.1 < transfers[alone.broken_by == 1].mean() < 0.9
    report, itself = (
        evaluate(version=version, search=Partial(apply, params), early_exit=early_exit)
        for params in (rough, weights())
    )
    predictions = predict(weights(), report.adversarial)
    np.testing.assert_array_equal(predictions == examples()[1], report.robust)
    assert (report.broken_by == 1).any() and report.unconfirmed == 0
    assert_in_ball_and_bounds(report)
    assert_same(itself, evaluate(version=version), images=early_exit)


def noisy(params, images, key):
    noise = jax.random.normal(key, images.shape)
    return apply(params["weights"], images + params["sigma"] * noise)


@pytest.mark.usefixtures("quick_compilation")
def test_random_models_are_attacked_in_expectation():
    """Without noise all draws are the same, and so are gradients and verdicts."""
    reports = []
    for num_draws, sigma in ((1, 0.0), (4, 0.0), (4, 0.02)):
        attack = make_apgd(norm="linf", bounds=(0.0, 1.0), num_steps=20, num_draws=num_draws)
        model = Partial(noisy, {"weights": weights(), "sigma": np.float32(sigma)})
        report = ensemble(
            Randomized(model), *examples(), threat=THREAT, attacks={"a": attack}, batch_size=75
        )
        assert_in_ball_and_bounds(report)
        reports.append(report)
    one, four, random_model = reports
    assert_same(four, one)
    np.testing.assert_array_equal(four.gradient_passes, 4 * one.gradient_passes)
    assert 0 < random_model.robust_accuracy < 0.9


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images=np.full((N, 8, 8, 1), 1.5, np.float32)), "threat.bounds"),
        (dict(images=np.full((N, 8, 8, 1), np.nan, np.float32)), "threat.bounds"),
        (dict(images=np.ones((N, 8, 8, 1), np.uint8)), "images"),
        (dict(images=np.ones((N, 64), np.float32)), "images has shape"),
        (dict(images=np.ones((0, 8, 8, 1), np.float32), labels=np.ones(0, int)), "images has sh"),
        (dict(labels=np.zeros(3, int)), "labels has shape"),
        (dict(labels=np.full(N, 10)), "labels"),
        (dict(index=np.arange(3)), "index"),
        (dict(candidates=np.ones(3, bool)), "candidates"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(version=["apgd-ce"], **change)


def test_weights_committed_to_one_device_are_attacked_on_all(whole):
    """As those are that come out of a checkpoint."""
    params = jax.device_put(weights(), jax.devices()[1])
    assert len(jax.local_devices()) == 2
    assert_same(evaluate(params), whole)
