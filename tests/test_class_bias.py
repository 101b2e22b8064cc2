"""The margin table and the biases that are best on it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from fairmix_jax import calibration
from fairmix_jax.attacks import Randomized
from fairmix_jax.calibration import class_bias, margin_table
from fairmix_jax.methods.class_bias import half_splits, margin_tables
from fairmix_jax.types import ThreatModel

THREAT = ThreatModel("linf", 0.05)


def apply(weights, images):
    """A small network with kinks, of `K` classes."""
    first, last = weights
    return jnp.maximum(images.reshape(len(images), -1) @ first, 0) @ last


@pytest.fixture(scope="module")
def network():
    first, last = jax.random.split(jax.random.key(0))
    weights = jax.random.normal(first, (12, 16)), jax.random.normal(last, (16, 4))
    return Partial(apply, weights)


@pytest.fixture(scope="module")
def examples(network):
    images = np.random.default_rng(0).uniform(0.2, 0.8, (24, 2, 6, 1)).astype(np.float32)
    return images, np.asarray(jnp.argmax(network(images), -1), np.int32)


def test_of_a_linear_model_it_is_the_exact_worst_case(examples):
    images, labels = examples
    weights = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    table = margin_table(
        Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights), *examples, threat=THREAT
    )
    flat = images.reshape(len(images), -1)
    apart = weights[:, labels].T[:, :, None] - weights[None]  # w_y - w_k
    exact = np.einsum("ij,ijk->ik", flat, apart) - THREAT.epsilon * np.abs(apart).sum(axis=1)
    exact[np.arange(len(labels)), labels] = np.inf
    np.testing.assert_allclose(table, exact, rtol=1e-4, atol=1e-5)


def test_the_table_is_below_the_clean_margins_and_falls_with_the_radius(network, examples):
    rows = [
        margin_table(network, *examples, threat=ThreatModel("linf", radius), num_steps=10)
        for radius in (0.0, 0.02, 0.1)
    ]
    logits = np.asarray(network(examples[0]))
    clean = logits[np.arange(len(logits)), examples[1]][:, None] - logits
    clean[np.arange(len(logits)), examples[1]] = np.inf
    np.testing.assert_allclose(rows[0], clean, rtol=1e-5, atol=1e-5)
    assert (rows[1] <= rows[0]).all() and (rows[2] < rows[1]).mean() > 0.7


def test_biases_shift_the_table_and_change_nothing_else(network, examples):
    """So the attack needs no second run at other biases, and knows them."""
    offsets = np.array([2.7, -3.1, 0.2, 0.4], np.float32)
    shifted = Partial(lambda inner, b, x: inner(x) + b[None], network, offsets)
    table, moved = (margin_table(f, *examples, threat=THREAT) for f in (network, shifted))
    labels = examples[1]
    rivals = np.isfinite(table)
    difference = np.abs(moved[rivals] - (table + offsets[labels][:, None] - offsets)[rivals])
    # Sums with a bias round otherwise, which now and then turns APGD's comparison of two losses.
    assert np.mean(difference < 2e-5) > 0.95 and difference.max() < 1e-3
    direct = (moved > 0).all(axis=1)
    found = calibration.class_accuracies(calibration.margins(table, labels), offsets)
    counts = np.bincount(labels, minlength=4)
    np.testing.assert_allclose(
        found, np.bincount(labels[direct], minlength=4) / np.where(counts, counts, np.nan)
    )


def test_a_row_is_of_its_own_image(network, examples):
    """Whatever the batches, the order and the names of the classes."""
    images, labels = examples
    table = margin_table(network, images, labels, threat=THREAT)
    order = np.random.default_rng(2).permutation(len(labels))
    again = margin_table(
        network, images[order], labels[order], threat=THREAT, index=order, batch_size=7
    )
    np.testing.assert_allclose(again, table[order], rtol=1e-5, atol=1e-5)
    names = np.array([2, 0, 3, 1])  # class `k` is now called `names[k]`
    renamed = Partial(lambda inner, old, x: inner(x)[:, old], network, np.argsort(names))
    found = margin_table(renamed, images, names[labels].astype(np.int32), threat=THREAT)
    np.testing.assert_allclose(found[:, names], table, rtol=1e-5, atol=1e-5)


def test_more_restarts_never_raise_a_margin(network, examples):
    one, three = (
        margin_table(network, *examples, threat=THREAT, num_steps=3, num_restarts=number)
        for number in (1, 3)
    )
    assert (three <= one).all() and (three < one).any()


def test_logits_that_are_not_finite_are_robust_at_no_bias():
    def logits_fn(x):
        return jnp.stack([x[:, 0, 0, 0], jnp.where(x[:, 0, 0, 0] > 0.5, jnp.nan, 0.0)], -1)

    images = np.array([0.9, 0.2], np.float32).reshape(2, 1, 1, 1)
    table = margin_table(logits_fn, images, np.array([0, 0]), threat=THREAT, num_steps=2)
    assert table[0].tolist() == [np.inf, -np.inf] and np.isfinite(table[1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(labels=np.array([0, 9])), "labels range over"),
        (dict(images=np.full((2, 2, 6, 1), 2.0, np.float32)), "images range over"),
        (dict(num_restarts=0), "num_restarts=0"),
        (dict(num_steps=0), "num_steps=0"),
        (dict(batch_size=-5), "batch_size=-5"),
        (dict(logits_fn=Randomized(lambda images, key: images)), "Randomized, no function"),
        (dict(index=np.arange(3)), r"index has shape \(3,\)"),
    ],
)
def test_bad_input_of_a_table_is_named(changes, message, network, examples):
    given = dict(images=examples[0][:2], labels=examples[1][:2], threat=THREAT) | changes
    with pytest.raises(ValueError, match=message):
        margin_table(**{"logits_fn": network} | given)


def made_up(seed, size=60, num_classes=3, weakness=1.0):
    """A table whose first class is the weak one."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % num_classes
    table = rng.normal(1.0, 1.0, (size, num_classes)) - weakness * (labels == 0)[:, None]
    table[np.arange(size), labels] = np.inf
    return table, labels


def reached(table, labels, offsets):
    return calibration.reached(
        calibration.class_accuracies(calibration.margins(table, labels), offsets)
    )


def value(found, t):
    return (1 - t) * found.average + t * found.worst_class


def two_classes():
    table = np.full((8, 2), np.inf)
    table[:4, 1], table[4:, 0] = (2, 1, -0.5, 3), (-1, -0.2, 0.4, -2)
    return table, np.repeat([0, 1], 4)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0, (0.75, 0.25)),
        (0.25, (0.75, 0.5)),
        (0.99, (0.75, 0.5)),
        (1.01, (0.5, 0.75)),
        (2.01, (0.25, 1)),
    ],
)
def test_accuracies_of_two_classes_by_hand(difference, expected):
    given = calibration.margins(*two_classes())
    assert tuple(calibration.class_accuracies(given, np.array([0, difference]))) == expected


def test_of_two_classes_it_is_the_best_there_is():
    table, labels = two_classes()
    found = reached(table, labels, class_bias(table, labels, t=1.0))
    assert (found.average, found.worst_class) == (0.625, 0.5)
    for seed in range(5):
        table, labels = made_up(seed, num_classes=2, size=101)
        grid = [reached(table, labels, np.array([0, d])) for d in np.linspace(-6, 6, 1001)]
        for t in (0.3, 1.0):
            ours = value(reached(table, labels, class_bias(table, labels, t=t)), t)
            assert ours >= max(value(found, t) for found in grid) - 1e-12
        floor = reached(table, labels, np.zeros(2)).average - 0.03
        ours = reached(table, labels, class_bias(table, labels, objective="gap", max_drop=0.03))
        assert ours.gap <= min(found.gap for found in grid if found.average >= floor) + 1e-12


@pytest.mark.parametrize("t", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_of_three_classes_nothing_on_a_fine_grid_is_better_by_an_image(t, seed):
    table, labels = made_up(seed)
    offsets = class_bias(table, labels, t=t)
    steps = np.linspace(-3, 3, 41)
    every = (np.array([0, a, b]) for a, b in itertools.product(steps, steps))
    grid = max(value(reached(table, labels, each), t) for each in every)
    assert value(reached(table, labels, offsets), t) >= grid - 1 / 60
    assert abs(offsets.mean()) < 1e-12


def test_no_move_of_one_or_two_classes_leads_to_more():
    table, labels = made_up(9, size=300, num_classes=5)
    offsets = class_bias(table, labels, t=0.7)
    most = value(reached(table, labels, offsets), 0.7)
    for a, b in itertools.combinations(range(5), 2):
        for line in (np.eye(5)[a], np.eye(5)[a] - np.eye(5)[b]):
            for step in np.linspace(-3, 3, 101):
                assert value(reached(table, labels, offsets + step * line), 0.7) <= most + 1e-12


def test_t_0_leaves_the_model_alone():
    table, labels = made_up(0)
    assert not class_bias(table, labels, t=0.0).any()
    found = calibration.fit(table, labels, t=0.0)
    assert not found.offsets.any() and found.fitted == found.as_trained == found.expected


def test_what_cannot_be_better_stays_as_it_is():
    table, labels = made_up(0)
    assert not class_bias(np.abs(table) + 1, labels, t=1.0).any()


def test_the_gap_closes_as_far_as_the_average_may_drop():
    table, labels = made_up(4, size=600, num_classes=4)
    before = reached(table, labels, np.zeros(4))
    found = {
        drop: reached(table, labels, class_bias(table, labels, objective="gap", max_drop=drop))
        for drop in (0.0, 0.01, 1.0)
    }
    assert found[1.0].gap <= found[0.01].gap <= found[0.0].gap <= before.gap > found[0.01].gap
    for drop, each in found.items():
        assert each.average >= before.average - drop - 1e-9


def test_a_small_gap_is_not_bought_with_the_model():
    """Both classes at 0 have no gap either."""
    table, labels = np.full((8, 2), np.inf), np.repeat([0, 1], 4)
    table[:4, 1], table[4:, 0] = 1.0, -3.0
    found = reached(table, labels, class_bias(table, labels, objective="gap"))
    assert found == reached(table, labels, np.zeros(2)) == (0.5, 0.0, 1.0)


def test_equal_worst_classes_are_told_apart_by_the_average():
    """Of three classes one is always lost; the others need a bias."""
    table, labels = np.full((12, 3), np.inf), np.repeat([0, 1, 2], 4)
    table[:4, 1:], table[4:8, [0, 2]], table[8:, :2] = -np.inf, [-1.0, 5.0], 5.0
    found = reached(table, labels, class_bias(table, labels, t=1.0))
    assert found == (pytest.approx(2 / 3), 0.0, 1.0)


def test_along_the_frontier_the_worst_class_rises_and_the_average_falls():
    table, labels = made_up(5, size=600, num_classes=5)
    weights = (1.0, 0.0, 0.1, 0.3, 0.6)
    offsets = calibration.frontier(table, labels, weights)
    found = dict(zip(weights, (reached(table, labels, each) for each in offsets), strict=True))
    assert not offsets[1].any()
    rising = [found[t] for t in sorted(found) if t]
    assert all(a.worst_class <= b.worst_class for a, b in itertools.pairwise(rising))
    assert all(a.average >= b.average for a, b in itertools.pairwise(rising))
    assert found[0.0].worst_class < found[1.0].worst_class
    for t, each in found.items():
        alone = value(reached(table, labels, class_bias(table, labels, t=t)), t)
        assert value(each, t) >= alone - 1e-12


def test_renaming_the_classes_renames_the_biases_and_rows_have_no_order():
    table, labels = made_up(7, size=400, num_classes=4)
    names = np.array([2, 0, 3, 1])
    offsets = class_bias(table, labels, t=0.5)
    renamed = class_bias(table[:, np.argsort(names)], names[labels], t=0.5)
    np.testing.assert_allclose(renamed[names], offsets, atol=1e-3)
    assert reached(table, labels, offsets) == reached(table, labels, renamed[names])
    order = np.random.default_rng(0).permutation(len(labels))
    assert class_bias(table[order], labels[order], t=0.5).tobytes() == offsets.tobytes()


def test_a_class_without_images_counts_nowhere_and_keeps_0():
    table, labels = made_up(3, size=90, num_classes=3)
    table, labels = table[labels != 2], labels[labels != 2]
    offsets = class_bias(table, labels, t=1.0)
    assert offsets[2] == 0 and offsets[0] == -offsets[1] != 0
    after, before = reached(table, labels, offsets), reached(table, labels, 0 * offsets)
    assert after.worst_class > before.worst_class


def test_a_class_without_images_is_a_rival_to_the_others():
    """Every image is lost to class 2; one of the other classes can have its images back."""
    table, labels = np.full((8, 3), np.inf), np.repeat([0, 1], 4)
    table[:4], table[4:] = (np.inf, 1.0, -1.0), (1.0, np.inf, -1.0)
    offsets = class_bias(table, labels, t=0.2)
    assert offsets[2] == 0 and offsets[0] == -offsets[1]
    assert reached(table, labels, offsets).average == 0.5


def test_one_class_alone_gains_from_zeros_as_well():
    """Whatever the smooth climb finds, no move of one class from the model as trained is better."""
    for seed in range(6):
        table, labels = made_up(seed, size=24, num_classes=4)
        most = value(reached(table, labels, class_bias(table, labels, t=0.2)), 0.2)
        for move, k in itertools.product(np.linspace(-4, 4, 81), range(4)):
            assert value(reached(table, labels, move * np.eye(4)[k]), 0.2) <= most + 1e-9


def test_a_class_that_is_never_predicted_comes_back():
    """A bias that was put in is taken out again."""
    table, labels = made_up(1, size=300, num_classes=3, weakness=0.0)
    offsets = np.array([9.0, -2.0, 0.5])
    moved = table - offsets[labels][:, None] + offsets
    assert reached(moved, labels, np.zeros(3)).worst_class == 0
    for t in (0.3, 1.0):
        sound = value(reached(table, labels, class_bias(table, labels, t=t)), t)
        found = value(reached(moved, labels, class_bias(moved, labels, t=t)), t)
        assert found == pytest.approx(sound, abs=0.011)  # an image of a class


def test_rows_that_no_bias_can_save_move_nothing():
    table, labels = made_up(2, size=90)
    lost = np.where(np.isposinf(table), np.inf, -np.inf)
    both, twice = np.concatenate([table, lost]), np.tile(labels, 2)
    for t in (0.4, 1.0):
        alone = reached(table, labels, class_bias(table, labels, t=t))
        found = reached(both, twice, class_bias(both, twice, t=t))
        assert value(found, t) == pytest.approx(value(alone, t) / 2, abs=1e-12)


def test_a_mixture_with_clean_margins_lies_between_its_ends():
    table, labels = made_up(6, size=300, num_classes=4)
    clean = np.where(np.isposinf(table), np.inf, table + np.random.default_rng(1).random(4))
    given = calibration.margins(table, labels, clean=clean, clean_share=0.25)
    offsets = np.array([0.4, 0.0, -0.1, -0.3])
    ends = [
        calibration.class_accuracies(calibration.margins(t, labels), offsets)
        for t in (table, clean)
    ]
    np.testing.assert_allclose(
        calibration.class_accuracies(given, offsets), 0.75 * ends[0] + 0.25 * ends[1], rtol=1e-12
    )
    found = class_bias(table, labels, clean=clean, clean_share=1.0, t=0.5)
    np.testing.assert_allclose(found, class_bias(clean, labels, t=0.5), atol=1e-3)


def test_with_few_images_shrunk_biases_serve_new_ones_better():
    """Over 16 draws, with classes that are equally hard (all gain is luck), and one that is not."""
    for weakness, few in ((0.0, 30), (1.0, 90)):
        new = made_up(1_000, size=6_000, weakness=weakness)
        before = value(reached(*new, np.zeros(3)), 0.5)
        gains = []
        for seed in range(16):
            table, labels = made_up(seed, size=few, weakness=weakness)
            both = calibration.fit(table, labels, t=0.5).offsets, class_bias(table, labels, t=0.5)
            gains.append([value(reached(*new, offsets), 0.5) - before for offsets in both])
        shrunk, plain = np.mean(gains, axis=0)
        error = np.std(np.subtract(*np.transpose(gains)), ddof=1) / 16**0.5
        if weakness:
            assert shrunk > 0.05 and shrunk > plain - 0.02
        else:
            assert shrunk - plain > error and plain < 0


def test_what_is_expected_is_without_the_luck_of_what_was_fitted():
    """Against 60,000 new rows. Both ends of the comparison are noisy, so means of 24 draws."""
    for weakness, size in ((1.0, 180), (1.0, 90)):
        new = made_up(1_000, size=60_000, weakness=weakness)
        apart = []
        for seed in range(24):
            found = calibration.fit(*made_up(seed, size=size, weakness=weakness), t=0.5)
            true = value(reached(*new, found.offsets), 0.5)
            apart.append([value(found.expected, 0.5) - true, value(found.fitted, 0.5) - true])
        expected, fitted = np.mean(apart, axis=0)
        error = np.std(apart, axis=0, ddof=1)[0] / 24**0.5
        assert fitted > 0.02 and abs(expected) < 3 * error < fitted + 0.02


def test_a_loss_may_be_expected():
    """Where all gain is luck."""
    found = [calibration.fit(*made_up(n, size=30, weakness=0.0), t=0.5) for n in range(8)]
    assert any(value(each.expected, 0.5) < value(each.as_trained, 0.5) for each in found)
    assert np.mean([each.factor for each in found]) < 0.75


def test_a_fit_does_not_depend_on_the_order_of_rows():
    table, labels = made_up(8, size=120)
    found = calibration.fit(table, labels, t=0.5)
    order = np.random.default_rng(0).permutation(len(labels))
    again = calibration.fit(table[order], labels[order], t=0.5, index=order)
    assert again.offsets.tobytes() == found.offsets.tobytes()
    assert again[1:5] == found[1:5]


def test_both_rows_of_an_image_share_a_half():
    table, labels = made_up(8, size=60)
    clean = np.where(np.isposinf(table), np.inf, table + 1)
    given = calibration.margins(table, labels, clean=clean, clean_share=0.5)
    halves = [half_splits._half(given, seed=0, split=split) for split in (0, 1)]
    for half in halves:
        assert half[:60].tolist() == half[60:].tolist()
        assert np.bincount(labels[half[:60]]).tolist() == [10] * 3
    assert halves[0].tolist() != halves[1].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(t=1.5), "t=1.5"),
        (dict(objective="best"), "objective='best'"),
        (dict(objective="gap", max_drop=-1), "max_drop=-1"),
        (dict(labels=np.arange(60) % 2), "table is not inf at the labels"),
        (dict(labels=np.zeros(5, int)), r"labels has shape \(5,\)"),
        (dict(labels=np.zeros(60)), "labels has shape"),
        (dict(labels=np.full(60, 7)), r"labels range over \[7, 7\]"),
        (dict(clean_share=0.5), "clean=None, but clean_share=0.5"),
        (dict(clean_share=1.5), "clean_share=1.5 is not"),
        (dict(clean=np.zeros((2, 3)), clean_share=0.5), r"labels has shape"),
    ],
)
def test_bad_input_of_the_biases_is_named(changes, message):
    table, labels = made_up(0)
    given = dict(table=table, labels=labels) | changes
    with pytest.raises(ValueError, match=message):
        class_bias(**given)


def test_a_margin_that_is_no_number_is_refused():
    table, labels = made_up(0)
    table[0, 1] = np.nan
    with pytest.raises(ValueError, match="table holds NaN, 1 times"):
        class_bias(table, labels)


def test_one_image_a_class_cannot_be_split(network, examples):
    with pytest.raises(ValueError, match="at least two images of a class"):
        calibration.fit(*made_up(0, size=3))
    for changes, message in (
        (dict(labels=np.arange(4)), "at least two images"),
        (dict(num_splits=1), "num_splits=1"),
        (dict(t=2.0), "t=2.0"),
        (dict(clean_share=-1), "clean_share=-1"),
    ):
        given = dict(images=examples[0][:4], labels=examples[1][:4], threat=THREAT) | changes
        with pytest.raises(ValueError, match=message):
            calibration.calibrate(None, **given)  # before anything is asked of the model


def test_a_table_goes_on_where_it_was_interrupted(network, examples, tmp_path, monkeypatch):
    images, labels = examples
    given = dict(threat=THREAT, num_steps=3, batch_size=6, workdir=tmp_path, save_seconds=0.0)
    whole = margin_table(network, images, labels, **given | {"workdir": None})
    calls, rows = [], margin_tables._rows

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows(*arguments)

    monkeypatch.setattr(margin_tables, "_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        margin_table(network, images, labels, **given)
    again = margin_table(network, images, labels, **given)
    assert len(calls) == 3 + 2  # 2 of 4 batches were saved
    assert again.tobytes() == whole.tobytes()
    assert margin_table(network, images, labels, **given).tobytes() == whole.tobytes()
    assert len(calls) == 5  # it was there
    for changes in ({"num_steps": 4}, {"num_restarts": 2}, {"seed": 1}):
        calls.append(1)  # past the one that interrupts
        other = margin_table(network, images, labels, **given | changes)
        assert other.tobytes() != whole.tobytes()
    (path, *_) = sorted(tmp_path.rglob("margins-*.npz"), key=lambda path: path.stat().st_mtime)
    path.write_bytes(path.read_bytes()[:-7])
    assert margin_table(network, images, labels, **given).tobytes() == whole.tobytes()


@pytest.mark.parametrize("number", [1, 2])
def test_a_table_is_the_same_on_more_devices(number, network, examples, monkeypatch):
    found = margin_table(network, *examples, threat=THREAT, num_steps=3, batch_size=7)
    devices = jax.local_devices()[:number]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    again = margin_table(network, *examples, threat=THREAT, num_steps=3)
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-5)


def test_calibrate_lifts_the_worst_class_of_any_function_under_attack(network, examples):
    images, labels = examples
    tilted = calibration.with_bias(network, [0.0, -0.3, 0.1, 0.2])
    found = calibration.calibrate(
        tilted, images, labels, threat=ThreatModel("linf", 0.01), t=1.0, num_steps=5
    )
    assert found.fitted.worst_class > found.as_trained.worst_class
    better = calibration.with_bias(tilted, found)
    assert "table" not in repr(found) and "factor=" in repr(found)
    table = margin_table(better, images, labels, threat=ThreatModel("linf", 0.01), num_steps=5)
    again = calibration.reached(
        calibration.class_accuracies(calibration.margins(table, labels), np.zeros(4))
    )
    assert again == found.fitted
    assert found.table.shape == (24, 4)
    np.testing.assert_allclose(
        better(images), tilted(images) + found.offsets.astype(np.float32)[None], rtol=1e-6
    )


def test_clean_accuracies_count_as_asked_and_only_then_cost_anything(network, examples):
    given = dict(threat=ThreatModel("linf", 0.01), num_steps=2, t=1.0)
    found = calibration.calibrate(network, *examples, clean_share=1.0, **given)
    at_rest = margin_table(network, *examples, threat=ThreatModel("linf", 0.0))
    assert found.table.tobytes() == at_rest.tobytes()
    assert found.as_trained.average == 1.0  # the labels are the network's own


def test_biases_of_the_wrong_number_are_refused_and_half_precision_is_not(network, examples):
    with pytest.raises(ValueError, match=r"offsets of shape \(3,\) do not fit"):
        calibration.with_bias(network, np.zeros(3))(examples[0])
    half = Partial(lambda inner, x: inner(x).astype(jnp.bfloat16), network)
    moved = calibration.with_bias(half, [1e-4, 0, 0, 0])(examples[0])
    assert moved.dtype == jnp.float32
    np.testing.assert_allclose(
        moved[:, 0] - half(examples[0]).astype(jnp.float32)[:, 0], 1e-4, rtol=1e-2
    )


def test_in_l2_the_table_of_a_linear_model_tends_to_the_worst_case(examples):
    images, labels = examples
    weights = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    model = Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    apart = weights[:, labels].T[:, :, None] - weights[None]
    exact = np.einsum("ij,ijk->ik", images.reshape(24, -1), apart)
    exact -= 0.1 * np.linalg.norm(apart, axis=1)
    exact[np.arange(len(labels)), labels] = np.inf
    errors = []
    for num_steps in (2, 20):
        table = margin_table(
            model, images, labels, threat=ThreatModel("l2", 0.1), num_steps=num_steps
        )
        assert (table >= exact - 1e-5).all()
        wrong = np.isfinite(exact)
        errors.append((table[wrong] - exact[wrong]).max())
    assert errors[1] < 1e-3 < errors[0]


def test_a_table_of_a_function_with_other_gradients_is_made_anew(tmp_path):
    """Whoever lets gradients through a rounding again has the same logits, and another table."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(12, 3)).astype(np.float32)
    images = rng.uniform(size=(9, 2, 2, 3)).astype(np.float32)
    labels = np.arange(9) % 3

    def logits_of(x):
        return jnp.reshape(x, (len(x), -1)) @ weights

    def rounded(x):
        return logits_of(jnp.round(16 * x) / 16)

    def straight_through(x):
        return logits_of(x + jax.lax.stop_gradient(jnp.round(16 * x) / 16 - x))

    def table(function, workdir=None):
        threat = ThreatModel("linf", 0.1)
        return margin_table(function, images, labels, threat=threat, num_steps=3, workdir=workdir)

    with pytest.warns(UserWarning, match="no gradient to follow"):
        table(rounded, tmp_path)
    np.testing.assert_array_equal(table(straight_through, tmp_path), table(straight_through))


def test_too_few_images_to_split_are_said_where_there_are_none():
    with pytest.raises(ValueError, match="none twice; give at least two images of a class"):
        half_splits.check_splits(5, np.zeros(0, int))
