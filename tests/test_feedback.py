"""From one epoch to the next: draws, rules, averages, hot starts, and what is reported of them."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats
from tiny import StopAfter, assemble, build, fit, tiny

from fairmix_jax.data import batches
from fairmix_jax.lab import config as config_lib
from fairmix_jax.methods.rules import knobs
from fairmix_jax.runtime import json_files, registry, sharding
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import Interrupted, UsageError
from fairmix_jax.training import assembly, epoch_end, loop
from fairmix_jax.training.checkpoints import Checkpoints, digest
from fairmix_jax.types import ClassCounts, Rule, Weights


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("frequencies", [[1.0, 1.0, 1.0], [2.0, 1.0, 0.0], [0.5, 0.2, 3.0]])
def test_draws_follow_the_frequencies_and_are_uniform_within_a_class(frequencies):
    """Chi-square over all rows: each is drawn in proportion to its class's frequency."""
    labels = jnp.asarray([0] * 5 + [1] * 10 + [2] * 15, jnp.int32)[jnp.asarray([*range(30)][::-1])]
    classes = batches.by_class(labels, 3)
    rows = batches.draw(jax.random.key(0), classes, jnp.asarray(frequencies), size=30_000)
    weight = np.asarray(frequencies)[np.asarray(labels)]
    times = np.bincount(rows, minlength=30)
    assert not times[weight == 0].any()
    drawn = weight > 0
    expected = 30_000 * weight[drawn] / weight.sum()
    assert 1e-4 < stats.chisquare(times[drawn], expected).pvalue < 1 - 1e-4


def test_a_class_that_does_not_exist_is_not_drawn():
    classes = batches.by_class(jnp.asarray([2, 0, 2], jnp.int32), 4)
    rows = batches.draw(jax.random.key(0), classes, jnp.ones(4), size=100)
    assert set(np.asarray(rows).tolist()) == {0, 1, 2}


def test_a_rule_that_samples_decides_what_is_trained_on(tmp_path, monkeypatch):
    """With a large rate one class takes gamma's complement: more than half of all draws."""
    shares, take = [], batches.take

    def spy(split, rows, size):
        batch = take(split, rows, size)
        if len(rows) == config.batch_size:
            shares.append(np.bincount(batch.labels, minlength=10).max() / len(rows))
        return batch

    config = tiny(rule__name="cfol", rule__learning_rate=10.0, rule__gamma=0.2, total_epochs=4)
    config.evaluate.batch_size = 33
    monkeypatch.setattr(batches, "take", spy)
    fit(config, build(config), tmp_path)
    frequencies = np.asarray([metrics(tmp_path)[-1][f"rule/sampling/class_{n}"] for n in range(10)])
    assert frequencies.max() > 3 and frequencies.sum() == pytest.approx(10, rel=1e-5)
    assert np.median(shares) > 0.5
    shares.clear()
    config.rule.learning_rate = 0.0
    fit(config, build(config), tmp_path / "uniform")
    assert np.median(shares) < 0.35


def test_rules_are_told_of_the_current_weights_and_not_of_the_average(tmp_path, monkeypatch):
    """An average that never moves leaves what a rule is told of as it is."""
    told = {"none": [], "ema": []}
    read = epoch_end.Validator.read

    def spy(self, weights, reads):
        told[name].append(digest(weights.params))
        return read(self, weights, reads)

    monkeypatch.setattr(epoch_end.Validator, "read", spy)
    for name, options in (("none", dict(averaging__decay=None)), ("ema", {})):
        config = tiny(rule__name="frl", averaging__name=name, total_epochs=2, **options)
        config.validation.every_epochs = 1
        fit(config, build(config), tmp_path / name)
    first, average, second, _ = told["ema"]  # the average is measured for the log
    assert told["none"] == [first, second] and len({first, average, second}) == 3
    knobs = [
        {k: v for k, v in metrics(tmp_path / name)[0].items() if k.startswith("rule/")}
        for name in ("none", "ema")
    ]
    assert knobs[0] == knobs[1]


def test_base_statistics_do_not_depend_on_settings_of_the_evaluation(tmp_path):
    for size in (7, 500):
        config = tiny(rule__name="wat", total_epochs=1, evaluate__batch_size=size)
        fit(config, build(config), tmp_path / str(size))
    weights = [
        {k: v for k, v in metrics(tmp_path / size)[0].items() if k.startswith("rule/")}
        for size in ("7", "500")
    ]
    assert weights[0] == weights[1]


def test_base_statistics_are_the_losses_of_the_validation_set():
    """Standard training: the cross-entropy of the clean images, running statistics, by class."""
    config = tiny(base__name="standard", batch_size=16, evaluate__batch_size=40)
    task = build(config)
    trainer, _ = assemble(config)
    weights = trainer.evaluated_weights(trainer.initial_state)
    settings = config_lib.settings(config)
    validator = epoch_end.Validator(settings, task, trainer.frozen_base, sharding.data_mesh())
    clean, robust, base = validator.read(weights, {"base"}).values()
    split = task.validation
    images = jnp.asarray(split.images, jnp.float32) / 255
    logits, _ = task.model.apply(*weights, images, train=False)
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(split.labels)), split.labels]
    expected = np.bincount(split.labels, losses, minlength=10)
    np.testing.assert_allclose(base.loss, expected, rtol=1e-5)
    assert not np.any(jax.tree.leaves((clean, robust)))
    assert base.counts.total.tolist() == np.bincount(split.labels, minlength=10).tolist()
    np.testing.assert_allclose(base.probabilities.sum(1), base.counts.total, rtol=1e-5)


@pytest.mark.parametrize("name", ["frl", "wat", "fairmix_adaptive"])
def test_rules_that_read_the_validation_move_when_there_is_one(name, tmp_path):
    config = tiny(rule__name=name, averaging__decay=0.99, total_epochs=4)
    config.validation.every_epochs = 2
    fit(config, build(config), tmp_path)
    lines = metrics(tmp_path)
    knobs = [{k: v for k, v in line.items() if k.startswith("rule/")} for line in lines]
    assert len(knobs) == 4
    assert knobs[0] != knobs[1] == knobs[2] != knobs[3]


@pytest.mark.parametrize("axis, name", [("rule", "frl"), ("averaging", "fawa")])
def test_members_that_read_a_validation_set_need_one(axis, name):
    config = tiny(data__val_fraction=0.0, averaging__decay=None, **{f"{axis}__name": name})
    if axis == "rule":
        config.averaging.name = "none"
    with pytest.raises(UsageError, match=rf"{axis}\.name='{name}' reads a validation set"):
        assemble(config)


def test_a_rule_that_reads_training_statistics_needs_none(tmp_path):
    config = tiny(rule__name="cfa", rule__warmup_epochs=0, total_epochs=1, data__val_fraction=0.0)
    fit(config, build(config), tmp_path)
    radii = {v for k, v in metrics(tmp_path)[-1].items() if k.startswith("rule/radius")}
    assert radii != {1.0}


def test_a_rule_may_use_one_array_twice(tmp_path, monkeypatch):
    """Its state is donated, which must not happen to one buffer twice."""

    def make(num_classes):
        def update(state, statistics):
            weight = 1 + 0.1 * jnp.ones(num_classes) * statistics.epoch.astype(jnp.float32)
            return {"radius": weight, "beta": weight}

        ones = jnp.ones(num_classes)
        return Rule(
            lambda: {"radius": ones, "beta": ones}, lambda state: knobs(num_classes, **state),
            sets=("radius", "beta"), reads=("train",), update=update,
        )  # fmt: skip

    load = registry.load
    own = lambda axis, name: make if name == "twice" else load(axis, name)  # noqa: E731
    monkeypatch.setattr(registry, "load", own)
    config = tiny(rule__name="twice", total_epochs=3)
    fit(config, build(config), tmp_path)
    assert metrics(tmp_path)[-1]["rule/radius/class_0"] == pytest.approx(1.3)


def fawa(decay=0.5, threshold=0.4):
    return registry.load("averaging", "fawa")(decay=decay, threshold=threshold)


def weights(value):
    return Weights({"w": jnp.asarray(value)}, {"mean": jnp.asarray(10 * value)})


def counts(*correct):
    total = jnp.full(len(correct), 10, jnp.int32)
    return ClassCounts(total, jnp.asarray(correct, jnp.int32))


def test_fawa_by_hand():
    """Worst classes .3, .4, .2, .9 against .4: takes in 2, then 4: 2, 2, (2 + 4) / 2 = 3."""
    averaging = fawa()
    average = averaging.init(weights(0.0))
    seen = []
    for value, robust in ((1.0, (3, 9)), (2.0, (4, 9)), (3.0, (9, 2)), (4.0, (9, 9))):
        average = averaging.update(average, weights(value), jnp.asarray(1))
        average = averaging.end_epoch(average, weights(value), counts(*robust))
        chosen = averaging.weights(average, weights(value))
        seen.append((float(chosen.params["w"]), float(chosen.batch_stats["mean"])))
    assert seen == [(1, 10), (2, 20), (2, 20), (3, 30)]


def test_fawa_that_takes_in_everything_and_remembers_nothing_is_no_averaging(tmp_path):
    ends = []
    for changes in (
        dict(averaging__name="fawa", averaging__decay=0.0, averaging__threshold=0.0),
        dict(averaging__name="none", averaging__decay=None),
    ):
        config = tiny(total_epochs=2, **changes)
        config.validation.every_epochs = 1
        workdir = tmp_path / config.averaging.name
        fit(config, build(config), workdir)
        ends.append(metrics(workdir)[-1]["val_robust/average"])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("options", [dict(decay=1.0), dict(threshold=1.5)])
def test_fawa_names_wrong_numbers(options):
    (field,) = options
    with pytest.raises(ValueError, match=f"averaging.{field}="):
        fawa(**options)


@pytest.mark.parametrize(
    "single_step, pgd, best_pgd, is_overfitted",
    [
        (0.85, 0.02, 0.40, True),  # what happens on CIFAR-10: the robustness of before is gone
        (0.85, 0.02, 0.00, True),  # it never was there
        (0.50, 0.15, 0.40, True),
        (0.55, 0.48, 0.48, False),  # sound
        (0.77, 0.47, 0.49, False),  # a weak single step, digits at 0.3
        (0.21, 0.05, 0.00, False),  # early: robust to nothing yet
        (0.20, 0.15, 0.40, False),  # worse against both, which is something else
    ],
)
def test_catastrophic_overfitting_is_a_collapse_against_pgd_alone(
    single_step, pgd, best_pgd, is_overfitted
):
    assert epoch_end.overfits_single_step(single_step, pgd, best_pgd) == is_overfitted


def test_catastrophic_overfitting_is_reported_and_survives_an_interruption(
    tmp_path, monkeypatch, capsys
):
    """A run whose best PGD accuracy, in an earlier process, was 1, and which is now far from it."""
    config = tiny(base__name="fgsm_rs", total_epochs=3, checkpoint__every_epochs=1)
    config.validation.every_epochs = 1
    task = build(config)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", lambda: StopAfter(6))
        with pytest.raises(Interrupted):
            fit(config, task, tmp_path)
    log = tmp_path / "metrics.jsonl"
    first = json.loads(log.read_text()) | {"val_single_step/pgd_average": 1.0}
    log.write_text(json.dumps(json_files.sealed(first)) + "\n")
    weak = ClassCounts(jnp.full(10, 9, jnp.int32), jnp.zeros(10, jnp.int32))
    read = epoch_end.Validator.read
    monkeypatch.setattr(
        epoch_end.Validator, "read",
        lambda *arguments: read(*arguments) | {"clean": weak, "robust": weak},
    )  # fmt: skip
    fit(config, task, tmp_path)
    lines = metrics(tmp_path)
    assert [line["catastrophic_overfitting"] for line in lines] == [0.0, 1.0, 1.0]
    assert "catastrophic overfitting: the network withstands" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["fgsm_rs", "n_fgsm"])
def test_single_step_bases_report_both_accuracies(name, tmp_path):
    config = tiny(base__name=name, total_epochs=1)
    fit(config, build(config), tmp_path)
    (line,) = metrics(tmp_path)
    assert line["catastrophic_overfitting"] == 0.0
    assert 0 <= line["val_single_step/average"] <= 1


def test_hot_start_begins_with_the_weights_of_another_run(tmp_path):
    first = tiny(total_epochs=1)
    fit(first, build(first), tmp_path / "first")
    config = tiny(total_epochs=1, optim__learning_rate=0.0, averaging__decay=0.0)
    config.hot_start.workdir = str(tmp_path / "first")
    task = build(config)
    fit(config, task, tmp_path / "second")
    trainer, _ = assemble(config)
    template = trainer.evaluated_weights(trainer.initial_state)
    params = []
    for name in ("first", "second"):
        saved = Checkpoints(tmp_path / name / "checkpoints" / "last", max_to_keep=1)
        params.append(digest(saved.restore_latest(template)[0].params))
    assert params[0] == params[1]


def test_hot_start_is_needed_once(tmp_path, monkeypatch):
    """An interrupted run goes on from its own state, and ends as one left alone."""
    first = tiny(total_epochs=1)
    fit(first, build(first), tmp_path / "first")
    config = tiny(total_epochs=2, hot_start__workdir=str(tmp_path / "first"))
    task = build(config)
    whole = fit(config, task, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", lambda: StopAfter(3))
        with pytest.raises(Interrupted):
            fit(config, task, tmp_path / "parts")
    (tmp_path / "first").rename(tmp_path / "gone")
    assert fit(config, task, tmp_path / "parts") == whole


def test_hot_start_refuses_weights_that_have_seen_the_validation_set(tmp_path):
    first = tiny(total_epochs=1)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps(config_lib.resolved(first)))
    config = tiny(hot_start__workdir=str(tmp_path / "first"), data__val_fraction=0.3)
    with pytest.raises(UsageError, match=r"trained with data\.val_fraction=0\.15 on images"):
        fit(config, build(config), tmp_path / "second")


def test_weights_may_have_seen_what_validates_among_more_or_fewer_images():
    """Subsets of a data set are nested; of a card without data nothing is known, which is said."""
    theirs = {"name": "digits", "num_train": 0, "val_fraction": 0.5}
    ours = config_lib.settings(tiny()).data
    with pytest.raises(UsageError, match=r"X was trained with data\.num_train=0 on images"):
        assembly.require_unseen("X", theirs, ours)
    assembly.require_unseen("X", theirs | {"name": "cifar10"}, ours)
    assembly.require_unseen("X", theirs, dataclasses.replace(ours, val_fraction=0.0))
    with console.capture() as said:
        assembly.require_unseen("X", {}, ours)
    assert "X does not say on which images" in said.get()


def test_hot_start_finds_a_folder_in_ones_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps(config_lib.resolved(tiny())))
    config = tiny(hot_start__workdir="~/first", data__val_fraction=0.3)
    with pytest.raises(UsageError, match=r"trained with data\.val_fraction=0\.15 on images"):
        assembly.hot_start(config_lib.settings(config), build(config))


def test_hot_start_refuses_another_network_and_leaves_its_run_alone(tmp_path):
    first = tiny(total_epochs=1)
    fit(first, build(first), tmp_path / "first")
    before = sorted(path.name for path in (tmp_path / "first").rglob("*"))
    (tmp_path / "foreign").mkdir()  # of a model not trained here, whose config has no data
    (tmp_path / "foreign" / "config.json").write_text('{"seed": 0}')
    folders = [dict(hot_start__workdir=str(tmp_path / name)) for name in ("nowhere", "foreign")]
    for changes in (dict(model__width=16), *folders):
        config = tiny(total_epochs=1, **({"hot_start__workdir": str(tmp_path / "first")} | changes))
        with pytest.raises(UsageError, match=r"hot_start\.workdir="):
            fit(config, build(config), tmp_path / "second")
    assert sorted(path.name for path in (tmp_path / "first").rglob("*")) == before
    assert not (tmp_path / "nowhere").exists()


def test_a_rule_and_a_model_are_added_by_a_file_each_anywhere_on_the_path(tmp_path):
    """They are those that docs/extend.md shows."""
    text = (ROOT / "docs" / "extend.md").read_text()
    for kind, heading in (("rules", "A rule"), ("models", "A model")):
        (code,) = re.findall(rf"## {heading}\n.*?```python\n(.*?)```", text, re.S)
        assert len(code.splitlines()) < 40
        folder = tmp_path / "mine" / "fairmix_jax" / kind
        folder.mkdir(parents=True)
        (folder / "dummy.py").write_text(code)
    command = [
        sys.executable, "launch.py", "--config=configs/digits.py:smoke",
        f"--workdir={tmp_path / 'run'}", "--config.rule.name=dummy", "--config.rule.slope=0.5",
        "--config.model.name=dummy", "--config.model.width=32",
        "--config.data.num_train=250", "--config.attack.num_steps=1",
        "--config.evaluate.num_examples=50",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "mine")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    weights = [metrics(tmp_path / "run")[-1][f"rule/loss_weight/class_{n}"] for n in range(10)]
    assert np.mean(weights) == pytest.approx(1, abs=1e-5) and np.ptp(weights) > 0.01
