"""Whole comparisons: what they leave, what they do again, and what an interruption changes."""

import csv
import json
import os
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from make_folder import make_folder
from safetensors.torch import load_file

from decur.cli import main
from decur.compare.cells import run_cell
from decur.pretrain import Pretrainer

TINY = {
    "data": {
        "class_path": "decur.data.SyntheticScenes",
        "init_args": {"samples": 48, "size": 16, "modalities": ["optical", "sar"]},
    },
    "pretrain": {
        "base": "demo",
        "loader": {"batch_size": 16, "workers": 0},
        "projector.width": 32,
        "views.size": 16,
        "monitor.every_epochs": 0,
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    },
    "transfer": {"bootstrap": 0, "loader.workers": 0, "device": "cpu"},
    "methods": {
        "zeta": {"pretrain": None},
        "DeCUR": {},
        "broken": {"pretrain": {"loader.batch_size": 4096}},
    },
    "tasks": {"cover": {"transfer": {"target": "cover"}, "published": ["table1-multimodal"]}},
    "backbones": ["test_resnet"],
    "label_fractions": [0.5, 1.0],
    "seeds": [0, 1],
}
WELL = {"methods": {"zeta": {"pretrain": None}, "DeCUR": {}}}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Pictures of 16 px are done sooner by one thread; and results are the same to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def _labels():
    """The labels of the cells that have been run in this process."""
    labels = []

    def run(cell):
        labels.append(cell.label)
        return run_cell(cell)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decur.compare.execute.run_cell", run)
        yield labels


@pytest.fixture
def ran(_labels):
    """Labels of the cells that this test has run."""
    _labels.clear()
    return _labels


def compare(folder: Path, *arguments: str, **changes) -> Path:
    """Run `decur compare` on the tiny comparison but for some changes, in this process.

    The killed comparison below and the tests of execution run jobs in processes of their own.
    """
    file = folder.with_suffix(".yaml")
    values = {**TINY, "cluster": {"name": "debug"}, **changes}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    main(["compare", f"--config={file}", f"--run={folder}", *arguments])
    return folder


@pytest.fixture(scope="module")
def whole(_labels, tmp_path_factory):
    """A comparison in which one method fails; to look at."""
    folder = tmp_path_factory.mktemp("compare") / "whole"
    with pytest.raises(SystemExit) as stopped:
        compare(folder)
    assert stopped.value.code == 1
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """The comparison, moved elsewhere; to go on with."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def score(folder: Path, metric: str = "mAP_micro") -> float:
    return json.loads((folder / "results.json").read_text())["metrics"][metric]["value"]


def state(*folders: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, and how long it is."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}


# -- what it leaves --------------------------------------------------------------------------------


def test_a_cell_is_what_its_command_gives_by_hand(whole, tmp_path):
    trained = one(whole, "pretrain/decur-test-resnet-seed0-*")
    main(["pretrain", f"--config={trained / 'config.yaml'}", f"--run={tmp_path / 'trained'}"])
    for name in ("optical", "sar"):
        ours, theirs = (
            load_file(folder / "encoders" / f"{name}.safetensors")
            for folder in (trained, tmp_path / "trained")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for pattern, encoders in (
        ("transfer/cover-decur-test-resnet-50pc-seed0-*", [f"--encoders={tmp_path / 'trained'}"]),
        ("transfer/cover-zeta-test-resnet-100pc-seed1-*", []),
    ):
        cell, hand = one(whole, pattern), tmp_path / pattern[9:13]
        main(
            ["transfer", f"--config={cell / 'config.yaml'}", f"--run={hand}"]
            + [f"--cache={hand}", *encoders]
        )
        a, b = (json.loads((folder / "results.json").read_text()) for folder in (cell, hand))
        assert not b["seconds"]["cached"]  # the comparison's vectors were out of reach
        for key in ("metrics", "by_class", "train", "test", "label_fraction", "seed"):
            assert a[key] == b[key]
        for name in ("train_ids.txt", "model.safetensors"):
            assert (cell / name).read_bytes() == (hand / name).read_bytes()


def test_tables_hold_the_scores_of_the_cells(whole):
    table = read(whole / "tables.csv")
    assert [(row["method"], row["label_fraction"]) for row in table] == [
        (method, share) for method in ("zeta", "DeCUR", "broken") for share in ("0.5", "1.0")
    ]
    for row in table[:4]:
        share, name = round(100 * float(row["label_fraction"])), row["method"].lower()
        scores = [
            score(one(whole, f"transfer/cover-{name}-test-resnet-{share}pc-seed{seed}-*"))
            for seed in (0, 1)
        ]
        assert float(row["mean"]) == pytest.approx(statistics.mean(scores), abs=1e-6)
        assert float(row["std"]) == pytest.approx(statistics.stdev(scores), abs=1e-6)
        assert (row["seeds"], row["metric"], row["failed"]) == ("2", "mAP_micro", "")
    for row in read(whole / "cells.csv"):
        assert float(row["mAP_micro"]) == pytest.approx(
            score(whole / "transfer" / row["folder"]), abs=1e-6
        )
    assert len(read(whole / "cells.csv")) == 8


def test_a_method_that_fails_is_named_with_its_reason_and_stops_no_other(whole):
    lines = (whole / "tables.md").read_text().splitlines()
    assert "| method | 50 % | 100 % |" in lines
    assert "| broken | failed | failed |" in lines
    (note,) = [line for line in lines if line.startswith("- failed:")]
    assert note.startswith("- failed: broken, cover, seed 0, 1: its pretraining failed: ")
    assert "loader.batch_size" in note
    for row in read(whole / "tables.csv")[4:]:
        assert (row["mean"], row["seeds"], row["best"]) == ("nan", "0", "False")
        assert "loader.batch_size" in row["failed"]


def test_printed_scores_stand_below_where_they_were_measured_alike(whole):
    lines = (whole / "tables.md").read_text().splitlines()
    # Table 1 of the paper, multimodal: 100 % of the labels, frozen; there is no 50 %
    assert "| DeCUR (ours), ResNet-50, published | – | 86.2 |" in lines
    assert "| CLIP, ResNet-50, published | – | 82.8 |" in lines
    assert not any("Supervised" in line for line in lines)  # encoders are frozen here
    assert (
        r"DeCUR (ours), ResNet-50, published & -- & 86.2 \\" in (whole / "tables.tex").read_text()
    )


def test_the_page_holds_the_table_and_its_picture(whole):
    page = (whole / "report.html").read_text()
    row = next(r for r in read(whole / "tables.csv") if r["method"] == "DeCUR")
    assert f"{100 * float(row['mean']):.1f} ± {100 * float(row['std']):.1f}" in page
    assert "Failed: broken, cover" in page and "data:image/png" in page
    assert (whole / "figures" / "compare.png").stat().st_size > 1000
    kept = yaml.safe_load((whole / "config.yaml").read_text())
    assert list(kept["methods"]) == ["zeta", "DeCUR", "broken"]


# -- what it does again ----------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_though_it_was_moved(copied, ran):
    before = state(copied / "pretrain", copied / "transfer", copied / "cache")
    tables = read(copied / "tables.csv")
    compare(copied, **WELL)  # exit code 0: what fails is left out
    assert ran == []
    assert state(copied / "pretrain", copied / "transfer", copied / "cache") == before
    assert read(copied / "tables.csv") == tables[:4]


def test_differences_from_a_method_stand_below_each_table(copied, ran, drawing):
    compare(copied, "--against=zeta", **WELL)
    assert ran == []
    rows = {(r["method"], r["label_fraction"], r["seed"]): r for r in read(copied / "cells.csv")}
    above = []
    for share in ("0.5", "1.0"):
        one, other = (
            [float(rows[name, share, seed]["mAP_micro"]) for seed in "01"]
            for name in ("DeCUR", "zeta")
        )
        gains = [100 * (a - b) for a, b in zip(one, other, strict=True)]
        above.append(f"{statistics.mean(gains):+z.1f} ± {statistics.stdev(gains):.1f}")
    text = (copied / "tables.md").read_text()
    (line,) = text[text.index("### cover, against zeta") :].splitlines()[4:5]
    assert line.replace("*", "") == f"| DeCUR | {' | '.join(above)} |"
    page = (copied / "report.html").read_text()
    assert "mAP_micro in points above zeta" in page
    assert page.count("data:image/png") == 1  # of the scores


def test_what_failed_is_tried_again(copied, ran, capsys):
    before = (copied / "tables.md").read_text()
    with pytest.raises(SystemExit) as stopped:
        compare(copied)
    assert stopped.value.code == 1
    assert ran == [f"pretraining, broken, test_resnet, seed {seed}" for seed in (0, 1)]
    assert (copied / "tables.md").read_text() == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 6 cells failed, as ") and "tables.md" in error


def test_a_seed_or_a_share_more_runs_what_is_new(copied, ran):
    zeta = {"methods": {"zeta": {"pretrain": None}}}
    before = state(copied / "transfer")
    compare(copied, **zeta, label_fractions=[0.5], seeds=[0, 1, 2])
    compare(copied, **zeta, label_fractions=[0.25, 0.5, 1.0], seeds=[1])
    assert ran == [f"cover, zeta, test_resnet, {what}" for what in ("50 %, seed 2", "25 %, seed 1")]
    assert before.items() <= state(copied / "transfer").items()


def test_files_and_labels_that_have_changed_since_cells_were_done_are_told(tmp_path, caplog):
    ids = [str(number) for number in range(20)]
    root = make_folder(tmp_path / "pairs", {"a": ids, "b": ids})
    rows = [f"{id_},{'xy'[number % 2]}" for number, id_ in enumerate(ids)]
    labels = root / "labels.csv"
    labels.write_text("\n".join(["id,kind", *rows]))
    own = {"data": {"root": str(root)}, "tasks": {"kind": {"transfer": {"target": "kind"}}}}
    own["methods"] = {"zeta": {"pretrain": None}}
    folder = compare(tmp_path / "run", **own, seeds=[0])
    labels.write_text("\n".join(["id,kind", *reversed(rows)]))
    compare(folder, **own, seeds=[0, 1])
    assert "have changed" not in caplog.text  # the same labels in another order
    noted = (folder / "data.json").read_text()
    labels.write_text("\n".join(["id,kind", *rows[1:], "0,y"]))
    compare(folder, **own, seeds=[0, 2])
    labels.write_text("\n".join(["id,kind", *rows]))
    os.utime(root / "a" / "3.png", ns=(0, 0))
    compare(folder, **own, seeds=[0, 3])
    told = [record.getMessage() for record in caplog.records if "have changed" in record.message]
    assert len(told) == 2  # as long as cells are done that have seen others
    assert all("the data (20 samples" in text and "another --run" in text for text in told)
    assert (folder / "data.json").read_text() == noted


def test_only_some_cells_and_what_they_need(tmp_path, ran):
    folder = compare(tmp_path / "some", "--only=DeCUR, test_resnet, 50 %, seed 1", **WELL)
    assert ran == [
        "pretraining, DeCUR, test_resnet, seed 1",
        "cover, DeCUR, test_resnet, 50 %, seed 1",
    ]
    rows = (folder / "tables.md").read_text().splitlines()
    assert "| zeta | … | … |" in rows
    assert any(row.startswith("| DeCUR | ") and "(1 of 2) | … |" in row for row in rows)


def test_a_dry_run_says_what_is_done(whole, ran, capsys):
    before = state(whole)
    compare(whole, "--dry_run=true", **WELL)
    assert ran == [] and state(whole) == before
    capsys.readouterr()
    compare(whole, "--dry_run=true")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "cells     16: 10 done, 6 to do"
    assert "done  cover, DeCUR, test_resnet, 50 %, seed 1" in lines
    assert "      pretraining, broken, test_resnet, seed 0" in lines
    assert state(whole) == before


def test_another_run_is_not_written_over(whole, capsys):
    trained = one(whole, "pretrain/decur-test-resnet-seed0-*")
    before = state(trained)
    with pytest.raises(SystemExit) as stopped:
        compare(trained)
    assert stopped.value.code == 2
    assert "holds a pretraining run; choose another folder" in capsys.readouterr().err
    assert state(trained) == before


# -- interruptions ---------------------------------------------------------------------------------


def steps(folder: Path) -> int:
    """Of the newest checkpoint of a comparison's pretraining."""
    found = folder.glob("pretrain/*/checkpoints/step-*.ckpt")
    return max((int(path.stem.split("-")[1]) for path in found), default=0)


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def group_is_gone(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return True
    return False


def test_told_to_stop_it_ends_as_the_uninterrupted_one(whole, tmp_path, ran, monkeypatch):
    changes = {**WELL, "label_fractions": [1.0], "seeds": [0]}
    trained, real = [], Pretrainer.training_step

    def step(self, batch, batch_idx):
        trained.append(self.global_step)
        if trained == [0, 1]:  # of three steps
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(Pretrainer, "training_step", step)
    with pytest.raises(SystemExit) as stopped:
        compare(tmp_path / "broken", **changes)
    folder = tmp_path / "broken"
    assert stopped.value.code == 128 + signal.SIGTERM and steps(folder) == 2
    assert "| DeCUR | … |" in (folder / "tables.md").read_text()  # what there is, is shown
    done = [row["method"] for row in read(folder / "cells.csv")]
    assert done == ["zeta"]

    ran.clear()
    compare(folder, **changes)
    assert ran == [
        "pretraining, DeCUR, test_resnet, seed 0",
        "cover, DeCUR, test_resnet, 100 %, seed 0",
    ]
    assert trained == [0, 1, 2] and not (folder / "jobs").exists()
    rows = [{row["folder"]: row for row in read(path / "cells.csv")} for path in (folder, whole)]
    assert len(rows[0]) == 2
    for name, row in rows[0].items():
        del row["seconds"], rows[1][name]["seconds"]
        assert row == rows[1][name]


@pytest.mark.slow
def test_killed_and_told_to_stop_it_ends_as_the_uninterrupted_one(
    tmp_path, ran, apart, monkeypatch, capsys
):
    trainer = {"max_epochs": 6, "accelerator": "cpu"}  # of three steps, each saved
    changes = {
        **WELL,
        "pretrain": {**TINY["pretrain"], "trainer": trainer, "checkpoint.every_minutes": 0},
        **{"label_fractions": [1.0], "seeds": [0]},
    }
    uninterrupted = compare(tmp_path / "uninterrupted", **changes)
    changes |= {"cluster": {"name": "local"}, "devices": ["cpu"]}
    folder = tmp_path / "broken"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    compare(folder, "--dry_run=true", **changes)  # for the file
    command = ["compare", f"--config={folder.with_suffix('.yaml')}", f"--run={folder}"]
    process = apart(main, command).process
    assert wait_until(lambda: steps(folder) >= 2 or not process.is_alive(), 120)
    assert process.is_alive()
    process.kill()
    process.join()
    assert wait_until(lambda: group_is_gone(process.pid), 60)  # no worker stays behind

    reached = steps(folder)

    def stop() -> None:
        if wait_until(lambda: steps(folder) > reached, 60):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # were it late, it would end the tests
    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        with pytest.raises(SystemExit) as stopped:
            compare(folder, **changes)
        stopper.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # given back
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert reached < steps(folder) < 18
    assert "| DeCUR | … |" in (folder / "tables.md").read_text()  # what there is, is shown
    log = one(folder, "pretrain/*/log.txt").read_text()
    assert log.count("resuming") == 1 and "Traceback" not in log
    capsys.readouterr()

    compare(folder, **changes)
    assert one(folder, "pretrain/*/log.txt").read_text().count("resuming") == 2
    assert not (folder / "jobs").exists()
    assert read(folder / "tables.csv") == read(uninterrupted / "tables.csv")
    rows = [read(path / "cells.csv") for path in (folder, uninterrupted)]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1] and len(rows[0]) == 2
