"""The README's commands on OMBRIA run as written, on a tiny clone."""

import json
import re
import shlex
from pathlib import Path

from make_ombria import make_ombria

from decur.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readmes_commands_on_a_clone_of_ombria(tmp_path, monkeypatch):
    (code,) = [c for c in re.findall(r"```bash\n(.*?)```", README, re.S) if "git clone" in c]
    clone, *commands = [shlex.split(line, comments=True) for line in _lines(code)]
    assert clone == ["git", "clone", "https://github.com/geodrak/OMBRIA"]
    monkeypatch.chdir(tmp_path)
    make_ombria(tmp_path / "OMBRIA", {"train": range(1, 7), "test": [7]}, {"ITALY": range(1, 4)})
    short = {
        "pretrain": ["--encoder.name=test_resnet", "--projector.width=16", "--views.size=24"]
        + ["--loader.batch_size=4", "--trainer.max_epochs=1", "--monitor.every_epochs=0"],
        "transfer": ["--fit.epochs=1", "--bootstrap=0", "--device=cpu"],
    }
    for program, command, *arguments in commands:
        assert program == "decur"
        main([command, *arguments, *short[command], "--loader.workers=0"])
    results = json.loads(Path("runs/ombria-flood/results.json").read_text())
    assert (results["target"], results["modalities"]) == ("flood", ["s1", "s2"])
    assert (results["train"], results["test"]) == (6, 3)  # pictures from after a flood
    assert results["encoders"] == ["runs/ombria"]


def _lines(code):
    return code.replace("\\\n", " ").strip().splitlines()
