"""The short `--help` of a command: what most people set, in groups, on one screen."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decur.layers import literals_of, type_of

if TYPE_CHECKING:
    from decur.config import Parser

_INDENT = 25  # column where the text about an option begins
_TOGETHER = "\u00a0"  # a space at which no line is broken
_CHOICES = 5  # at most so many values of an option are listed


class ShowAll(argparse.Action):
    """Print all options of a command, and exit."""

    def __call__(self, parser: Any, *unused: object) -> None:
        """Print them."""
        parser.essentials = {}
        parser.print_help()
        parser.exit()


def short_help(parser: Parser, essentials: Mapping[str, Sequence[str]]) -> str:
    """Return the help text that lists only some options of a command.

    Args:
        parser: the command's parser.
        essentials: `{title: keys}`. A key may lie in a class, as "data.root"; it is then described
            as the default class has it.
    """
    width = min(shutil.get_terminal_size((100, 24)).columns, 100) - 2
    usage = parser.format_usage().strip()
    classes = parser.class_keys()
    blocks = [usage, textwrap.fill(parser.description or "", width)]
    for title, keys in essentials.items():
        lines = [f"{title}:"]
        for key in keys:
            lines += _described(parser, key, classes.get(key, []), width)
        blocks.append("\n".join(lines))
    blocks.append(textwrap.fill(_more(parser, list(classes)), width))
    return "\n\n".join(blocks) + "\n"


def _described(parser: Parser, key: str, classes: list[str], width: int) -> list[str]:
    """Return the lines about one option: its name, what it does, its choices and its default."""
    action, default = parser.find_option(key)
    name = f"  --{key}" if action.option_strings else f"  {key}"
    about = _first_sentence(" ".join(str(action.help or "").split()))
    about += "." if about else ""
    shown = getattr(default, "as_dict", lambda: default)()
    if isinstance(shown, dict):
        shown = str(shown.get("class_path", "")).rpartition(".")[2]
    if isinstance(shown, list):
        shown = " ".join(map(str, shown))
    required = default is None and (action.required or key in parser.needed)
    if isinstance(shown, bool) and action.nargs != 0:
        shown = str(shown).lower()  # as it is given: --redraw, or --redraw true
    told = shown is not None and shown is not False and shown != ""
    choices = literals_of(type_of(action)) or classes
    notes = [", ".join(choices)] if 1 < len(choices) <= _CHOICES else []
    notes += ["required"] if required else [f"default:{_TOGETHER}{shown}"] if told else []
    about += f" [{'; '.join(notes)}]" if notes else ""
    text = textwrap.wrap(about, width - _INDENT, break_on_hyphens=False)
    text = [line.replace(_TOGETHER, " ") for line in text]
    if len(name) > _INDENT - 2:
        return [name, *(" " * _INDENT + line for line in text)]
    return [name.ljust(_INDENT) + (text or [""])[0], *(" " * _INDENT + line for line in text[1:])]


def _first_sentence(text: str) -> str:
    """Return the first sentence, without the explanations after a semicolon or a colon."""
    first = re.split(r"; |\.(?=\s|$)", text)[0]
    first = re.split(r"(?<=.{20}): (?=[^`}]*$)", first)[0]
    return first.rpartition(" (")[0] if first.count("(") > first.count(")") else first


def _more(parser: Parser, class_keys: list[str]) -> str:
    """Return where the other options are."""
    classes = [f"--{key}.help CLASS" for key in class_keys]
    verb = "list" if len(classes) > 1 else "lists"
    of_classes = f" {' and '.join(classes)} {verb} the options of one class." if classes else ""
    listed = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    count = sum(1 for action in listed if not re.search(r"help(_all)?$", action.dest))
    of_files = ""
    shown = {key for keys in parser.essentials.values() for key in keys}
    if "--config" in parser._option_string_actions and "config" not in shown:
        of_files = " Options may also stand in a YAML file (--config)."
    of_all = f"--help-all lists all {count} options." if count > 1 else ""
    return f"{of_all}{of_classes}{of_files}".strip()
