"""What CONTRIBUTING says can be added is added by one file outside the package, and used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from decur import build_encoder, load_encoder
from decur.data import DATASETS
from decur.errors import ConfigError, DataError

HERE = Path(__file__).parent
TINY = [
    *("--projector.width=8", "--projector.layers=1", "--views.size=8", "--loader.batch_size=8"),
    *("--loader.workers=0", "--trainer.max_epochs=1", "--monitor.samples=16"),
]
COMMANDS = """
import json, sys
from decur import build_encoder
from decur.cli import main
print(*(build_encoder(*words, attention="gate").dim for words in json.loads(sys.argv[2])))
for words in json.loads(sys.argv[1]):
    main(words)
"""


@pytest.fixture
def python(tmp_path):
    """Run Python in a process of its own, where `own_modules` can be imported."""

    def run(code: str, *words: str, own: str = "own_modules") -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "DECUR_IMPORT": own}
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def test_one_of_each_from_a_file_outside_the_package(python, tmp_path):
    data = ["--data=Waves", "--loader.workers=0"]
    done = python(
        COMMANDS,
        json.dumps(
            [
                ["pretrain", "--run=run", *data, "--objective=Distance", *TINY]
                + ["--objective.weight=2", "--encoder.name=blocks", "--encoder.options.width=6"],
                ["explain", "--run=run", "--only=norms", "--options.norms.scale=3"],
                ["transfer", "--encoders=run", "--run=scores", *data, "--target=waves"]
                + ["--freeze=true", "--folds=2", "--bootstrap=10"],
            ]
        ),
        json.dumps([["resnet18", 1]]),
    )
    assert done.stdout.startswith("512\n")  # attention
    assert "Distance" in done.stdout and "blocks" in done.stdout  # method and encoder
    assert "the norm is 3" in (tmp_path / "run" / "report.html").read_text()  # analysis
    assert "R2" in done.stdout  # kind of label


def test_what_is_named_in_full_needs_no_registration(python, tmp_path):
    words = ["pretrain", "--run=run", "--data=own_modules.Waves", *TINY]
    words += ["--objective=own_modules.Distance", "--encoder.name=own_modules:blocks_of_six"]
    python(COMMANDS, json.dumps([words]), "[]", own="")
    file = tmp_path / "run" / "encoders" / "left.safetensors"
    code = "import sys; from decur import load_encoder as l; print(l(sys.argv[1]).dim)"
    assert python(code, str(file)).stdout == "6\n"
    with pytest.raises(DataError, match="DECUR_IMPORT=own_modules"):  # a file imports nothing
        load_encoder(file)
    assert "own_modules" not in sys.modules


def test_elsewhere_it_is_not_known():
    assert "Waves" not in DATASETS.names()
    with pytest.raises(ConfigError, match="no encoder 'blocks'"):
        build_encoder("blocks", 1)
