"""The logistic probe of the command: for classes only."""

import json

import pytest

from decur.probes import LOGISTIC


def test_the_command_takes_it_for_classes(bright, transferred):
    folder = transferred(f"--data.root={bright}", "--modalities", "s1", "--probe=logistic")
    found = json.loads((folder / "results.json").read_text())
    assert found["metrics"]["accuracy"]["value"] == 1.0
    assert found["model"] == "linear head (logistic)" and found["regularisation"] in LOGISTIC
    assert found["fit"] is None


@pytest.mark.parametrize(("target", "kind"), [("cover", "multilabel"), ("moisture", "scalar")])
def test_the_command_refuses_it_for_others(target, kind, refused):
    scenes = ["--data=SyntheticScenes", "--data.samples=60", "--data.size=32"]
    line = refused(*scenes, f"--target={target}", "--probe=logistic")
    assert f"{target!r} is a {kind}; take ridge" in line
