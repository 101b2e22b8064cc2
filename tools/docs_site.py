"""What mkdocs does besides, for pages that are read in the repository as well.

Figures of studies lie in results/, outside of docs/. Pages link to them as files of the repository;
the site gets a copy, and the links lead there.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


def on_files(files, config):
    """Adds the figures of the studies' reports."""
    for path in sorted(ROOT.glob("results/*/report/*.png")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Lets links to figures start from docs/ instead of the repository's root."""
    return re.sub(r"\]\(\.\./((?:\.\./)*results/[^)]+\.png)\)", r"](\1)", markdown)
