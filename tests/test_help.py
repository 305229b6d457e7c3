"""Help texts: each option is described in one form."""

import re
from importlib import import_module

import pytest

from decur.cli import COMMANDS
from decur.config import Parser
from decur.layers import Keys, options_of


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"demo"}))
def test_the_help_of_every_option_is_a_sentence(command, monkeypatch):
    """It begins with a capital letter and ends in a full stop, in classes as well."""
    parsers: list[Parser] = []

    def stop(parser, arguments):
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(Parser, "parse", stop)
    module, _, function = COMMANDS[command][0].partition(":")
    with pytest.raises(SystemExit):
        getattr(import_module(module), function)(["--help"])
    found = {action.dest: action.help for action in parsers[0]._actions}
    keys: Keys = parsers[0]._keys()
    for home in keys.bases:
        for name in keys.class_names(home):
            kind = keys.class_of(home, name)
            if not kind.__module__.startswith("decur."):  # other tests define some
                continue
            options = options_of(kind)
            found |= {f"{home}.{name}.{key}": action.help for key, action in options.items()}
    wrong = {
        key: text
        for key, text in found.items()
        if text
        and "help" not in key
        and text != "==SUPPRESS=="
        and not re.fullmatch(r"[A-Z].*\.\)?", " ".join(text.split()))
    }
    assert not wrong
