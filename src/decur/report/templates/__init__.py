"""The templates of the report, and the Jinja environment that fills them."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


@cache
def environment() -> Environment:
    """Return the environment, which escapes whatever a template does not call HTML."""
    made = Environment(
        loader=PackageLoader("decur.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["with_options"] = _with_options
    return made


def _with_options(text: str) -> Markup:
    """Return a text as HTML, whose options of a command line are not broken behind a dash."""
    marked = re.sub(r"(?<!\S)--[\w.]+", r'<span class="option">\g<0></span>', str(escape(text)))
    return Markup(marked)
