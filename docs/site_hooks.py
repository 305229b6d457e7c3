"""What the documentation site computes: help texts, and links that leave the site."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout, suppress
from typing import Any

from decur.cli import COMMANDS, main

_HELP = re.compile(r"^<!-- help: (.*) -->$", re.MULTILINE)
_COMMANDS = re.compile(r"^<!-- commands -->$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:examples|src|tests|benchmarks)/[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what stands for it: help for `<!-- help: NAME -->`, of all for `<!-- commands -->`.

    A link to a file of the repository that is not a page becomes its name.
    """
    markdown = _COMMANDS.sub(lambda _: "\n\n".join(map(_section, COMMANDS)), markdown)
    markdown = _HELP.sub(lambda found: f"```text\n{_help(found[1])}\n```", markdown)
    return _OUTSIDE.sub(r"`\1`", markdown)


def _section(name: str) -> str:
    """Return the heading and the place of the help of a command."""
    return f"## decur {name}\n\n<!-- help: {name} -->"


def _help(command: str) -> str:
    """Return what `decur COMMAND --help` prints at a width of 100 columns."""
    printed = io.StringIO()
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    with redirect_stdout(printed), suppress(SystemExit):
        main([*command.split(), "--help"])
    return printed.getvalue().rstrip()
