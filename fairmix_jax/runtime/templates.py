"""Texts that lie beside the code: pages as templates, in the language of Jinja, and the rest."""

from importlib import resources
from typing import Any

import jinja2


def read(package: str, name: str) -> str:
    """Returns the text of a file in a package such as `"fairmix_jax.report"`."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def render(package: str, name: str, **values: Any) -> str:
    """Fills in a template; in one named `.html` all is escaped but what it calls `safe`.

    The text lies where `read` finds it. A name in it that has no value is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."), autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(name).render(values, zip=zip)
