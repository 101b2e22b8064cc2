"""Evaluation of any JAX function: verdicts, unions, curves, whatever the batches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from fairmix_jax import classwise, report
from fairmix_jax.attacks import Randomized, ThreatModel
from fairmix_jax.classwise import Settings, image_verdicts, metrics
from fairmix_jax.lab import evaluate_run
from fairmix_jax.runtime.errors import UsageError

NAMES = ("left", "right")
THREAT = ThreatModel("linf", 0.1)
ALL = Settings(attacks="clean,fgsm,pgd10,fast", radii=(0.5, 1.0, 2.0), masking=False)


def images(number=24):
    """Images whose mean brightness tells the class, some near the boundary of one half."""
    rng = np.random.default_rng(0)
    labels = np.arange(number) % 2
    level = 0.5 + np.where(labels == 1, 1, -1) * rng.uniform(-0.02, 0.3, number)
    pixels = level[:, None, None, None] + 0.02 * rng.normal(size=(number, 4, 4, 1))
    return np.clip(pixels, 0, 1).astype(np.float32), labels


def brightness(x):
    """Linear: exactly robust where the mean is further than the radius from one half."""
    mean = jnp.mean(x, axis=(1, 2, 3))
    return 20 * jnp.stack([0.5 - mean, mean - 0.5], axis=-1)


def run(logits_fn=brightness, settings=ALL, **options):
    data, labels = images()
    return classwise.evaluate(
        logits_fn, data, labels, class_names=NAMES, threat=THREAT, settings=settings, **options
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classwise")
    return run(directory=directory), directory


def test_verdicts_are_exact_for_a_linear_model(found):
    """A sign step moves the mean by the whole radius, unless a pixel meets a bound."""
    evaluation, directory = found
    data, labels = images()
    distance = (data.mean(axis=(1, 2, 3)) - 0.5) * np.where(labels == 1, 1, -1)
    for name, radius in (("clean", 0.0), ("pgd10", 0.1), ("fast", 0.1)):
        expected = np.bincount(labels[distance > radius], minlength=2)
        assert evaluation["attacks"][name]["class_correct"] == expected.tolist()
        with np.load(directory / "attacks" / name / "verdicts.npz") as kept:
            np.testing.assert_array_equal(kept["robust"], distance > radius)
            np.testing.assert_array_equal(kept["row"], np.arange(24))
            np.testing.assert_array_equal(kept["label"], labels)
            assert ((kept["prediction"] == labels) == kept["robust"]).all()
    curve = evaluation["curve"]
    np.testing.assert_allclose(curve["epsilon"], [0, 0.05, 0.1, 0.2], atol=1e-7)
    radii = (0, 0.05, 0.1, 0.2)
    expected = [np.bincount(labels[distance > radius], minlength=2).tolist() for radius in radii]
    assert curve["class_correct"] == expected


def test_union_is_what_withstands_everything(found):
    evaluation, directory = found
    robust = [
        np.load(directory / "attacks" / name / "verdicts.npz")["robust"]
        for name in ("clean", "fgsm", "pgd10", "fast")
    ]
    union = evaluation["attacks"]["union"]
    assert union["class_correct"] == np.bincount(
        images()[1][np.logical_and.reduce(robust)], minlength=2
    ).tolist()  # fmt: skip
    assert union["members"] == ["clean", "fgsm", "pgd10", "fast"]
    assert "union" not in run(settings=Settings(attacks="clean,pgd10"))["attacks"]


def test_an_attack_of_a_subset_tells_of_its_images_only(found, tmp_path):
    """The first of each class, as they fare among all; no part of the union."""
    settings = Settings(attacks="clean,pgd10,fgsm@5,fast@6", radii=(1.0,))
    attacks = run(settings=settings, directory=tmp_path)["attacks"]
    assert [sum(attacks[name]["class_total"]) for name in attacks] == [24, 24, 4, 6]
    assert "union" not in attacks
    labels = images()[1]
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:3] for c in (0, 1)]))
    kept = np.load(tmp_path / "attacks" / "fast@6" / "verdicts.npz")
    np.testing.assert_array_equal(kept["row"], chosen)
    whole = np.load(found[1] / "attacks" / "fast" / "verdicts.npz")
    np.testing.assert_array_equal(kept["robust"], whole["robust"][chosen])


@pytest.mark.parametrize("name", ["fast@", "fast@0", "fast@many", "fast@²"])
def test_a_subset_has_a_number(name):
    with pytest.raises(UsageError, match="give a number of images after '@'"):
        run(settings=Settings(attacks=name))


def test_union_asks_for_the_clean_image_whether_listed_or_not():
    """This model is wrong on dark images as they are, and right wherever it is attacked."""

    def odd(x):
        mean = jnp.mean(x, axis=(1, 2, 3))
        untouched = jnp.all(jnp.abs(x * 255 - jnp.round(x * 255)) < 1e-4, axis=(1, 2, 3))
        sign = jnp.where(untouched & (mean < 0.5), -1, 1)[:, None]
        return sign * brightness(x)

    data, labels = images()
    pixels = np.round(255 * data).astype(np.uint8)
    found = classwise.evaluate(
        odd, pixels, labels, class_names=NAMES, threat=ThreatModel("linf", 1e-3),
        settings=Settings(attacks="fgsm,pgd10"),
    )["attacks"]  # fmt: skip
    assert list(found) == ["fgsm", "pgd10", "union"]
    assert found["pgd10"]["class_correct"][0] > 8 > found["union"]["class_correct"][0]


def test_an_image_meets_the_same_attack_in_a_subset(found):
    rows = np.arange(1, 24, 3)
    data, labels = images()
    subset = classwise.evaluate(
        brightness, data[rows], labels[rows], class_names=NAMES, threat=THREAT, rows=rows,
        settings=Settings(attacks="pgd1"),
    )["attacks"]["pgd1"]  # fmt: skip
    whole = run(settings=Settings(attacks="pgd1"))["attacks"]["pgd1"]
    kept = image_verdicts.unpack(whole["verdicts"], whole["class_total"])
    right = np.zeros(24, bool)
    for number in (0, 1):
        right[labels == number] = kept[number]
    assert subset["verdicts"] == image_verdicts.pack(labels[rows], right[rows], 2)


def test_other_bounds_norms_and_absent_classes():
    data, labels = images()
    shifted = 4 * data - 2
    found = classwise.evaluate(
        lambda x: jnp.pad(brightness((x + 2) / 4), ((0, 0), (0, 1)), constant_values=-9.0),
        shifted, labels, class_names=(*NAMES, "absent"), threat=ThreatModel("l2", 0.5, (-2.0, 2.0)),
        settings=Settings(attacks="clean,pgd10"),
    )  # fmt: skip
    clean, robust = found["attacks"]["clean"], found["attacks"]["pgd10"]
    assert clean["class_total"] == [12, 12, 0]
    assert sum(robust["class_correct"]) < sum(clean["class_correct"])
    assert clean["calibration"]["class_confidence"][2] is None


def test_confusion_calibration_and_packed_verdicts_add_up(found):
    evaluation, directory = found
    for name in ("clean", "fgsm", "pgd10"):
        result = evaluation["attacks"][name]
        confusion = np.array(result["confusion"])
        assert confusion.sum(axis=1).tolist() == result["class_total"]
        assert np.diag(confusion).tolist() == result["class_correct"]
        bins = result["calibration"]["bins"]
        assert sum(bins["count"]) == 24 and sum(bins["correct"]) == sum(result["class_correct"])
        packed = image_verdicts.unpack(result["verdicts"], result["class_total"])
        assert [int(right.sum()) for right in packed] == result["class_correct"]
    np.testing.assert_array_equal(
        packed[1], np.load(directory / "attacks" / "pgd10" / "verdicts.npz")["robust"][1::2]
    )


def test_examples_are_inside_the_ball_and_the_bounds(found):
    with np.load(found[1] / "attacks" / "pgd10" / "examples.npz") as kept:
        np.testing.assert_array_equal(kept["label"], [0, 1])
        change = np.abs(kept["adversarial"] - kept["image"])
        assert 0.09 < change.max() <= 0.1 + 1e-6
        assert kept["adversarial"].min() >= 0 and kept["adversarial"].max() <= 1


def test_images_of_an_ensemble_are_kept_if_asked_for(tmp_path):
    settings = Settings(attacks="apgd-ce", save_adversarial=True)
    run(settings=settings, directory=tmp_path)
    with np.load(tmp_path / "attacks" / "apgd-ce" / "verdicts.npz") as kept:
        change = np.abs(kept["adversarial"] - images()[0])
        assert change.shape == (24, 4, 4, 1) and 0.09 < change.max() <= 0.1 + 1e-6


def test_results_do_not_depend_on_the_batch_size(found):
    other = run(settings=dataclasses.replace(ALL, batch_size=7))
    assert without_times(other) == without_times(found[0])


def test_weights_may_be_arguments(found):
    """A `Partial` keeps its weights out of the program and changes nothing else."""
    given_weights = Partial(lambda scale, x: scale * brightness(x), jnp.asarray(1.0))
    assert without_times(run(given_weights)) == without_times(found[0])


def without_times(evaluation):
    text = json.dumps(evaluation, default=str)
    content = json.loads(text)
    content.pop("settings")
    for result in content["attacks"].values():
        result.pop("seconds")
        result.get("detail", {}).clear()
    return content


def test_logits_that_are_not_finite_count_as_wrong():
    def broken(x):
        return jnp.where(jnp.mean(x, axis=(1, 2, 3))[:, None] > 0.5, jnp.nan, brightness(x))

    result = run(broken, Settings(attacks="clean"))["attacks"]["clean"]
    assert result["class_correct"][1] == 0 < result["class_correct"][0]
    assert sum(result["calibration"]["bins"]["count"]) < 24


def test_a_foreign_model_stands_beside_others_in_a_report(found, tmp_path):
    for number, scale in enumerate((1.0, 0.5)):
        evaluate_run.save_foreign(
            tmp_path / str(number), run(lambda x, s=scale: brightness(x) + s - 1),
            method=f"theirs {number}", dataset="toy",
        )  # fmt: skip
    report.write(tmp_path, [tmp_path], show=False)
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| pgd10 | theirs 0 (foreign) | 1 |" in text and "| theirs 1 (foreign) | 1 |" in text


def test_foreign_models_under_another_attack_are_no_seeds_of_one_method(tmp_path):
    for seed, step_size in enumerate((None, 0.001)):
        settings = Settings(attacks="clean,pgd2", step_size=step_size)
        found = run(brightness, settings)
        evaluate_run.save_foreign(
            tmp_path / str(seed), found, method="theirs", dataset="toy", seed=seed
        )
    report.write(tmp_path, [tmp_path], show=False)
    text = (tmp_path / "report" / "table.md").read_text()
    for said in ("evaluate.step_size=None", "evaluate.step_size=0.001"):
        assert f"| pgd2 | theirs (foreign, {said}) | 1 |" in text


@pytest.mark.parametrize("scale", [1e10, 1e30])
def test_large_logits_are_finite_and_sure(scale):
    result = run(lambda x: scale * brightness(x), Settings(attacks="clean"))["attacks"]["clean"]
    assert result["non_finite"]["logits"] == 0
    assert sum(result["calibration"]["bins"]["count"]) == 24


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(labels=np.zeros(3, int)), "labels has shape"),
        (dict(labels=np.full(24, 2)), "labels range over \\[2, 2\\]"),
        (dict(settings=Settings(attacks="cw")), "'cw' is unknown"),
        (dict(settings=Settings(radii=(1.0, 0.5))), "does not rise"),
        (dict(images=255 * images()[0]), "finite values inside threat.bounds"),
        (dict(images=images()[0].astype(int)), "images has type"),
        (dict(logits_fn=Randomized(brightness)), "Randomized, no function of images"),
        (dict(class_names="abc"), "must give \\(1, 3\\)"),
    ],
)
def test_bad_input_is_named(change, message):
    data, labels = images()
    arguments = dict(images=data, labels=labels, class_names=NAMES, settings=ALL) | change
    with pytest.raises(UsageError, match=message):
        classwise.evaluate(**{"logits_fn": brightness, "threat": THREAT} | arguments)


def test_a_model_that_draws_other_numbers_at_every_call_is_refused():
    rng = np.random.default_rng(0)

    def noisy(images):
        shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
        noise = jax.pure_callback(lambda: rng.normal(0, 0.1, shape.shape).astype("f4"), shape)
        return brightness(images + noise)

    with pytest.raises(UsageError, match="judges every image by itself, and always alike"):
        classwise.evaluate(noisy, *images(), class_names=NAMES, threat=THREAT, settings=ALL)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=40))
def test_packing_is_undone_by_unpacking(pairs):
    labels, right = (np.array(column) for column in zip(*pairs, strict=True))
    totals = np.bincount(labels, minlength=4)
    unpacked = image_verdicts.unpack(image_verdicts.pack(labels, right, 4), totals)
    for number, row in enumerate(unpacked):
        np.testing.assert_array_equal(row, right[labels == number])


def test_calibration_by_hand():
    """Two images at 0.9 of which one is right, two at 0.6 of which both are."""
    found = image_verdicts.Verdicts(
        np.array([0, 1, 0, 1]), np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 0, 1, 1], bool)
    )
    measured = image_verdicts.details(np.array([0, 0, 0, 1]), found, 2)["calibration"]
    assert measured["ece"] == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    assert measured["class_confidence"] == pytest.approx([0.8, 0.6])


def test_evaluation_from_uint8_and_float_images_is_the_same():
    data, labels = images()
    pixels = np.round(255 * data).astype(np.uint8)
    settings = Settings(attacks="clean,pgd10")
    both = [
        classwise.evaluate(
            brightness, x, labels, class_names=NAMES, threat=THREAT, settings=settings
        )
        for x in (pixels, pixels.astype(np.float32) / 255)
    ]
    assert without_times(both[0]) == without_times(both[1])
    assert metrics.summarize(
        *[both[0]["attacks"]["clean"][f"class_{n}"] for n in ("total", "correct")]
    )["average"] == pytest.approx(both[0]["attacks"]["clean"]["average"])


def test_jitted_functions_are_fine():
    settings = Settings(attacks="pgd10")
    plain, jitted = run(settings=settings), run(jax.jit(brightness), settings)
    assert without_times(plain) == without_times(jitted)
