"""`decur runs`: what is on the page of runs, those of version 0.1 among them."""

import json
import re
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
    # version 0.1 measured no floor
    assert table["accuracy"] == ["transfer", "0.75", "0.3625", "to", "1", "–"]
    place = next(i for i, cells in enumerate(lines) if cells[0] == "diagonal/common/dem-rgb")
    assert lines[place][1:] == ["run", "0.1584", "–", "0"]
    assert lines[place + 1] == ["other", "0.1584", "–", "0"]
    assert table["probe/cover/rgb/linear"] == ["other", "0.75", "–", "0.5"]
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


def results(value, floor, *, target="cover", test=8, warnings=(), **more):
    metrics = {"accuracy": {"value": value, "floor": floor, **more}}
    return {"target": target, "test": test, "warnings": warnings, "metrics": metrics}


@pytest.mark.parametrize(
    ("second", "differ"),
    [
        (results(0.625, 0.625), None),
        (results(0.625, 0.375), "a constant guess has not the same accuracy in all of them"),
        (results(0.625, 0.625, test=9), "both cover, 8 test samples; four cover, 9 test samples"),
        (
            results(0.625, 0.625, target="soil"),
            "both cover, 8 test samples; four soil, 8 test samples",
        ),
    ],
)
def test_each_score_has_its_floor_and_its_warnings(second, differ, tmp_path, capsys):
    doubt, page = "the interval of accuracy holds <0.625>", tmp_path / "page.html"
    first = results(1.0, 0.625, interval=[0.5, 1.0], warnings=[doubt])
    for name, told in (("both", first), ("four", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(told))
    main(["runs", str(tmp_path / "both"), str(tmp_path / "four"), "--out", str(page)])
    said, html = capsys.readouterr().out, page.read_text()
    lines = [line.split() for line in said.splitlines()]
    assert ["accuracy", "both", "1", "0.5", "to", "1", "0.625"] in lines
    floor = f"{second['metrics']['accuracy']['floor']}"
    assert ["four", "0.625", "–", floor] in lines
    cells = ("both", "1", "0.5 to 1", "0.625")
    assert "</td><td>".join(cells) in re.sub(' class="[a-z]+"', "", html)
    assert f"WARNING     both: {doubt}\n" in said
    assert "Warning: both: the interval of accuracy holds &lt;0.625&gt;." in html
    warning = f"labels or test parts differ, so that scores do not compare: {differ}"
    assert differ is None or warning in said
    assert ("do not compare" in said) == ("do not compare" in html) == (differ is not None)


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
