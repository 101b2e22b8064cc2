"""What is checked before images, labels, a model and a threat are believed, and where."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairmix_jax import classwise, mixup, theory
from fairmix_jax.attacks import (
    ThreatModel,
    apgd,
    apgd_targeted,
    autoattack,
    fab,
    fgsm,
    masking,
    mi_fgsm,
    pgd,
    square,
)
from fairmix_jax.calibration import calibrate
from fairmix_jax.classwise import intervals, metrics, paired
from fairmix_jax.runtime import tables
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.theory import surrogates

THREAT = ThreatModel("linf", 0.1)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(1), (4, 3, 3, 1)))
LABELS = np.array([0, 1, 2, 0], np.int32)


def model(x):
    return 10 * x.reshape(len(x), -1)[:, :3]


def by_fgsm(logits_fn, images, labels, threat=THREAT):
    return fgsm(logits_fn, jax.random.key(0), images, labels, threat=threat)


def by_mi_fgsm(logits_fn, images, labels, threat=THREAT):
    return mi_fgsm(logits_fn, jax.random.key(0), images, labels, threat=threat, num_steps=2)


def by_fab(logits_fn, images, labels, threat=THREAT):
    return fab(logits_fn, jax.random.key(0), images, labels, threat=threat, num_steps=2)


def by_pgd(logits_fn, images, labels, threat=THREAT):
    return pgd(
        logits_fn, jax.random.key(0), images, labels, threat=threat, num_steps=2, step_size=0.05
    )


def by_apgd(logits_fn, images, labels, threat=THREAT):
    return apgd(logits_fn, jax.random.key(0), images, labels, threat=threat, num_steps=2)


def by_square(logits_fn, images, labels, threat=THREAT):
    return square(logits_fn, jax.random.key(0), images, labels, threat=threat, num_queries=2)


def by_autoattack(logits_fn, images, labels, threat=THREAT):
    return autoattack(logits_fn, images, labels, threat=threat, version=["fab-t"])


def by_calibration(logits_fn, images, labels, threat=THREAT):
    return calibrate(logits_fn, images, labels, threat=threat, num_steps=2)


def by_masking(logits_fn, images, labels, threat=THREAT):
    return masking.examine(logits_fn, images, labels, threat=threat, num_steps=2)


def by_evaluation(logits_fn, images, labels, threat=THREAT):
    names, settings = ("a", "b", "c"), classwise.Settings(attacks="clean,pgd2")
    return classwise.evaluate(
        logits_fn, images, labels, class_names=names, threat=threat, settings=settings
    )


ENTRIES = [
    by_pgd, by_fgsm, by_mi_fgsm, by_apgd, by_fab, by_square, by_autoattack, by_masking,
    by_evaluation, by_calibration,
]  # fmt: skip
WRONG_LABELS = [
    [99, 1, 2, 0],
    [-1, 1, 2, 0],
    [0.9, 1, 2, 0],
    [2**32, 1, 2, 0],
    ["1", "1", "2", "0"],
]


def refuses(entry, word, logits_fn=model, images=IMAGES, labels=LABELS, **options):
    with pytest.raises((ValueError, UsageError), match=word) as caught:
        entry(logits_fn, images, labels, **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("labels", WRONG_LABELS, ids=str)
def test_labels_that_are_no_classes_are_refused(entry, labels):
    refuses(entry, "labels", labels=np.array(labels))


@pytest.mark.parametrize("entry", ENTRIES)
def test_images_outside_of_the_bounds_are_refused(entry):
    refuses(entry, "images", images=255 * IMAGES)
    refuses(entry, "images", images=np.where(IMAGES > 0.5, np.nan, IMAGES).astype(np.float32))
    if entry is not by_evaluation:  # which takes them for [0, 1]
        refuses(entry, "uint8", images=(255 * IMAGES).astype(np.uint8))


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_logits_is_named(entry):
    refuses(entry, "logits_fn", logits_fn=lambda x: (model(x), x))
    refuses(entry, "logits_fn", logits_fn=lambda x: model(x)[:, None, None])
    refuses(entry, "at least 2, the logits", logits_fn=lambda x: model(x)[:, :1])


@pytest.mark.parametrize("entry", ENTRIES)
def test_several_radii_at_once_are_refused(entry):
    refuses(entry, "epsilon", threat=ThreatModel("linf", np.array([0.1, 0.2, 0.3, 0.4])))


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_model_that_couples_examples_is_refused(entry):
    refuses(entry, "other images", logits_fn=lambda x: model(x - jnp.mean(x)))
    noise = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    refuses(entry, "its place there", logits_fn=lambda x: model(x) + noise[: len(x)])


SAID = {  # a fault that is said, and the answer to an attack that needs no gradient
    "looks like probabilities": lambda x: jax.nn.softmax(model(x)),
    "zero or not finite, at 4 of 4": lambda x: model(jnp.round(4 * x) / 4),
    "zero or not finite, at 4": lambda x: model(jnp.where(x > 2, jnp.sqrt(x - 2), x)),
    "zero or not finite": lambda x: 1e4 * model(x),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("fault", SAID)
def test_a_model_that_blinds_attacks_is_named_and_attacked(entry, fault):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        entry(SAID[fault], IMAGES, LABELS)
    told = [str(one.message) for one in told]
    if entry is by_square and "zero" in fault:
        assert not told  # it needs no gradient
    else:
        assert told and all(fault in one and len(one.splitlines()) == 1 for one in told)


def test_a_model_without_derivatives_is_judged_and_attacked_by_square():
    def opaque(x):
        shape = jax.ShapeDtypeStruct((len(x), 3), jnp.float32)
        return jax.pure_callback(lambda x: np.asarray(model(np.asarray(x))), shape, x,
                                 vmap_method="sequential")  # fmt: skip

    assert evaluated(logits_fn=opaque)["attacks"]["clean"]["average"] >= 0
    found, plain = (by_square(each, IMAGES, LABELS) for each in (opaque, model))
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_a_model_that_is_traced_is_believed():
    """Its weights are not known yet, though the images are."""

    @jax.jit
    def attacked_with(weights):
        return by_pgd(lambda x: model(x) @ weights, jnp.asarray(IMAGES), jnp.asarray(LABELS))

    weights = jnp.eye(3)
    expected = by_pgd(lambda x: model(x) @ weights, IMAGES, LABELS)
    np.testing.assert_allclose(attacked_with(weights), expected, atol=1e-6)


def test_uint8_stands_for_the_unit_interval_only():
    threat = ThreatModel("linf", 8.0, bounds=(0.0, 255.0))
    refuses(by_evaluation, "uint8", images=(255 * IMAGES).astype(np.uint8), threat=threat)


@pytest.mark.filterwarnings("ignore:logits_fn has no gradient")
@pytest.mark.parametrize("attack", [pgd, mi_fgsm])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_is_not_finite_moves_nothing(attack, norm):
    def broken(x):  # finite logits, and a NaN in the gradient of one pixel
        spoiled = jnp.where(x > 0, x, jnp.sqrt(jnp.minimum(x, 0.0)))
        return model(spoiled)

    images = jnp.asarray(IMAGES).at[:, 0, 0].set(0.0)
    found = attack(
        broken, jax.random.key(0), images, LABELS, threat=ThreatModel(norm, 0.1), num_steps=3,
        step_size=0.05, random_start=False,
    )  # fmt: skip
    assert np.isfinite(found).all() and np.abs(found - images).max() <= 0.1 + 1e-6


@pytest.mark.filterwarnings("ignore:logits_fn has no gradient")
def test_logits_of_any_size_have_a_direction():
    huge = lambda x: 1e30 * model(x)  # noqa: E731
    threat = ThreatModel("l2", 0.3)
    small = pgd(
        model,
        jax.random.key(0),
        IMAGES,
        LABELS,
        threat=threat,
        num_steps=1,
        step_size=0.2,
        loss="margin",
    )
    large = pgd(
        huge,
        jax.random.key(0),
        IMAGES,
        LABELS,
        threat=threat,
        num_steps=1,
        step_size=0.2,
        loss="margin",
    )
    np.testing.assert_allclose(small, large, atol=1e-6)


@pytest.mark.parametrize("entry", ENTRIES)
def test_half_precision_in_and_out_is_taken_everywhere(entry):
    images, wide = jnp.asarray(IMAGES, jnp.bfloat16), ThreatModel("linf", 0.5)
    labels = np.argmax(model(IMAGES), axis=1)
    found = entry(lambda x: model(x).astype(jnp.bfloat16), images, labels, threat=wide)
    if hasattr(found, "shape"):
        change = np.asarray(found, np.float32) - np.asarray(images, np.float32)
        assert found.shape == images.shape and 0 < np.abs(change).max() <= 0.504


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_attacked_in_single(dtype):
    images = jnp.asarray(IMAGES, dtype)
    found = fgsm(lambda x: model(x).astype(dtype), jax.random.key(0), images, LABELS, threat=THREAT)
    assert found.dtype == dtype
    whole = fgsm(model, jax.random.key(0), images.astype(jnp.float32), LABELS, threat=THREAT)
    np.testing.assert_allclose(found.astype(jnp.float32), whole, atol=0.01)
    robust = by_autoattack(model, images, LABELS).robust
    np.testing.assert_array_equal(robust, by_autoattack(model, np.float32(images), LABELS).robust)


@pytest.mark.parametrize(
    "images, labels, options, word",
    [
        ((255 * IMAGES).astype(np.uint8), LABELS, {}, "uint8"),
        (IMAGES, np.eye(3)[LABELS], {}, "labels"),
        (IMAGES, LABELS, {"num_samples": np.array([2, 0, 2])}, "num_samples"),
        (IMAGES, LABELS, {"alpha": -1.0}, "alpha"),
    ],
)
def test_mixing_checks_its_arguments(images, labels, options, word):
    with pytest.raises(ValueError, match=word):
        mixup.same_class_mixup(
            jax.random.key(0), jnp.asarray(images), jnp.asarray(labels), **options
        )


def test_names_of_strangers_are_data():
    names = ["Shoe [/m/06rrc]", "a|b", "two\nlines", "<img src=x>", "\ud800"]
    text = tables.markdown(tables.Table("[x] <b>", ["class"], [[name] for name in names]))
    rows = text.splitlines()[4:]
    assert len(rows) == len(names) and "<img" not in text and "<b>" not in text
    assert rows[0] == "| Shoe [/m/06rrc] |" and rows[1] == "| a\\|b |"
    text.encode()


def attacked(attack=pgd, images=IMAGES, labels=LABELS, **options):
    options = ({"num_steps": 2, "step_size": 0.05} if attack is pgd else {}) | options
    return attack(model, jax.random.key(0), images, labels, threat=THREAT, **options)


def mixed(**options):
    images, labels = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    return mixup.same_class_mixup(jax.random.key(0), images, labels, **options)


def evaluated(rows=None, names=("a", "b", "c"), logits_fn=model, **settings):
    return classwise.evaluate(
        logits_fn, IMAGES, LABELS, class_names=names, threat=THREAT, rows=rows,
        settings=classwise.Settings(**{"attacks": "clean"} | settings),
    )  # fmt: skip


VERDICTS = [np.ones((1, 3), bool)]
REFUSED = {
    "num_steps": [
        lambda: attacked(num_steps=-1), lambda: attacked(num_steps=1.5),
        lambda: attacked(mi_fgsm, num_steps=1.5), lambda: attacked(apgd, num_steps=0),
        lambda: attacked(fab, num_steps=1.5),
    ],
    "num_restarts": [
        lambda: attacked(num_restarts=0), lambda: attacked(apgd, num_restarts=0),
        lambda: attacked(fab, num_restarts=0), lambda: attacked(square, num_restarts=1.5),
        lambda: evaluated(num_restarts=0),
    ],
    "num_queries": [lambda: attacked(square, num_queries=0)],
    "initial_share": [lambda: attacked(square, initial_share=2.0)],
    "num_targets": [lambda: attacked(apgd_targeted, num_targets=0)],
    "num_draws": [lambda: attacked(apgd, num_draws=0)],
    "step_size": [
        lambda: attacked(step_size=np.nan), lambda: attacked(fgsm, step_size=np.inf),
        lambda: evaluated(step_size=np.nan),
    ],
    "scale": [lambda: attacked(scale=np.nan), lambda: attacked(scale=np.ones(3))],
    "momentum": [lambda: attacked(momentum=-1.0)],
    "step_size and momentum": [
        lambda: attacked(step_size=np.full(4, 0.1)), lambda: attacked(momentum=np.ones(4)),
    ],
    "targets": [
        lambda: attacked(loss="kl"), lambda: attacked(targets=np.full(4, 99)),
        lambda: attacked(loss="margin", targets=[-1, 0, 1, 0]),
    ],
    "index": [
        lambda: attacked(index=np.arange(3)), lambda: attacked(index=0.5 * np.ones(4)),
        lambda: attacked(apgd, index=np.arange(3)),
    ],
    "start": [lambda: attacked(start=np.zeros((4, 2, 2, 1), np.float32))],
    "images": [
        lambda: attacked(images=IMAGES.tolist()), lambda: attacked(images=IMAGES.astype(complex)),
        lambda: attacked(images=IMAGES[0]), lambda: attacked(apgd, images=IMAGES.tolist()),
        lambda: autoattack(model, IMAGES[:0], LABELS[:0], threat=THREAT),
        lambda: mixup.mix(jnp.asarray(IMAGES[:2]), mixup.draw_plan(jax.random.key(0), LABELS)),
    ],
    "batch_size": [
        lambda: autoattack(model, IMAGES, LABELS, threat=THREAT, batch_size=0),
        lambda: evaluated(batch_size=0), lambda: evaluated(batch_size=1.5),
    ],
    "seed": [
        lambda: autoattack(model, IMAGES, LABELS, threat=THREAT, seed=1.5),
        lambda: evaluated(seed=1.5),
    ],
    "version": [lambda: autoattack(model, IMAGES, LABELS, threat=THREAT, version=[])],
    "rows": [
        lambda: evaluated(rows=np.arange(3)), lambda: evaluated(rows=0.5 * np.ones(4)),
        lambda: evaluated(rows=np.zeros((4, 1), int)),
    ],
    "radii": [lambda: evaluated(radii=(np.nan,)), lambda: evaluated(radii=(2.0, 1.0))],
    "attacks": [lambda: evaluated(attacks=["clean"]), lambda: evaluated(attacks="x")],
    "class_names": [lambda: evaluated(names=None), lambda: evaluated(names=(1, 2, 3))],
    "epsilon": [
        lambda: ThreatModel("linf", -1), lambda: ThreatModel("linf", np.nan),
        lambda: ThreatModel("l2", "0.1"), lambda: ThreatModel("l2", None),
        lambda: ThreatModel("l2", 1j), lambda: ThreatModel("linf", 8),
        lambda: ThreatModel("linf", np.array([0.1, 8.0])),
        lambda: ThreatModel("linf", 2.1, (-1.0, 1.0)),
    ],
    "bounds": [
        lambda: ThreatModel(bounds=(1, 0)), lambda: ThreatModel(bounds=(0, 1, 2)),
        lambda: ThreatModel(bounds=None), lambda: ThreatModel(bounds=("a", "b")),
        lambda: ThreatModel(bounds=(np.nan, 1)),
    ],
    "probability": [lambda: mixed(probability=2.0), lambda: mixed(probability=np.nan)],
    "alpha": [lambda: mixed(alpha=np.nan), lambda: mixed(alpha=np.inf)],
    "num_samples": [lambda: mixed(num_samples=1.5), lambda: mixed(num_samples=0)],
    "num_groups": [lambda: mixed(num_groups=0), lambda: mixed(num_groups=3)],
    "labels": [lambda: mixed(alpha=np.array([1.0, 2.0]))],
    "weights": [lambda: mixed(law=(np.nan, 1.0))],
    "counts": [
        lambda: metrics.summarize([2], [3]), lambda: metrics.summarize([2, 3], [1]),
        lambda: metrics.summarize([2, 3], [np.nan, 1]), lambda: intervals.gap([2, 2], [3, 1]),
        lambda: intervals.worst_class([0], [0]), lambda: intervals.average([2], [-1]),
        lambda: metrics.over_seeds([2, 2], [[1]], "gap"),
        lambda: metrics.classes_over_seeds([2, 2], [[1]]),
    ],
    "statistic": [lambda: metrics.over_seeds([2, 2], [[1, 1]], "x")],
    "verdicts": [
        lambda: paired.differences([], []),
        lambda: paired.differences([VERDICTS[0] * 0.5], VERDICTS),
    ],
    "margin": [lambda: theory.optimal_bias("x", 2), lambda: theory.optimal_bias(1j, 2)],
    "direction": [lambda: surrogates.project([0, 0], [1, 1])],
    "mean": [lambda: surrogates.optimal_direction([np.nan, 1.0])],
    "at least 1": [
        lambda: surrogates.expected_factor(0.5),
        lambda: surrogates.factor_with_replacement(0.5, 0.5),
    ],
}  # fmt: skip


@pytest.mark.parametrize("word", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line_that_names_it(word):
    for number, call in enumerate(REFUSED[word]):
        with pytest.raises((ValueError, UsageError), match=word) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1, (number, str(caught.value))
