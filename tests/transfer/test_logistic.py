"""The logistic probe of the command, for classes only, and the probe that fits a label."""

import json

import pytest

from decur.probes import LOGISTIC


def test_the_command_takes_it_for_classes(bright, transferred):
    folder = transferred(f"--data.root={bright}", "--modalities", "s1", "--probe=logistic")
    found = json.loads((folder / "results.json").read_text())
    assert found["metrics"]["accuracy"]["value"] == 1.0
    assert found["model"] == "linear head (logistic)" and found["regularisation"] in LOGISTIC
    assert found["fit"] is None


def test_auto_takes_what_fits_the_label_and_says_so(label_folder, transferred, capsys):
    root = label_folder({i: "ab"[i % 2] for i in range(40)})
    numbers = [f"{i:04d},{i / 7:.3f},{'x;y' if i % 2 else 'y'}" for i in range(40)]
    (root / "labels.csv").write_text(
        "\n".join(
            ["id,height:number,tags:multilabel,kind:class"] + [f"{n},{n[3]}" for n in numbers]
        )
    )
    fitting = {"kind": ("class", "logistic"), "height": ("scalar", "ridge")}
    for target, (kind, probe) in {**fitting, "tags": ("multilabel", "ridge")}.items():
        folder = transferred(f"--data.root={root}", f"--target={target}", "--probe=auto")
        assert f"probe     {probe}, as {target} is a {kind}\n" in capsys.readouterr().out
        found = json.loads((folder / "results.json").read_text())
        assert found["model"] == f"linear head ({probe})"


@pytest.mark.parametrize(("target", "kind"), [("cover", "multilabel"), ("moisture", "scalar")])
def test_the_command_refuses_it_for_others(target, kind, refused):
    scenes = ["--data=SyntheticScenes", "--data.samples=60", "--data.size=32"]
    line = refused(*scenes, f"--target={target}", "--probe=logistic")
    assert f"logistic is not for {target!r}; a {kind} takes ridge" in line
