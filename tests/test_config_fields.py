"""Config fields are declared once: their defaults, checks and page, and the help of the command."""

import ast
import functools
import subprocess
import sys

import pytest
from conftest import ROOT

from fairmix_jax.lab import config as config_lib
from fairmix_jax.lab import schema
from fairmix_jax.runtime import declared, registry
from fairmix_jax.runtime.errors import UsageError
from tools import config_page

FIELDS = [field for field, _ in declared.fields(schema.Config())]


def changed(field, value):
    config = config_lib.default_config()
    section, _, name = field.rpartition(".")
    with config.ignore_type():
        (config[section] if section else config)[name] = value
    return config


def test_the_page_of_all_fields_is_up_to_date():
    """If this fails: `python tools/config_page.py > docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text() == config_page.text()


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_a_meaning_and_a_sound_default_that_configs_get(field):
    assert len(field.meaning) > 4 and not field.meaning.endswith(".")
    field.require(field.default)
    default = config_lib.get(config_lib.default_config(), field.name)
    plain = default.to_dict() if hasattr(default, "to_dict") else default
    assert plain == field.default


@pytest.mark.parametrize("field", [f for f in FIELDS if f.choices], ids=lambda field: field.name)
def test_a_value_that_is_none_of_the_choices_is_refused(field):
    with pytest.raises(UsageError, match=rf"{field.name}='other' is unknown; choose one of"):
        config_lib.check(changed(field.name, "other"))


def test_settings_are_frozen_and_hold_plain_values():
    settings = config_lib.settings(config_lib.default_config())
    with pytest.raises(AttributeError):
        settings.seed = 1
    for _, value in declared.fields(settings):
        assert isinstance(value, (str, int, float, bool, tuple, dict))
    assert settings.rule.name == "none" and settings.model.arguments["norm"] == "batch"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "fairmix_jax").rglob("*.py")), ids=lambda path: path.stem
)
def test_only_the_lab_knows_configs(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    imported = {
        name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] + [getattr(node, "module", None) or ""])
    }
    is_lab = (ROOT / "fairmix_jax" / "lab") in path.parents
    assert is_lab or not any(name.startswith("ml_collections") for name in imported)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--help",
            ["--config", "--workdir", "sweep", "Exit status", "fairmix --config=quickstart"],
        ),
        ("fields", ["attack.epsilon", "mixing.num_samples", "rule.name=faal", "ball_radius"]),
        ("configs", ["quickstart", "digits", "cifar10"]),
    ],
)
def test_the_command_line_says_what_it_is(argument, expected):
    command = [sys.executable, "-m", "fairmix_jax.lab", argument]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [word for word in expected if word not in result.stdout] == []


@pytest.mark.parametrize("argument", ["--help", "configs"])
def test_the_help_fits_a_terminal_of_80_columns(argument):
    command = [sys.executable, "-m", "fairmix_jax.lab", argument]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert max(map(len, shown.splitlines())) <= 80


def test_a_decorated_member_keeps_its_fields(monkeypatch):
    def make(num_classes, *, width=3):
        return width

    @functools.wraps(make)
    def decorated(*arguments, **options):
        return make(*arguments, **options)

    monkeypatch.setattr(registry, "load", lambda axis, name: decorated)
    assert registry.parameters("models", "any") == {"width": 3}


def test_a_field_that_no_config_has_is_refused_by_its_name():
    config = config_lib.default_config().unlock()
    config.attack.epsilom = 0.1
    with pytest.raises(UsageError, match=r"config\.attack\.epsilom is no field"):
        config_lib.settings(config)
