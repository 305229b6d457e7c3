"""The templates of the report, and the Jinja environment that fills them."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def environment() -> Environment:
    """Return the environment, which escapes whatever a template does not call HTML."""
    return Environment(
        loader=PackageLoader("decur.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
