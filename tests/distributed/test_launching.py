"""The scripts for many GPUs, and the table of what to expect of them."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from decur.pretrain.configuration import build_parser

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_scripts_are_shell_and_name_options_that_there_are(name):
    path = ROOT / "examples" / name
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    known = {action.dest for action in build_parser()._actions}
    used = set(re.findall(r"--((?:trainer|loader)\.\w+)", path.read_text()))
    assert used and used <= known


def test_the_table_of_scaling_is_what_its_script_prints(monkeypatch, capsys):
    script = ROOT / "benchmarks" / "scaling.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 9
    assert "\n".join(rows) in (ROOT / "docs" / "distributed.md").read_text()
