"""What is known to go wrong is said before training, in one line, and leaves nothing behind."""

import os

import jax
import numpy as np
import pytest
from tiny import tiny

from fairmix_jax.data import digits
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run, sweeps, workdir
from fairmix_jax.lab.configs import synthetic
from fairmix_jax.runtime import json_files, registry
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import RunsFailed, UsageError
from fairmix_jax.training import loop
from fairmix_jax.types import Averaging


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """The runs whose training was begun, which here takes no time and leaves a checkpoint."""
    found = []

    def fit(settings, task, directory):
        found.append(directory.name)
        (directory / "checkpoints" / "state" / "1").mkdir(parents=True)
        (directory / "checkpoints" / "best").mkdir(parents=True)
        return "0"

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(evaluate_run, "has_weights", lambda *_: True)
    monkeypatch.setattr(evaluate_run, "run", lambda *_: None)
    monkeypatch.setattr(sweeps, "_report", lambda *_, **__: None)
    return found


@pytest.fixture
def few(tmp_path):
    """A folder with digits of which the class 3 has four images to train on."""
    data = digits.make()
    rows = np.flatnonzero((data.train.labels != 3) | (np.cumsum(data.train.labels == 3) <= 4))
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(
        folder / "few.npz", train_images=data.train.images[rows],
        train_labels=data.train.labels[rows], test_images=data.test.images,
        test_labels=data.test.labels, class_names=np.array(data.class_names),
    )  # fmt: skip
    return folder


WRONG = {
    "a subset of a test image a class": (dict(evaluate__num_examples=3), "a subset of 3 examples"),
    "a subset for an attack": (dict(evaluate__attacks="autoattack@3"), "a subset of 3 examples"),
    "a subset of the subset": (
        dict(evaluate__attacks="pgd2@7", evaluate__num_examples=20), "a subset of 7 examples",
    ),
    "a file after training": (dict(evaluate__weights="x.safetensors"), "is for --mode=evaluate"),
    "no hot start": (dict(hot_start__workdir="/nowhere"), "hot_start.workdir='/nowhere' holds no"),
    "nothing validates": (
        dict(data__num_train=50, batch_size=20, data__val_fraction=0.1),
        "leaves no image to validate",
    ),
    "a rule that does not fit": (dict(rule__name="frl", rule__limit=2.0), "rule.limit=2.0"),
    "strengths": (dict(mixing__class_strength=(1.0, 2.0)), "class_strength"),
    "decays": (dict(optim__decays=(0.1,)), "optim.decays=.* is not one for each"),
    "devices": (dict(num_devices=1000), "num_devices=1000"),
    "the devices' batch": (dict(batch_size=41), "batch_size=41 does not divide"),
    "no validation before ASHA": (
        dict(launch__asha_grace_epochs=2, validation__every_epochs=3, total_epochs=9),
        r"validated by then \(validation.every_epochs=3\)",
    ),
    "a report of theory": (dict(report="gaussian"), "report='gaussian' needs"),
    "no room for a network": (dict(model__name="resnet", model__depth=19), "model.depth=19"),
    "layers that do not fit": (dict(model__norm="group", model__width=4), "has groups of 8"),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_a_run_that_will_fail_does_not_start(changes, message, tmp_path, started):
    directory = tmp_path / "runs" / "new"
    with pytest.raises(UsageError, match=message) as refused:
        config_lib.check(tiny(**changes))  # as the command line does
        sweeps.run(tiny(**changes), directory, with_training=True)
    assert "\n" not in str(refused.value)
    assert not started and not list(tmp_path.iterdir())
    sweeps.run(tiny(), directory, with_training=True)  # the corrected command
    assert started == ["new"]


@pytest.mark.parametrize("reader", [dict(rule__name="frl"), dict(averaging__name="fawa")])
def test_a_class_without_validation_is_said_to_who_reads_it(reader, few, tmp_path, started):
    config = tiny(data__name="few", data__dir=str(few), data__num_train=0, **reader)
    config.update_from_flattened_dict({"averaging.decay": None, "data.val_fraction": 0.1})
    with pytest.raises(UsageError, match=r"no image of '3' is in it; raise data\.val_frac"):
        sweeps.run(config, tmp_path / "run", with_training=True)
    assert not started and not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["best", "last", "none.safetensors"])
def test_an_evaluation_of_nothing_leaves_nothing(weights, tmp_path):
    with pytest.raises(UsageError, match=rf"evaluate.weights='{weights}'"):
        sweeps.run(tiny(evaluate__weights=weights), tmp_path / "new", with_training=False)
    config = tiny(evaluate__weights=weights, sweep="seed=0,1")
    with pytest.raises(UsageError, match=r"every run of the sweep would fail, seed=0: evaluate"):
        sweeps.run(config, tmp_path / "new", with_training=False)
    assert not list(tmp_path.iterdir())


def test_a_file_evaluated_where_a_run_lies_leaves_the_run_as_it_was(tmp_path):
    """Whose folder alone is then enough to go on."""
    config = tiny()
    sweeps.run(config, tmp_path, with_training=True)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UsageError, match=r"holds a run, whose files .* give another --workdir"):
        config.evaluate.weights = "some.safetensors"
        sweeps.run(config, tmp_path, with_training=False)
    assert (tmp_path / "config.json").read_text() == before
    sweeps.run(workdir.get_config(str(tmp_path)), tmp_path, with_training=True)


def test_a_run_without_checkpoints_is_not_overwritten_by_another_model(tmp_path):
    """As unpacking a study leaves it, or deleting what takes room."""
    workdir.claim(tmp_path, tiny())
    workdir.record(tmp_path, state_sha256="0")
    with pytest.raises(UsageError, match=r"holds a run, whose files .* give another --workdir"):
        config = tiny(evaluate__weights="some.safetensors")
        sweeps.run(config, tmp_path, with_training=False)
    with pytest.raises(UsageError, match="holds a run; give a folder of its own"):
        evaluate_run.save_foreign(tmp_path, {}, method="x", dataset="digits")


def test_one_class_is_refused_before_training(tmp_path, started):
    config = tiny(data__name="noise", data__num_train=0, data__num_classes=1)
    with pytest.raises(
        UsageError, match=r"data\.name='noise' has the class .* alone; give data of"
    ):
        sweeps.run(config, tmp_path / "new", with_training=True)
    assert not started and not list(tmp_path.iterdir())


def test_members_of_an_earlier_sweep_in_a_folder_stay_in_its_list(tmp_path):
    """So that they are packed with the study; what was never done does not."""
    sweeps.run(tiny(sweep="seed=0,1,2"), tmp_path, with_training=True)
    (tmp_path / "seed=1" / "evaluation.json").write_text("{}")
    sweeps.run(tiny(sweep="seed=0"), tmp_path, with_training=True)
    assert list(json_files.load(tmp_path / "sweep.json")["members"]) == ["seed=0", "seed=1"]


def test_a_config_binds_a_workdir_once_there_is_something_of_it(tmp_path):
    """Also where a run was killed while it compiled, or failed on a machine of an engine."""
    workdir.claim(tmp_path, tiny())
    workdir.record(tmp_path)
    workdir.claim(tmp_path, tiny(attack__epsilon=0.3))
    (tmp_path / "checkpoints" / "state" / "9").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"attack.epsilon=0.3, now 0.1; give another --workdir"):
        workdir.claim(tmp_path, tiny(attack__epsilon=0.1))
    workdir.claim(tmp_path, tiny(attack__epsilon=0.3, evaluate__attacks="pgd3"))
    assert workdir.get_config(str(tmp_path)).evaluate.attacks == "pgd3"


def test_members_that_will_fail_are_said_before_the_first_starts(tmp_path, started):
    """Not only those whose config is wrong, but also those that fit no data or no device."""
    config = tiny(sweep="batch_size=40,41,5000 seed=0,1")
    with console.capture() as said, pytest.raises(RunsFailed, match="4 of 6 runs failed"):
        sweeps.run(config, tmp_path, with_training=True)
    before, _ = said.get().split("[1/6]")
    assert before.count("will fail") == 4 and "batch_size=41,seed=1 will fail" in before
    assert started == ["batch_size=40,seed=0", "batch_size=40,seed=1"]
    assert not (tmp_path / "batch_size=41,seed=0" / "config.json").exists()
    config.sweep = "batch_size=40,80 seed=0,1"
    sweeps.run(config, tmp_path, with_training=True)
    assert started[2:] == ["batch_size=80,seed=0", "batch_size=80,seed=1"]


def test_a_member_of_a_users_own_that_needs_values_is_left_to_training(
    tmp_path, monkeypatch, started
):
    """Also one that breaks: the other runs are not to blame, and its traceback is kept."""

    def init(weights):
        if config.attack.epsilon == 0.3:
            raise KeyError("broken")
        return () if np.asarray(jax.tree.leaves(weights)[0]).size else None

    def make(**_):
        return Averaging(init, lambda average, *_: average, lambda average, weights: weights)

    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda axis, name: make if name == "own" else load(axis, name)
    )
    config = tiny(averaging__name="own", averaging__decay=None, sweep="seed=0,1")
    sweeps.run(config, tmp_path, with_training=True)
    assert started == ["seed=0", "seed=1"]
    config.attack.epsilon = 0.3
    with pytest.raises(RunsFailed, match="2 of 2 runs failed: seed=0: KeyError"):
        sweeps.run(config, tmp_path / "broken", with_training=True)
    assert "Traceback" in (tmp_path / "broken" / "seed=0" / "error.txt").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sweep="checkpoint.every_epochs=1,2"), "are both seed=0 of pgd_at"),
        (dict(sweep="batch_size=41,43"), "every run of the sweep would fail, batch_size=41: "),
        (dict(sweep="seed=0,1", study__hard_classes=("3", "x")), "study.hard_classes: 'x' is not"),
    ],
)
def test_a_sweep_whose_report_would_fail_does_not_start(changes, message, tmp_path, started):
    with pytest.raises(UsageError, match=message):
        sweeps.run(tiny(**changes), tmp_path / "new", with_training=True)
    assert not started and not list(tmp_path.iterdir())


THEORY = {
    "norm": (dict(attack__norm="l2"), "report='gaussian' needs attack.norm='linf', not 'l2'"),
    "law": (dict(mixing__law="dirichlet"), "needs mixing.law='uniform', not 'dirichlet'"),
    "pairs": (dict(mixing__name="cross_class"), "needs mixing.name='same_class'"),
    "strength": (dict(mixing__class_strength=(1.0, 0.5)), r"needs mixing.class_strength=\[\]"),
    "attack": (dict(evaluate__attacks="clean,fgsm"), "a PGD of all images .* not 'clean,fgsm'"),
    "subset": (dict(evaluate__attacks="clean,pgd20@500"), "not 'clean,pgd20@500'; add them"),
    "no seeds": (
        dict(sweep="base.loss=ce optim.learning_rate=0.5,0.1"),
        "optim.learning_rate=0.5, .* has 0.1, which report='gaussian' would take for seeds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", THEORY.values(), ids=THEORY)
def test_a_report_of_theory_is_refused_where_there_is_none(changes, message, tmp_path, started):
    config = synthetic.get_config("smoke").unlock()
    config.update(sweep="")
    config.base.loss = "ce"
    with config.ignore_type():
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    with pytest.raises(UsageError, match=message):
        sweeps.run(config.lock(), tmp_path / "new", with_training=True)
    assert not started and not list(tmp_path.iterdir())


def test_a_report_of_theory_has_rows_of_seeds_and_draws(tmp_path, started):
    config = synthetic.get_config("smoke").unlock()
    config.sweep = "base.loss=ce mixing.num_samples=1,2 seed+data.draw=0,1"
    sweeps.run(config.lock(), tmp_path, with_training=True)
    assert len(started) == 4


def test_a_study_is_evaluated_with_other_attacks_than_its_predictions_need(tmp_path, started):
    """And stays the study that it was: it is reported and goes on by its folder alone."""
    config = tiny(sweep="seed=0,1")
    config.study.arms = {"a": "batch_size=40", "b": "batch_size=20"}
    config.study.predictions = ("P: gap(pgd20): a < b",)
    sweeps.run(config, tmp_path, with_training=True)
    before = (tmp_path / "config.json").read_text()
    again = workdir.get_config(str(tmp_path)).unlock()
    again.evaluate.attacks = "clean"
    config_lib.check(again)
    with pytest.raises(UsageError, match=r"evaluate\.weights='best' are not in"):
        sweeps.run(again, tmp_path, with_training=False)  # these runs have none; but not refused
    assert (tmp_path / "config.json").read_text() == before
    config_lib.check(workdir.get_config(str(tmp_path)))


def test_a_data_set_is_loaded_once_for_the_runs_that_share_it(tmp_path, monkeypatch):
    loaded, load = [], sweeps.data.load
    monkeypatch.setattr(
        sweeps.data, "load", lambda section: loaded.append(section) or load(section)
    )
    config = tiny(sweep="data.num_train=250,300 batch_size=20,40 seed=0,1")
    sweeps.run(config, tmp_path, with_training=True)
    assert [section["num_train"] for section in loaded] == [250, 300, 250, 300]


@pytest.mark.parametrize("kind", ["a file", "below a file", "a report that is a file"])
def test_a_workdir_that_cannot_be_written_is_refused_before_training(kind, tmp_path, started):
    place = tmp_path / "place"
    if kind == "a report that is a file":
        place.mkdir()
        (place / "report").touch()
    else:
        place.touch()
    directory = place / "run" if kind == "below a file" else place
    with pytest.raises(UsageError, match="cannot be written; give another --workdir"):
        sweeps.run(tiny(), directory, with_training=True)
    assert not started


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_workdir_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        workdir.require_writable(tmp_path / "new")
