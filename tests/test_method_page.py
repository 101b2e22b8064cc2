"""docs/methods.md and docs/recipes.md are what the code says of itself."""

import pytest
from conftest import ROOT

from fairmix_jax.methods import mixing
from fairmix_jax.runtime import registry
from tools import method_page


@pytest.mark.parametrize("name", ["methods.md", "recipes.md"])
def test_the_page_is_generated(name):
    """If this fails: `python -m tools.method_page`."""
    assert (ROOT / "docs" / name).read_text() == method_page.pages()[name]


def test_every_member_has_a_row_and_every_rule_a_measured_cost():
    text = method_page.pages()["methods.md"]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name in [*registry.names("bases"), *registry.names("rules"), *mixing.NAMES]:
        assert any(row.startswith(f"| `{name}` |") for row in rows), name
    assert "not measured" not in text
