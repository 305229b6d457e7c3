"""The short form of `make chaos`: a few kills, full disks, flipped bits and fuzzed inputs."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


@pytest.fixture(scope="module")
def chaos_module():
    spec = spec_from_file_location("chaos", SCRIPT)
    module = module_from_spec(spec)
    sys.modules["chaos"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["chaos"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_commands_hold_in_a_little_chaos(chaos_module, tmp_path):
    chaos_module.import_once()
    chaos = chaos_module.Chaos(tmp_path, seed=3)
    chaos.reference(["pretrain", "embed"])
    chaos.disturb("kills", 1, ["embed"])
    chaos.disturb("full disk", 1, ["embed"])
    chaos.flip(2)
    chaos.fuzz(2)
    assert [trial for trial in chaos.trials if not trial.held] == []
    assert {kind: counts["tried"] for kind, counts in chaos.table().items()} == {
        "kills": 1,
        "full disk": 1,
        "flipped bits": 2,
        "fuzz": 2,
    }


@pytest.mark.parametrize(
    ("code", "text", "well"),
    [
        (0, "done", True),
        (2, "error: a.tif: is no picture", True),
        (1, "Traceback (most recent call last):\nKeyError: 1", False),
        (2, "nothing said", False),
        (-11, "error: x", False),
    ],
)
def test_how_a_command_may_end(chaos_module, code, text, well):
    assert (chaos_module.Ended(code, text).wrong() == "") is well
