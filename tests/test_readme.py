"""The README's Python runs as written."""

import re
import warnings
from pathlib import Path

import pytest

from decur.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_readmes_python_runs(code, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    names = {}
    with warnings.catch_warnings(record=True) as warned:
        exec(code, names)
    assert [str(warning.message) for warning in warned] == []
    assert "Tip" not in caplog.text
    assert names["features"].shape == (1, 512) and len(names["maps"]) >= 4


def test_the_readmes_comparison_can_be_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```yaml\n(# mine.yaml.*?)```", README, re.S)
    Path("mine.yaml").write_text(code)
    main(["compare", "--config", "mine.yaml", "--dry_run", "true"])
    # 3 seeds: 10 pretraining runs (one method needs two), 10 methods x 5 columns and 2 fine-tuned,
    # each with two shares of the labels
    assert f"{3 * (10 + 2 * (10 * 5 + 2))} to do" in capsys.readouterr().out


def test_the_readmes_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).is_file(), target
