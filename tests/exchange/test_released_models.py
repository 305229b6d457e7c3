"""The commands of MODELS.md are such as decur takes."""

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from decur.cli import main
from decur.encoders.pretrained import parse_source
from decur.exchange.formats import Compat, Normalised
from decur.modality import load_modalities

TEXT = (Path(__file__).parents[2] / "MODELS.md").read_text()
COMMANDS = [shlex.split(command) for command in re.findall(r"\| `(decur [^`]+)` \|", TEXT)]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[1] == "import"], ids=lambda c: c[2])
def test_import(command, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "decur.exchange.importing.import_weights", lambda *a, **k: given.update(k) or []
    )
    main(command[1:])
    joint = "joint" in command[2] or "rgb_hha" in command[2]
    if modalities := given["modalities"]:
        assert len(load_modalities(modalities)) == 1 + joint
    assert given["compat"] in (None, *get_args(Compat))
    assert given["normalised"] in get_args(Normalised)


def test_sources_of_transfer():
    sources = {
        source
        for command in COMMANDS
        if command[1] == "transfer"
        for source in command[command.index("--encoders") + 1 : command.index("--data.root")]
    }
    parsed = {source: parse_source(source) for source in sources}
    assert {s for s, found in parsed.items() if found is None} == {"runs/mine", "hf-hub:USER/REPO"}
