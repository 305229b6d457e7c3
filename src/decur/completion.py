"""Completion of command lines in a shell, which argcomplete asks for in environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection


def asked() -> bool:
    """Return whether the shell asks what a word may become."""
    return "_ARGCOMPLETE" in os.environ


def words_to_complete(commands: Collection[str]) -> list[str]:
    """Complete the name of a command, and exit; or return the words whose end is an option.

    The parser of a command completes its options. Nothing else is imported for the names of
    commands, so that they appear at once.

    Args:
        commands: the names.
    """
    before = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    skipped = int(os.environ["_ARGCOMPLETE"])  # words that stand for `decur`: "python -m decur"
    words = before.split()[skipped:]
    if len(words) > 1 or (words and before[-1].isspace()):
        if words[0] not in commands:
            sys.exit(1)
        os.environ["_ARGCOMPLETE"] = str(skipped + 1)
        return words
    import argparse

    import argcomplete

    parser = argparse.ArgumentParser("decur")
    parser.add_argument("command", choices=list(commands))
    argcomplete.autocomplete(parser)
    sys.exit(1)
