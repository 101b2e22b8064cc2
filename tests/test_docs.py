"""README and docs are short enough to be read, and lead where they say."""

import itertools
import re

import pytest
from conftest import ROOT

NEWCOMERS = (
    "index", "getting-started", "train-on-cifar10", "evaluate-your-model",
    "evaluate-a-model-you-did-not-train", "train-and-compare", "extend", "metrics", "architecture",
    "evidence/index", "theory",
)  # fmt: skip
OUTSIDE_OF_THE_SITE = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("configs/*.md"), *ROOT.glob("docs/**/*.md")]
)


def test_the_readme_is_read_in_three_minutes():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []
    assert lines.index("```python") < 25


@pytest.mark.parametrize("page", NEWCOMERS)
def test_a_page_that_a_newcomer_needs_is_read_in_five_minutes(page):
    assert len((ROOT / "docs" / f"{page}.md").read_text().split()) <= 1500


@pytest.mark.parametrize("path", OUTSIDE_OF_THE_SITE, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_the_repository_lead_to_files(path):
    """Whatever the site makes of them, of which its own strict build takes care."""
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_every_page_has_one_title_and_no_level_is_skipped():
    for path in (ROOT / "docs").rglob("*.md"):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.M)]
        assert levels[0] == 1 and levels.count(1) == 1, path
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), path
