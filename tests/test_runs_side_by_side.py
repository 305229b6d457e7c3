"""`decur runs`: what is on the page of runs, those of version 0.1 among them."""

import shutil
from pathlib import Path

import pytest

from decur.cli import main
from decur.pretrain.metrics import read_metrics, write_metrics
from decur.runs import RunFolder

OLD = Path(__file__).parent / "fixtures" / "v0.1"


def test_runs_stand_side_by_side(tmp_path, capsys, drawing):
    pytest.importorskip("matplotlib")
    other = shutil.copytree(OLD / "run", tmp_path / "other")
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("common: 0.5", "common: 0.25"))
    rows = read_metrics(RunFolder(other))
    rows[-1] |= {"probe/cover/rgb/linear": 0.75, "probe/cover/rgb/chance": 0.5}
    write_metrics(RunFolder(other), rows)
    page = tmp_path / "page.html"
    main(["runs", str(OLD / "run"), str(other), str(OLD / "transfer"), "--out", str(page)])
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if line.strip()]
    table = {cells[0]: cells[1:] for cells in lines}
    assert table["objective.common"] == ["0.5", "0.25", "–"] and f"look at     {page}" in said
    assert table["accuracy"] == ["–", "–", "0.75", "–"]  # version 0.1 measured no floor
    assert table["diagonal/common/dem-rgb"] == ["0.1584", "0.1584", "–", "0"]
    assert table["probe/cover/rgb/linear"] == ["–", "0.75", "–", "0.5"]
    assert "/chance" not in said
    assert table["rank/features/rgb"][-1] == "–"  # vectors that tell nothing may have any rank
    assert "objective.common" in page.read_text() and page.with_suffix(".png").is_file()


def test_a_mapping_that_one_run_has_is_told_of_all(tmp_path, capsys):
    other = shutil.copytree(OLD / "run", tmp_path / "other")
    kept = (other / "config.yaml").read_text()
    assert "augment: {}" in kept
    (other / "config.yaml").write_text(kept.replace("augment: {}", "augment: {rgb: {jitter_p: 0}}"))
    main(["runs", str(OLD / "run"), str(other), "--out", str(tmp_path / "page.html")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["views.augment.rgb.jitter_p", "{}", "0"] in lines


@pytest.mark.parametrize(
    ("folder", "says"),
    [("nowhere", "no such folder"), ("empty", "neither metrics.csv nor results.json")],
)
def test_what_is_no_run_is_refused_in_a_line(tmp_path, capsys, folder, says):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["runs", str(tmp_path / folder), "--out", str(tmp_path / "page.html")])
    told = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(told) == 1 and says in told[0]


@pytest.mark.parametrize(
    "results",
    ['{"metrics": {"accuracy": {"value": "high"}}}', "[" * 100_000, '{"metrics": 1, "metrics": 2}'],
)
def test_results_that_hold_no_numbers_are_refused_in_a_line(tmp_path, capsys, results):
    (tmp_path / "results.json").write_text(results)
    with pytest.raises(SystemExit) as stopped:
        main(["runs", str(tmp_path), "--out", str(tmp_path / "page.html")])
    told = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(told) == 1 and "cannot be read" in told[0]
