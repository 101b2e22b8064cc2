"""The training step as a pure function, and the loop that repeats it."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import StopAfter, assemble, build, fit, run, tiny

from fairmix_jax.lab import config as config_lib
from fairmix_jax.methods import mixing
from fairmix_jax.methods.bases import pgd_at
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.runtime import registry
from fairmix_jax.runtime.errors import Interrupted, UsageError
from fairmix_jax.training import assembly, loop
from fairmix_jax.training.checkpoints import digest
from fairmix_jax.training.settings import Optimizer
from fairmix_jax.training.step import initial_state, make_train_step
from fairmix_jax.types import Averaging, Batch, StepInput, ThreatModel, Weights


@pytest.fixture(scope="module")
def three_steps():
    return run(tiny())


def test_one_trace_and_a_fixed_state(three_steps):
    initial, state, _ = three_steps
    chex.assert_trees_all_equal_shapes_and_dtypes(initial, state)
    assert int(state.step) == 3
    assert {field for field in state.__dataclass_fields__} == {
        "step", "params", "batch_stats", "opt_state", "rule_state", "average",
    }  # fmt: skip
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_metrics_count_every_example_once(three_steps):
    _, _, metrics = three_steps
    assert int(metrics.statistics.counts.total.sum()) == 40
    assert (metrics.statistics.counts.correct <= metrics.statistics.counts.total).all()
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize("epsilon, steps", [(0.0, 2), (0.2, 0)])
def test_pgd_at_without_a_perturbation_is_standard(epsilon, steps):
    """Zero radius; zero steps leave the random start, so only the first is an identity."""
    adversarial = run(tiny(attack__epsilon=epsilon, attack__num_steps=steps))[1]
    standard = run(tiny(base__name="standard"))[1]
    same = digest(adversarial.params) == digest(standard.params)
    close = jax.tree.all(
        jax.tree.map(
            lambda a, b: bool(jnp.allclose(a, b, atol=1e-5)), adversarial.params, standard.params
        )
    )
    assert close if epsilon == 0 else not same


def test_mixing_one_sample_is_no_mixing_and_two_samples_are_not():
    none = run(tiny())[1]
    one, two = (run(tiny(mixing__name="same_class", mixing__num_samples=n))[1] for n in (1, 2))
    chex.assert_trees_all_close(one.params, none.params, atol=1e-6)
    assert digest(two.params) != digest(none.params)


def test_mixing_stops_for_the_last_epochs():
    """20 steps, 2 epochs, the last one without mixing: from step 10 on as if there were none."""
    states = [
        assemble(tiny(mixing__name=name, mixing__off_epochs=1)) for name in ("none", "same_class")
    ]
    for step, is_same in ((9, False), (10, True)):
        results = []
        for trainer, data in states:
            state = trainer.initial_state.replace(step=jnp.asarray(step, jnp.int32))
            results.append(jax.jit(trainer.train_step)(state, data[0], jax.random.key(0))[1].loss)
        assert bool(jnp.allclose(*results, rtol=1e-5)) == is_same


@pytest.mark.parametrize("stage", ["after_attack", "hidden"])
def test_the_other_stages_train_and_differ(stage):
    _, state, metrics = run(tiny(mixing__name="same_class", mixing__stage=stage))
    _, before, _ = run(tiny(mixing__name="same_class"))
    assert np.isfinite(metrics.loss)
    assert digest(state.params) != digest(before.params)


def test_mix_and_attack_commute_for_a_linear_model():
    """A deterministic attack is one fixed shift a class: the statement behind the theory."""
    changes = dict(
        model__name="linear", model__width=None, mixing__name="same_class",
        attack__epsilon=1.0, attack__step_size=100.0, data__name="gaussian",
        data__examples_per_class=125, data__num_train=0,
    )  # fmt: skip
    ends = []
    for stage in ("before_attack", "after_attack"):
        trainer, data = assemble(tiny(mixing__stage=stage, **changes))
        params = {
            "Dense_0": {"kernel": jnp.linspace(-1, 1, 20).reshape(10, 2), "bias": jnp.ones(2)}
        }
        state = trainer.initial_state.replace(params=params)
        ends.append(jax.jit(trainer.train_step)(state, data[0], jax.random.key(0))[0].params)
    chex.assert_trees_all_close(*ends, atol=1e-5)


def test_the_attack_writes_no_batch_statistics():
    """The attack sees the running statistics; only the pass on its result updates them."""
    config = tiny()
    task = build(config)
    model = task.model
    params, stats = model.init(jax.random.key(0))
    calls = []

    def apply_fn(params, batch_stats, images, *, train, **options):
        calls.append(train)
        return model.apply(params, batch_stats, images, train=train, **options)

    attack = TrainingAttack(ThreatModel(), num_steps=2, step_size=0.1)
    base = registry.load("bases", "pgd_at")(apply_fn, attack)
    images = jnp.asarray(task.train.images[:4], jnp.float32) / 255
    ones = jnp.ones(4)
    inputs = StepInput(images, jnp.eye(10)[:4], jnp.arange(4), *[ones] * 4)
    adversarial = base.attack(params, stats, jax.random.key(1), inputs)
    assert calls.count(True) == 0
    result = base.loss(params, stats, inputs, adversarial)
    assert calls.count(True) == 1 and calls.count(False) >= 1
    assert digest(result.batch_stats) != digest(stats)


def test_sharded_over_two_devices_equals_one():
    """Sums over the batch are split in two, so equality is up to rounding through three steps."""
    trainer, data = assemble(tiny(mixing__name="same_class"))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(trainer.train_step)
    one = two = trainer.initial_state
    two = jax.device_put(two, everywhere)
    key = jax.random.key(7)
    for batch in data:
        one, counted = step(one, batch, key)
        two, counted_too = step(two, jax.device_put(batch, rows), jax.device_put(key, everywhere))
    chex.assert_trees_all_close(one.params, two.params, atol=2e-4)
    chex.assert_trees_all_close(counted.loss, counted_too.loss, rtol=1e-4)


def test_memorises_a_few_images():
    _, _, metrics = run(
        tiny(base__name="standard", optim__schedule="constant", averaging__name="none",
             averaging__decay=None), copies=15,
    )  # fmt: skip
    assert float(metrics.loss) / 40 < 0.1
    assert int(metrics.statistics.counts.correct.sum()) == 40


def test_a_batch_of_one_class_and_absent_classes_work():
    trainer, data = assemble(tiny(mixing__name="same_class"))
    batch = data[0]._replace(labels=jnp.full(40, 3, jnp.int32))
    state, metrics = jax.jit(trainer.train_step)(
        trainer.initial_state, Batch(*batch), jax.random.key(0)
    )
    assert metrics.statistics.counts.total.tolist() == [0, 0, 0, 40] + [0] * 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("after", [1, 7])
def test_interrupted_at_any_step_and_resumed_equals_uninterrupted(after, tmp_path, monkeypatch):
    config = tiny(total_epochs=3, checkpoint__every_epochs=2)
    whole = fit(config, build(config), tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", lambda: StopAfter(after))
        with pytest.raises(Interrupted, match="SIGTERM: saved at step"):
            fit(config, build(config), tmp_path / "parts")
    assert fit(config, build(config), tmp_path / "parts") == whole

    def curve(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [
            {
                k: v
                for k, v in json.loads(line).items()
                if k not in ("images_per_second", "checksum")
            }
            for line in lines
        ]

    assert curve("parts") == curve("whole")
    assert len(curve("whole")) == 3


def flip(folder):
    (path,) = (path for path in folder.iterdir() if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_training_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    """Of the same name and size, such as labels that were mended in between."""
    config = tiny(total_epochs=1)
    task = build(config)
    monkeypatch.setattr(loop, "StopRequest", lambda: StopAfter(2))
    with pytest.raises(Interrupted):
        fit(config, task, tmp_path)
    for part in (dict(labels=9 - task.train.labels), dict(images=255 - task.train.images)):
        other = task._replace(train=task.train._replace(**part))
        with pytest.raises(UsageError, match=r"trained on other images or labels than data\.name="):
            fit(config, other, tmp_path)


def test_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(tmp_path):
    """Damaged last weights are made again."""
    config = tiny(total_epochs=3)
    whole = fit(config, build(config), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    (last,) = (checkpoints / "last").iterdir()
    before = (last / "checkpoint.npz").read_bytes()
    flip(last)
    assert fit(config, build(config), tmp_path) == whole  # from the state as it is
    flip(max((checkpoints / "state").iterdir(), key=lambda path: int(path.name)))
    shutil.rmtree(last)
    assert fit(config, build(config), tmp_path) == whole
    assert (last / "checkpoint.npz").read_bytes() == before
    assert (checkpoints / "last" / f"damaged-{last.name}").is_dir()


def test_a_run_whose_best_weights_are_damaged_or_gone_does_not_go_on_without_them(
    tmp_path, monkeypatch
):
    config, task = tiny(total_epochs=3, validation__every_epochs=1), build(tiny())
    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", lambda: StopAfter(7))
        with pytest.raises(Interrupted):
            fit(config, task, tmp_path / "run")
    best = next((tmp_path / "run" / "checkpoints" / "best").iterdir())
    shutil.copytree(best, tmp_path / "copy")
    for harm in (flip, shutil.rmtree, lambda folder: (folder / "checkpoint.npz").unlink()):
        harm(best)
        with pytest.raises(UsageError, match=rf"best/{best.name}/.* damaged .*put it back") as told:
            fit(config, task, tmp_path / "run")
        assert len(str(told.value).splitlines()) == 1
        shutil.rmtree(best, ignore_errors=True)
        shutil.copytree(tmp_path / "copy", best)
    assert fit(config, task, tmp_path / "run") == fit(config, task, tmp_path / "whole")
    kept = [
        [
            path.read_bytes()
            for path in sorted((tmp_path / name / "checkpoints").glob("[bl]*/*/*.npz"))
        ]
        for name in ("run", "whole")
    ]
    assert kept[0] == kept[1]


def test_best_weights_have_the_best_validation_score(tmp_path):
    config = tiny(total_epochs=4)
    fit(config, build(config), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {
        line["step"]: line["val_robust/average"] + line["val_robust/worst_class"]
        for line in lines
        if "val_robust/average" in line
    }
    best = [path.name for path in (tmp_path / "checkpoints" / "best").iterdir()]
    assert best == [str(max(scores, key=lambda step: (scores[step], -step)))]


def test_validation_does_not_depend_on_the_settings_of_the_evaluation(tmp_path):
    """They may change between a run and its resumption, and must not change what is best."""
    one, two = tiny(), tiny(evaluate__step_size=0.001, evaluate__num_restarts=2)
    for name, config in (("one", one), ("two", two)):
        fit(config, build(config), tmp_path / name)
    scores = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("one", "two")
    ]
    assert scores[0]["val_robust/average"] == scores[1]["val_robust/average"]


def test_loss_that_is_not_finite_is_an_error(tmp_path):
    config = tiny(optim__learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower optim"):
        fit(config, build(config), tmp_path)


def schedule(**changes):
    given = dict(learning_rate=1.0, momentum=0.0, nesterov=False, weight_decay=0.0) | changes
    tx = assembly.optimizer(Optimizer(**given), total_steps=100)
    state, rates = tx.init(jnp.zeros(())), []
    for _ in range(100):
        update, state = tx.update(jnp.ones(()), state, jnp.ones(()))
        rates.append(-float(update))
    return rates


def test_schedules_by_hand():
    rates = schedule()
    np.testing.assert_allclose(
        [rates[i] for i in (0, 49, 50, 74, 75, 99)], [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    rates = schedule(schedule="cosine", warmup=0.1)
    np.testing.assert_allclose([rates[i] for i in (0, 5, 10, 55)], [0, 0.5, 1, 0.5], atol=1e-6)
    assert rates[99] < 1e-3
    rates = schedule(schedule="linear", warmup=0.5)
    np.testing.assert_allclose([rates[i] for i in (25, 50, 75, 99)], [0.5, 1, 0.5, 0.02], atol=1e-6)
    rates = schedule(decays=(0.1, 0.5))
    np.testing.assert_allclose([rates[i] for i in (49, 50, 75)], [1, 0.1, 0.05], rtol=1e-5)
    with pytest.raises(ValueError, match=r"optim\.decays has 1 numbers for 2"):
        schedule(decays=(0.1,))
    rates = schedule(warmup=0.1)
    np.testing.assert_allclose([rates[i] for i in (49, 50, 75)], [1, 0.1, 0.01], rtol=1e-5)


def test_weight_decay_is_the_l2_penalty():
    # gradient 1 + 0.5 * parameter 1
    assert schedule(weight_decay=0.5)[0] == pytest.approx(1.5)
    assert schedule(weight_decay=0.5, decay_biases=False)[0] == pytest.approx(1.0)


def test_ema_by_hand():
    averaging = registry.load("averaging", "ema")(decay=0.5)
    weights = Weights({"w": jnp.asarray(1.0)}, {})
    average = averaging.init(weights)
    # t = 1: decay min(0.5, 2/11); 2/11 * 1 + 9/11 * 3 = 29/11
    average = averaging.update(average, Weights({"w": jnp.asarray(3.0)}, {}), jnp.asarray(1))
    assert float(average.params["w"]) == pytest.approx(29 / 11)
    # t = 100: decay min(0.5, 101/110) = 0.5
    average = averaging.update(average, weights, jnp.asarray(100))
    assert float(average.params["w"]) == pytest.approx((29 / 11 + 1) / 2)


def test_ema_without_memory_is_the_current_weights():
    _, plain, _ = run(tiny(averaging__name="none", averaging__decay=None))
    _, averaged, _ = run(tiny(averaging__decay=0.0))
    chex.assert_trees_all_close(averaged.average.params, plain.params, atol=1e-7)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(batch_size=4096), "batch_size=4096 is larger than the 210 training examples"),
        (
            dict(averaging__decay=1.0),
            r"averaging.decay=1.0 is out of range; give a number in \[0, 1\)",
        ),
        (dict(model__name="preact_resnet", model__depth=11), "model.depth=11 is unknown"),
    ],
)
def test_configs_that_cannot_be_built_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        assemble(tiny(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(base__name="nosuch"),
            "base.name='nosuch' is unknown; choose one of fgsm_rs, mart, n_fgsm, pgd_at, "
            "standard, trades",
        ),
        (
            dict(model__depth=18),
            "model.depth=18 does not belong to model.name=small_cnn, which takes width, norm; "
            "remove it, or choose model.name=preact_resnet or model.name=resnet or "
            "model.name=wide_resnet",
        ),
        (
            dict(rule__gamma=0.1),
            "rule.gamma=0.1 does not belong to rule.name=none, which takes no fields; remove it, "
            "or choose rule.name=cfol",
        ),
        (dict(attack__epsilon=-0.1), "attack.epsilon=-0.1 is out of range"),
        (dict(attack__norm="l7"), "attack.norm='l7' is unknown"),
        (dict(mixing__num_samples=0), "mixing.num_samples=0 is out of range"),
        (dict(mixing__num_groups=3), "mixing.num_groups=3 does not divide batch_size=40"),
        (dict(num_parts=3), "num_parts=3 does not divide batch_size=40"),
        (dict(num_parts=2, mixing__stage="hidden"), "num_parts=2 needs mixing.stage=before_attack"),
        (dict(launch__asha_reduction=1), "launch.asha_reduction=1 is out of range"),
        (dict(evaluate__weights="best", data__val_fraction=0.0), "data.val_fraction"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UsageError) as raised:
        config_lib.check(tiny(**changes))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_parts_of_a_batch_give_the_step_of_the_whole():
    """Without batch norm and with per-example starts nothing couples examples but sums."""
    same = dict(mixing__name="same_class", model__norm="group", data__flip=True)
    whole, parts = (run(tiny(num_parts=number, **same)) for number in (1, 4))
    chex.assert_trees_all_close(parts[1].params, whole[1].params, atol=1e-4)
    chex.assert_trees_all_close(parts[2].loss, whole[2].loss, rtol=1e-4)
    assert parts[2].statistics.counts.total.tolist() == whole[2].statistics.counts.total.tolist()


def test_a_donated_state_takes_no_array_of_the_weights_or_the_average_with_it():
    given = jnp.arange(3.0)
    keeps = Averaging(lambda w: w, lambda average, w, step: average, lambda average, w: average)
    state = initial_state(
        Weights({"a": given, "b": given}, {}), tx=optax.adam(0.1), averaging=keeps
    )
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    moved = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    np.testing.assert_array_equal(moved.params["b"], given + 1)
    np.testing.assert_array_equal(moved.average.params["a"], given + 1)


@pytest.mark.parametrize("stage", ["after_attack", "hidden"])
def test_parts_of_a_batch_are_refused_where_images_are_mixed_after_the_attack(stage):
    """Also of a step that no config made: a partner may lie in another part."""
    model = build(tiny()).model
    attack = TrainingAttack(ThreatModel("linf", 0.1), num_steps=1, step_size=0.1)
    base, tx = pgd_at.make(model.apply, attack), optax.sgd(0.1)
    late = mixing.make("same_class", 10, stage=stage)
    step = make_train_step(base=base, tx=tx, mixing=late, num_classes=10, num_parts=2)
    state = initial_state(Weights(*model.init(jax.random.key(0))), tx=tx)
    batch = Batch(jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, int), jnp.arange(4), jnp.ones(4, bool))
    with pytest.raises(ValueError, match=f"num_parts=2 needs a mixing before .* not '{stage}'"):
        step(state, batch, jax.random.key(0))


def test_statistics_of_parts_are_those_of_ghost_batch_norm():
    """Part `i % 2` of the batch, as group `i % 2` of a batch in that order."""
    trainer, data = assemble(tiny(num_parts=2, base__name="standard"))
    ghost, _ = assemble(tiny(model__norm="batch:2", base__name="standard"))
    order = np.arange(40).reshape(20, 2).T.ravel()
    reordered = jax.tree.map(lambda x: x[order], data[0])
    first, second = (
        jax.jit(t.train_step)(t.initial_state, batch, jax.random.key(0))[0]
        for t, batch in ((trainer, data[0]), (ghost, reordered))
    )
    chex.assert_trees_all_close(first.batch_stats, second.batch_stats, atol=1e-6)
    chex.assert_trees_all_close(first.params, second.params, atol=1e-5)


@pytest.mark.parametrize("rule", ["dafa", "faal"])
def test_rules_see_each_part_as_a_batch(rule):
    _, state, metrics = run(tiny(num_parts=2, rule__name=rule, awp__gamma=0.01))
    assert int(metrics.statistics.counts.total.sum()) == 40
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
