"""Modules that have moved since version 0.1 are still found by their old names."""

import subprocess
import sys
from importlib import import_module

import pytest

from decur.renamed import MOVED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", MOVED)
def test_the_old_name_gives_what_stands_at_the_new_place(old):
    now = MOVED[old]
    module = import_module(old)
    places = now if isinstance(now, dict) else {n: f"{now}:{n}" for n in _public(now)}
    assert places
    for name, place in places.items():
        home, _, there = place.partition(":")
        assert getattr(module, name) is getattr(import_module(home), there)


def _public(name):
    return [n for n in vars(import_module(name)) if not n.startswith("_")]


def test_the_old_name_warns():
    code = "from decur.checkpoint import load_encoder"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
    )
    assert "decur.checkpoint has moved" in done.stderr


def test_what_never_was_is_not_found():
    with pytest.raises(ImportError):
        import_module("decur.checkpoints")
