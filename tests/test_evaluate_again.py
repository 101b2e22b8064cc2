"""Evaluation where there has been one: what is kept, what is dropped, and what each says of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny import build, tiny

from fairmix_jax import export
from fairmix_jax.classwise import ensemble_attacks, step_attacks
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import evaluate_run, preflight
from fairmix_jax.runtime.console import console
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training.checkpoints import Checkpoints, KeptWeights
from fairmix_jax.types import Weights

CONFIG = tiny(evaluate__num_examples=50, model__name="linear", model__width=None)


@pytest.fixture(scope="module")
def task():
    return build(CONFIG)


def some_weights(task):
    """Not as they are made: those of the linear model are zero, and so is its gradient."""
    made = Weights(*task.model.init(jax.random.key(3)))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(4), x.shape), made)


@pytest.fixture
def evaluate(task, tmp_path, monkeypatch):
    """Evaluates an exported model in a folder; returns results, what was attacked, and the text."""
    weights = some_weights(task)
    threat = {"norm": task.threat.norm, "epsilon": task.threat.epsilon}
    facts = {"dataset": "digits", "threat": threat, "weights": "last"}
    export.save_model(tmp_path, weights, task.model_card, facts)
    attacked = []
    for module in (step_attacks, ensemble_attacks):

        def spy(choice, subject, judge=module.judge):
            attacked.append(choice.name)
            return judge(choice, subject)

        monkeypatch.setattr(module, "judge", spy)

    def evaluate(attacks, folder="again", task=task, **changes):
        settings = config_lib.settings(CONFIG)
        changes = {"weights": str(tmp_path / "model.safetensors"), "attacks": attacks} | changes
        given = dataclasses.replace(settings.evaluate, **changes)
        attacked.clear()
        with console.capture() as said:
            evaluate_run.run(dataclasses.replace(settings, evaluate=given), task, tmp_path / folder)
        found = json.loads((tmp_path / folder / "evaluation.json").read_text())
        return found, list(attacked), " ".join(said.get().split())

    return evaluate


def numbers(attacks):
    return {
        name: {k: v for k, v in result.items() if k != "seconds"}
        for name, result in attacks.items()
    }


def test_attacks_are_added_and_all_follows_from_those_then_there(evaluate, tmp_path):
    """Whatever the order in which they came, as if all had been asked for at once."""
    first, *_ = evaluate("clean,pgd2")
    found, attacked, said = evaluate("pgd3,fgsm")
    assert attacked == ["pgd3", "fgsm"]
    assert "evaluation.json: clean, pgd2: kept" in said and "delete the file to redo" in said
    assert list(found["attacks"]) == ["clean", "pgd2", "pgd3", "fgsm", "union"]
    assert found["settings"]["attacks"] == "clean,pgd2,pgd3,fgsm"
    assert found["attacks"]["pgd2"] == first["attacks"]["pgd2"]
    at_once, *_ = evaluate("clean,pgd2,pgd3,fgsm", folder="at_once")
    assert numbers(at_once["attacks"]) == numbers(found["attacks"])
    card = (tmp_path / "again" / "model_card.md").read_text()
    assert all(f"| {name} |" in card for name in found["attacks"])
    before = (tmp_path / "again" / "attacks" / "pgd2" / "verdicts.npz").stat().st_mtime_ns
    found, attacked, said = evaluate("pgd2")
    assert attacked == [] and numbers(found["attacks"]) == numbers(at_once["attacks"])
    assert (tmp_path / "again" / "attacks" / "pgd2" / "verdicts.npz").stat().st_mtime_ns == before


def test_the_union_counts_every_iterate_of_what_is_kept(evaluate, monkeypatch):
    """An image that is right at the end and wrong on the way is not robust, then and later."""
    judge = step_attacks.judge

    def wavering(choice, subject):
        found = judge(choice, subject)
        correct = np.ones(len(subject.rows), bool)
        withstood = correct.copy()
        withstood[7] = choice.kind != "pgd"
        return dataclasses.replace(
            found, verdicts=found.verdicts._replace(correct=correct), withstood=withstood
        )

    monkeypatch.setattr(step_attacks, "judge", wavering)
    evaluate("clean,pgd2")
    found, attacked, _ = evaluate("fgsm")
    assert attacked == ["fgsm"]
    assert sum(found["attacks"]["pgd2"]["class_correct"]) == 50
    assert sum(found["attacks"]["union"]["class_correct"]) == 49


@pytest.mark.parametrize(
    "changes, why, left",
    [
        (dict(step_size=0.01), "evaluate.step_size", ["clean", "fgsm"]),
        (dict(num_restarts=2), "evaluate.num_restarts", ["clean"]),
        (dict(num_examples=30), "evaluate.num_examples", []),
    ],
)
def test_what_other_settings_contradict_is_dropped_and_said(changes, why, left, evaluate):
    evaluate("clean,pgd2,fgsm")
    found, attacked, said = evaluate("pgd3", **changes)
    kept = [name for name in found["attacks"] if name != "union"]
    assert kept == [*left, "pgd3"] and "pgd3" in attacked
    dropped = [name for name in ("clean", "pgd2", "fgsm") if name not in left]
    assert f"{', '.join(dropped)}: not kept, since {why} has changed" in said


def test_what_changes_no_number_drops_nothing(evaluate):
    evaluate("clean,pgd2")
    _, attacked, _ = evaluate("clean,pgd2", batch_size=7, masking=False, save_adversarial=True)
    assert attacked == []


def test_other_weights_and_earlier_versions_are_evaluated_anew(evaluate, tmp_path, task):
    evaluate("clean,pgd2")
    weights = jax.tree.map(lambda x: x + 1, some_weights(task))
    facts = json.loads((tmp_path / "model.json").read_text())
    export.save_model(tmp_path, weights, task.model_card, facts)
    found, attacked, said = evaluate("clean")
    assert attacked == ["clean"] and list(found["attacks"]) == ["clean"]
    assert "clean, pgd2: not kept, since the weights have changed" in said
    for name in ("weights_sha256", "version", "checksum"):  # as earlier versions wrote it
        found.pop(name, None)
    (tmp_path / "again" / "evaluation.json").write_text(json.dumps(found))
    _, attacked, said = evaluate("clean")
    assert attacked == ["clean"] and "clean: not kept, since the weights have changed" in said


def test_checkpoints_are_enough_to_evaluate(evaluate, tmp_path, task):
    """As a folder copied in part has them, without the run.json that the model's card reads."""
    weights = some_weights(task)
    Checkpoints(tmp_path / "part" / "checkpoints" / "last", max_to_keep=1).save(1, weights)
    found, *_ = evaluate("clean", folder="part", weights="last")
    of_file, *_ = evaluate("clean")
    assert numbers(found["attacks"]) == numbers(of_file["attacks"])
    assert (tmp_path / "part" / "model_card.md").exists()


@pytest.mark.parametrize("name", ["mean", "std"])
def test_weights_are_not_evaluated_with_the_normalisation_of_other_images(
    name, evaluate, tmp_path, task
):
    """The same data set from another folder may hold other images; its run's config allows it."""
    weights = some_weights(task)
    kept = KeptWeights(tmp_path / "run" / "checkpoints", weights, {}, task.model_card)
    kept.save_last(1, weights)
    kept.offer(1, weights, 0.5)
    other = task._replace(model_card=task.model_card | {name: [0.25]})
    for which in ("last", "best"):
        with pytest.raises(UsageError, match=f"{name}=.* have \\[0.25\\]; give the data.dir"):
            evaluate("clean", folder="run", task=other, weights=which)
    assert "clean" in evaluate("clean", folder="run", weights="best")[0]["attacks"]


def test_a_curve_is_kept_with_the_attack_that_made_it(evaluate, monkeypatch):
    drawn, radius_curve = [], step_attacks.radius_curve

    def spy(choice, *arguments):
        drawn.append(choice.name)
        return radius_curve(choice, *arguments)

    monkeypatch.setattr(step_attacks, "radius_curve", spy)
    first, *_ = evaluate("clean,pgd2", radii=(0.5, 1.0))
    found, *_ = evaluate("fgsm", radii=(0.5, 1.0))
    assert found["curve"] == first["curve"] and drawn == ["pgd2"]
    evaluate("fgsm", radii=(0.5, 1.5))
    found, *_ = evaluate("pgd3", radii=(0.5, 1.5))
    assert drawn == ["pgd2", "pgd2", "pgd3"] and found["curve"]["attack"] == "pgd3"


def test_a_curve_is_kept_where_none_is_asked_for_and_else_its_loss_is_said(evaluate):
    first, *_ = evaluate("clean,pgd2", radii=(0.5,))
    found, *_ = evaluate("clean,pgd2", radii=())
    assert found["curve"] == first["curve"]
    found, _, said = evaluate("clean,pgd2", radii=(), step_size=0.01)
    assert "curve" not in found and "curve, pgd2: not kept, since evaluate.step_size" in said


def test_files_of_attacks_wait_for_the_whole_evaluation(evaluate, tmp_path, monkeypatch):
    """Else an evaluation stopped in its curve would leave those of other weights."""

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(step_attacks, "radius_curve", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate("clean,pgd2", radii=(0.5,))
    assert not (tmp_path / "again" / "attacks").exists()


def test_weights_in_ones_home_are_found(evaluate, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluate("clean", weights="~/model.safetensors")


def test_a_run_has_what_it_needs_where_more_has_been_evaluated(evaluate, tmp_path):
    """What training again in its folder asks of it: all of its attacks, with its settings."""
    evaluate("clean,pgd2,fgsm")
    (tmp_path / "again" / "run.json").write_text('{"argv": [], "state_sha256": "0"}')
    settings = config_lib.settings(CONFIG)
    weights = str(tmp_path / "model.safetensors")
    for attacks, step_size, is_done in (
        ("pgd2,clean", None, True), ("clean,pgd4", None, False), ("clean", 0.01, False),
    ):  # fmt: skip
        changes = {"attacks": attacks, "weights": weights}
        changes |= {"step_size": step_size} if step_size else {}
        given = dataclasses.replace(settings.evaluate, **changes)
        own = dataclasses.replace(settings, evaluate=given)
        assert preflight.is_done(own, tmp_path / "again") == is_done


def test_the_same_weights_in_another_network_are_evaluated_anew(evaluate, tmp_path, task):
    """As a file that is imported again with the right normalisation."""
    evaluate("clean")
    card = json.loads((tmp_path / "model.json").read_text()) | {"mean": [0.9]}
    card.pop("checksum", None)
    (tmp_path / "model.json").write_text(json.dumps(card))
    other = task._replace(model_card=task.model_card | {"mean": [0.9]})
    _, attacked, said = evaluate("clean", task=other)
    assert attacked == ["clean"]
    assert "clean: not kept, since the options of the network have changed" in said


def test_an_exported_model_has_its_own_name_in_a_report(evaluate, tmp_path):
    found, *_ = evaluate("clean")
    assert found["method"] == tmp_path.name  # its file is model.safetensors
    for name in ("safetensors", "json"):
        (tmp_path / f"model.{name}").rename(tmp_path / f"trades.{name}")
    found, *_ = evaluate("clean", weights=str(tmp_path / "trades.safetensors"))
    assert found["method"] == "trades"
