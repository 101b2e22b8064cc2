"""docs/metrics.md defines every column of a report, with the limits that the code has."""

import re

import pytest
from conftest import ROOT
from test_evidence import STUDIES
from test_launch import table_rows

from fairmix_jax.attacks.autoattack import attack_makers
from fairmix_jax.attacks.masking import _SIGNS
from fairmix_jax.classwise import image_verdicts, metrics

PAGE = (ROOT / "docs" / "metrics.md").read_text()
WHAT_A_ROW_IS_ABOUT = {  # and words on it
    "attack", "method", "class", "prediction", "claim", "statistic", "finding", "reason", "passed",
    "most in class", "epochs",
}  # fmt: skip


def columns(study):
    """The headings of all tables of a committed report, without their labels of methods."""
    parts = (ROOT / "results" / study / "report" / "table.md").read_text().split("\n\n")
    headings = {name for part in parts if part.startswith("|") for name in table_rows(part)[0]}
    return {name for name in headings if ": " not in name}


@pytest.mark.parametrize("study", STUDIES)
def test_every_column_of_a_report_is_defined(study):
    known = PAGE.lower()
    for name in columns(study) - WHAT_A_ROW_IS_ABOUT - {*attack_makers()}:
        kind = re.sub("^(train|clean|robust) (?!%)", "", name.lower())
        assert re.search(rf"(^### .*|[\"`])\b{kind}(?!\w)", known, re.M), name


@pytest.mark.parametrize(
    "name", ["average", "overall", "worst_class", "gap", "std", "nsd", "corrected"]
)
def test_every_field_of_a_result_is_defined(name):
    assert name in metrics.result([2], [1], ["a"], seconds=0.0)
    assert re.search(rf"^### .*\b{name.replace('_', ' ')}\b|`{name}`", PAGE, re.M | re.I)


def test_limits_of_masking_are_those_of_the_code():
    rows = {row[0].strip("`"): row[2:] for row in table_rows(PAGE)[2:]}
    assert rows == {
        name: [f"{100 * limit:.1f} %" for limit in limits]
        for name, (limits, _, _) in _SIGNS.items()
    }


def test_bins_of_the_calibration_error():
    assert f"over {image_verdicts._BINS} equal bins" in PAGE
