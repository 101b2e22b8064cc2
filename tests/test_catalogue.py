"""docs/methods.md is what the code says of itself."""

from conftest import ROOT

from fairmix_jax import catalogue, mixing, plugins


def test_the_page_is_generated():
    """If this fails: `python -m fairmix_jax.catalogue > docs/methods.md`."""
    assert (ROOT / "docs" / "methods.md").read_text() == catalogue.text()


def test_every_member_has_a_row_and_every_rule_a_measured_cost():
    rows = [line for line in catalogue.text().splitlines() if line.startswith("| `")]
    for name in [*plugins.names("bases"), *plugins.names("rules"), *mixing.NAMES]:
        assert any(row.startswith(f"| `{name}` |") for row in rows), name
    assert "not measured" not in catalogue.text()
