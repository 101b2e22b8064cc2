"""Every field refuses every kind of bad value in one line, and takes what lies at its limits."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from conftest import ROOT
from ml_collections import ConfigDict
from test_launch import launch

from fairmix_jax import classwise
from fairmix_jax.classwise import attack_names
from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import schema, workdir
from fairmix_jax.runtime import declared, field_texts, registry
from fairmix_jax.runtime.errors import UsageError
from fairmix_jax.training import assembly, settings, task
from fairmix_jax.types import ThreatModel

NAN, INF, FLOAT32 = math.nan, math.inf, float(np.finfo(np.float32).max)
DECLARED = [field for field, _ in declared.fields(schema.Config())]
MEMBERS = {
    (section, name): list(registry.fields(axis, name).values())
    for section, axis in registry.AXES.items()
    for name in registry.names(axis)
}
EVERYTHING = [({}, field) for field in DECLARED] + [
    ({f"{section}.name": name}, field)
    for (section, name), fields in MEMBERS.items()
    for field in fields
]

WRONG = {  # of each kind of value
    bool: (0, 1, 1.0, "yes", "True", NAN, (True,), {}),
    int: (
        True,
        False,
        1.5,
        2.0,
        NAN,
        INF,
        -INF,
        "1",
        "²",
        (1,),
        {},
        1j,
        10**10,
        10**400,
        -(10**10),
    ),
    float: (
        True,
        "0.1",
        "nan",
        "²",
        NAN,
        INF,
        -INF,
        1e308,
        -1e308,
        10**400,
        10**5000,
        (0.1,),
        {},
        1j,
    ),
    str: (
        0,
        1.5,
        True,
        NAN,
        b"text",
        ("text",),
        {},
        "a\nb",
        "a\0b",
        "a\rb",
        "a\u2028b",
        "\x1b[31m",
    ),
}
HELD = {
    tuple: lambda bad: [(bad,), (bad, bad)],
    Mapping: lambda bad: [{"a": bad}, {bad: "a=1"}] if isinstance(bad, str) else [{"a": bad}],
}


def bad_values(field):
    """Wrong types, no numbers, too small, too large, no choice, in a tuple, in a wrong order."""
    items = list(WRONG[field.items])
    if field.items in (int, float):
        low, high = field.ends()
        step = 1 if field.items is int else 1e-3 * max(1, abs(low))
        items += [low - step] if field.above == -INF else [field.above, field.above - step]
        items += [high + 1 if high < 1e30 else 1e39] if field.below == INF else [field.below]
    if field.choices:
        items += ["other", f"{field.choices[0]} ", 11]
    if field.kind in (tuple, Mapping):
        items = [value for bad in items for value in HELD[field.kind](bad) if bad not in ("", {})]
        items += [0, 0.5, "text", True, NAN]
        items += [{"a": 1}] if field.kind is tuple else [("a",)]
    if field.rises:
        items += [(0.7, 0.3), (0.5, 0.5), (0.1, 0.2, 0.15)]
    return items if field.default is None else [*items, None]


def good_values(field):
    """The ends of the range, each choice, and an empty tuple or text where that is the default."""
    items = [field.default]
    if field.choices:
        return [*field.choices]
    if field.kind in (int, float):
        low, high = field.ends()
        inside = [np.nextafter(field.above, 1, dtype=np.float32), np.nextafter(field.below, 0)]
        items += [low if field.above == -INF else float(inside[0])]
        items += [high if field.below == INF else float(inside[1])]
        items = [field.kind(value) for value in items if value is not None]
    if field.kind is tuple and field.items is float:
        low, high = field.ends()
        items += [(1e-6,), (min(0.5, high), min(1.0, high)), [0.5]]
    return items


def config_with(changes):
    """A config with any values at all, as they come from a file of another program."""
    plain = schema.as_plain(schema.Config())
    for field, value in changes.items():
        section, _, name = field.rpartition(".")
        (plain[section] if section else plain)[name] = value
    return ConfigDict(plain)


def refusal(changes, field):
    """The line that refuses the config."""
    with pytest.raises(UsageError) as raised:
        config_lib.check(config_with(changes))
    message = str(raised.value)
    assert "\n" not in message and message.isprintable() and len(message) < 600, message
    assert message.startswith(field) and "; " in message, message
    return message


@pytest.mark.parametrize(
    ("member", "field"), EVERYTHING, ids=lambda given: getattr(given, "name", "")
)
def test_every_field_refuses_every_kind_of_bad_value(member, field):
    for value in bad_values(field):
        if not (member and value is None):  # which stands for the member's default
            refusal(member | {field.name: value}, field.name)


def test_the_table_of_bad_values_is_long_and_covers_every_field_of_the_page():
    assert sum(len(bad_values(field)) for _, field in EVERYTHING) > 1_500
    rows = (ROOT / "docs" / "config.md").read_text().splitlines()
    named = {row.split(" | ")[0][2:] for row in rows if row.startswith("| ")} - {"field", "---"}
    tested = {field.name for _, field in EVERYTHING} | {name for name, _, _ in BY_HAND}
    assert named <= tested


@pytest.mark.parametrize(
    ("member", "field"), EVERYTHING, ids=lambda given: getattr(given, "name", "")
)
def test_every_field_takes_what_lies_at_its_limits(member, field):
    for value in good_values(field):
        field.require(value)


BY_HAND = [
    ("data.name", "../../etc", {}), ("data.name", "/etc/passwd", {}), ("data.name", "a/../b", {}),
    ("data.name", "", {}), ("data.name", "a" * 300, {}), ("data.name", "~root", {}),
    ("model.name", "", {}), ("model.name", 3, {}), ("model.name", ["small_cnn"], {}),
    ("base.name", "../trades", {}), ("rule.name", None, {}), ("averaging.name", "ema\n", {}),
    ("calibration.name", "platt", {}), ("calibration.name", 0.2, {}),
    ("rule.name", {"a": 1}, {}), ("base.name", "TRADES", {}), ("averaging.name", 10**400, {}),
    ("model.norm", "batch:0", {}), ("model.norm", "batch:²", {}), ("model.norm", "batch:-1", {}),
    ("model.norm", "batch:", {}), ("model.norm", "batch:3.5", {}), ("model.norm", "Batch", {}),
    ("model.norm", "batch:1" + "0" * 400, {}), ("model.norm", "batch:7", {}),
    ("model.width", 0, {}), ("model.width", -8, {}),
    ("model.depth", 17, {"model.name": "resnet"}),
    ("model.depth", 11, {"model.name": "wide_resnet"}),
    ("evaluate.attacks", "", {}), ("evaluate.attacks", ",", {}), ("evaluate.attacks", "pgd", {}),
    ("evaluate.attacks", "pgd0", {}), ("evaluate.attacks", "pgd²", {}),
    ("evaluate.attacks", "pgd10000000000", {}), ("evaluate.attacks", "autoattack@²", {}),
    ("evaluate.attacks", "autoattack@", {}), ("evaluate.attacks", "autoattack@0", {}),
    ("evaluate.attacks", "autoattack@-5", {}), ("evaluate.attacks", "fast@" + "9" * 5000, {}),
    ("evaluate.attacks", "pgd٣", {}), ("evaluate.attacks", "clean;pgd20", {}),
    ("evaluate.weights", "", {}), ("evaluate.weights", "model.pt", {}),
    ("evaluate.weights", ".safetensors", {}),
    ("evaluate.weights", "best", {"data.val_fraction": 0.0}),
    ("optim.milestones", (7, -3), {}), ("optim.milestones", (15, 25), {}),
    ("optim.decays", (0.1,), {}), ("optim.decays", (0.1, 0.1, 0.1), {}),
    ("mixing.weights", (0.5, 0.6), {}), ("mixing.weights", (0.2,), {}),
    ("mixing.num_samples", 129, {}), ("mixing.num_groups", 3, {}),
    ("num_parts", 3, {}), ("num_parts", 2, {"mixing.stage": "hidden"}),
    ("launch.partition", "gpu\n#SBATCH --wrap=x", {}), ("launch.partition", "gpu; rm -rf .", {}),
    ("launch.partition", "$(id)", {}), ("launch.partition", "gpu --exclusive", {}),
    ("launch.asha_grace_epochs", 30, {}), ("launch.minutes", 2, {}),
    ("compile.topology", "v5e", {}), ("compile.topology", "v5e:2x", {}),
    ("compile.topology", "v5e:²x4", {}), ("sweep", "seed", {}), ("sweep", "seed=1,,2", {}),
    ("study.predictions", ("P",), {}), ("study.predictions", ("P: x(pgd20): a < b",), {}),
    ("study.easy_classes", ("3",), {"study.hard_classes": ("3",)}),
    ("base.beta", NAN, {"base.name": "mart"}), ("base.beta", 1.0, {}), ("rule.gamma", 0, {}),
    ("attack", 5, {}), ("optim", None, {}), ("model", "resnet", {}), ("data", (), {}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "others"), BY_HAND)
def test_bad_values_by_hand(field, value, others):
    refusal(others | {field: value}, field)


GOOD = [
    {"data.name": "cifar10:3.0.2"}, {"data.name": "cifar10_corrupted/brightness_1"},
    {"data.dir": "/données/été"}, {"seed": 0}, {"seed": 2**32 - 1}, {"attack.epsilon": 0},
    {"attack.epsilon": FLOAT32, "evaluate.step_size": 1.0}, {"attack.num_steps": 0},
    {"mixing.weights": (0.5, 0.5)}, {"mixing.weights": (1.0,)}, {"mixing.num_samples": 128},
    {"mixing.off_epochs": 30}, {"awp.warmup_epochs": 31}, {"optim.milestones": ()},
    {"optim.milestones": (0.0, 1.0)}, {"optim.milestones": [0.5]}, {"optim.decays": (0.5, 0.1)},
    {"model.norm": "batch:128"}, {"model.norm": "none"}, {"model.norm": "group"},
    {"launch.partition": "gpu,long-1.2"}, {"compile.topology": "v5p:2x2x4"},
    {"evaluate.attacks": "clean,pgd1,mifgsm10,autoattack@500,pgd999999999"},
    {"evaluate.radii": (0.5, 1, 1.5)}, {"evaluate.weights": "a b.safetensors"},
    {"rule.name": "cfol", "rule.gamma": 1}, {"rule.name": "faal", "rule.ball_radius": 9},
    {"rule.name": "dafa", "rule.warmup_epochs": 31}, {"base.name": "mart", "base.beta": 0},
    {"model.name": "wide_resnet", "model.depth": 34}, {"launch.asha_grace_epochs": 29},
    {"study.arms": {"a": "seed=0"}, "study.predictions": ()}, {"sweep": "seed=0,1 | seed=2"},
]  # fmt: skip


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_good_values_at_the_limits_are_taken(changes):
    config_lib.check(config_with(changes))


@pytest.mark.parametrize(
    "text", ["0.5", "('a',)", "1e999", "10000000000", "1" + "0" * 400, "None", "[]", "{}", "x"]
)
@pytest.mark.parametrize("field", ["attack.num_steps", "batch_size", "data.flip", "attack"])
def test_the_values_of_a_sweep_are_checked(text, field):
    with pytest.raises(UsageError, match=field) as raised:
        (_, changes), *_ = field_texts.expand(f"{field}={text}")
        config_lib.override(config_lib.default_config(), changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.total_epochs=1e3"], "--config.total_epochs=1e3: invalid literal for int()"),
        (["--config.optim.milestones=(0.5,'a')"], "optim.milestones=(0.5, 'a') has the wrong type"),
        (["--config.data.name=../../etc"], "data.name='../../etc' is not understood"),
        (["--config.attack.epsilon=8/255"], "; give a decimal number, such as 0.0314 for 8/255"),
        (["--config.attack.epsilon=8"], "attack.epsilon=8.0 is as wide as the range of pixels, 0"),
        (
            ["--config.rule.slope=1", "--config.rule.name=cfol"],
            "--config.rule.slope=1 names no config field; rule.name=cfol takes gamma, "
            "learning_rate, by; ",
        ),
        (["--config.atac.epsilon=1"], "names no config field; the nearest are attack.epsilon, "),
        (["--config.attack.eps=1"], "names no config field; the nearest are attack.epsilon"),
        (["--config.zzz=1"], "names no config field; `fairmix fields`"),
        (["--config.sweep=attack.eps=1"], "not a config field; the nearest are attack.epsilon"),
        (
            ["--config.rule.name=hardweight"],
            "variance, wat, or put your own fairmix_jax/rules/NAME.py into a folder on PYTHONPATH",
        ),
        (
            ["--mode=evaluate", "--config.evaluate.weights=x.pt"],
            "(import .pt with python -m fairmix_jax.export.torch_import)",
        ),
        (
            ["--mode=evaluate", "--config.evaluate.weights=a.safetensors", "--config.data.dir=/no"],
            "evaluate.weights='a.safetensors' does not exist; ",
        ),
    ],
)
def test_a_command_ends_with_the_line(arguments, message, tmp_path):
    result = launch("--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [[], ["--config=configs/digits.py:smoke"]])
def test_a_workdir_in_ones_home_is_there(arguments, tmp_path, monkeypatch):
    """No shell says where `~` is after a `=`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").touch()
    result = launch("--workdir=~/run", *arguments)
    assert result.returncode == 2 and str(tmp_path / "run") in result.stderr
    assert not (ROOT / "~").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "1", r"config.json is damaged.*seed"),
        ("batch_size", "1", r"batch_size='1' has the wrong type"),
        ("optim", {"milestones": [7, -3]}, r"optim.milestones=\(7, -3\) is out"),
    ],
)
def test_an_earlier_config_json_is_checked_as_well(field, value, message, tmp_path):
    plain = config_lib.resolved(config_lib.default_config())
    plain[field] = {**plain[field], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(UsageError, match=message):
        config_lib.check(workdir.get_config(str(tmp_path)))


def plain_settings(**changes):
    return dataclasses.replace(settings.Settings(batch_size=64), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(seed="1"), "seed='1' has the wrong type"),
        (dict(total_epochs=2**31 - 1), "total_epochs=2147483647 has 2^31 steps"),
        (dict(data=settings.Data(crop_padding=8)), "data.crop_padding=8 is not below the size"),
        (dict(data=settings.Data(crop_padding=100_000)), "data.crop_padding=100000 is not below"),
        (dict(data=settings.Data(name="..")), "data.name='..' is not understood"),
        (dict(attack={"epsilon": 1}), "attack={'epsilon': 1} is no section; give Attack"),
        (dict(batch_size=4096), "batch_size=4096 is larger than"),
        (dict(data=settings.Data(val_fraction=1e-6)), "data.val_fraction=1e-06 leaves no image"),
        (dict(model=settings.Member("small_cnn", {"width": 2.5})), "model.width=2.5 has the wrong"),
    ],
)
def test_settings_of_a_library_user_are_checked(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        task.build(plain_settings(**changes))


@pytest.mark.parametrize(
    ("attack", "evaluate", "field"),
    [
        ({"epsilon": 8}, {}, "attack.epsilon=8 is"),
        ({"epsilon": 1.0}, {}, "attack.epsilon=1.0 is"),
        ({"step_size": 2}, {}, "attack.step_size=2 is"),
        ({"epsilon": 0.2}, {"step_size": 2.0}, "evaluate.step_size=2.0 is"),
        ({"epsilon": 0.2}, {"radii": (1, 8)}, "evaluate.radii=(1, 8) times attack.epsilon=0.2 is"),
    ],
)  # fmt: skip
def test_no_perturbation_is_as_wide_as_the_pixels(attack, evaluate, field):
    """As 8 for 8/255 is; under L2, and where data have no bounds, it may be right."""
    given = dict(attack=settings.Attack(**attack), evaluate=settings.Evaluation(**evaluate))
    with pytest.raises(UsageError, match=re.escape(field)) as raised:
        task.build(plain_settings(**given))
    message = str(raised.value)
    assert "range of pixels, 0 to 1; give less (8/255 is 0.0314)" in message and "\n" not in message
    unbounded = settings.Data("gaussian", arguments=registry.parameters("data", "gaussian"))
    task.build(plain_settings(**given, data=unbounded, model=settings.Member("linear")))
    given["attack"] = dataclasses.replace(given["attack"], norm="l2")
    task.build(plain_settings(**given))


def test_what_is_just_below_the_range_of_the_pixels_is_taken():
    attack = settings.Attack(epsilon=0.99, step_size=0.99)
    built = task.build(
        plain_settings(attack=attack, evaluate=settings.Evaluation(radii=(0.5, 1.0)))
    )
    assert built.threat == ThreatModel("linf", 0.99) and ThreatModel("linf", 1.0).epsilon == 1.0


def test_members_of_a_library_user_are_checked():
    built = task.build(plain_settings(data=settings.Data(crop_padding=7)))
    given = plain_settings(base=settings.Member("mart", {"beta": NAN}))
    with pytest.raises(UsageError, match=r"base.beta=nan is out of range; give a number in \[0, 3"):
        assembly.assemble(given, built, total_steps=1, key=None)
    given = plain_settings(model=settings.Member("small_cnn", {"width": 12, "norm": "group"}))
    with pytest.raises(UsageError, match=r"model.norm='group' has groups of 8 channels and a laye"):
        assembly.assemble(given, task.build(given), total_steps=1, key=jax.random.key(0))


@pytest.mark.parametrize("radii", [(1.0, 0.5), (0.0,), ("a",), 0.5, (NAN,), (INF,)])
def test_settings_of_an_evaluation_are_checked(radii, rng):
    images, labels = rng.random((4, 2, 2, 1), np.float32), np.arange(4, dtype=np.int32) % 2
    with pytest.raises(UsageError, match="radii="):
        classwise.evaluate(
            lambda x: x[:, 0, :, 0], images, labels, class_names=["a", "b"], threat=ThreatModel(),
            settings=classwise.Settings(attacks="clean", radii=radii),
        )  # fmt: skip


def test_a_member_from_elsewhere_is_checked_by_its_annotations(monkeypatch):
    def make(num_classes, *, size: int = 3, rates: tuple[float, ...] = (), how=None, what="x"):
        return size, rates, how, what

    monkeypatch.setattr(registry, "load", lambda axis, name: make)
    for field, value in (("size", 2.5), ("rates", ("a",)), ("what", 3)):
        with pytest.raises(UsageError, match=f"model.{field}="):
            registry.arguments("models", {"name": "any", field: value})
    assert registry.arguments("models", {"name": "any", "how": np})["how"] is np


def test_numbers_of_attacks_are_ascii():
    assert attack_names.parse("pgd20@10")[0].num_steps == 20
