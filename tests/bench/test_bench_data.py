"""`decur bench data` names every step; views and losses are measured alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from decur.bench.commands import _CELLS
from decur.bench.data import bench_data, bench_loss, bench_views, loss_step
from decur.bench.measure import MOST_ROWS, Pretraining
from decur.cli import main
from decur.data import LoaderSettings, PackedPairs, PairedFolder, SyntheticScenes
from decur.data.packed import pack
from decur.errors import BadSampleError, ConfigError
from decur.objectives import CLIP, DeCUR
from decur.pretrain.settings import PretrainSettings, ViewSettings

CPU = torch.device("cpu")


def pretraining(data, objective=None, batch=4):
    settings = PretrainSettings(loader=LoaderSettings(batch, 0), views=ViewSettings(16))
    return Pretraining(data, objective or DeCUR(dim=16), settings, CPU)


def test_steps_and_their_units(tmp_path):
    pytest.importorskip("litdata")
    data = SyntheticScenes(samples=8, size=32)
    steps = list(bench_data(pretraining(data), 0.01))
    names = [found["name"] for found in steps]
    assert names == ["read and decode", "collate", "views", "loader, 0 workers", "whole pipeline"]
    for found in steps:
        assert found["pairs_per_second"] > 0
        assert found["quartiles"][0] <= found["seconds"] <= found["quartiles"][1]
    pack(data, tmp_path / "packed")
    packed = pretraining(PackedPairs(tmp_path / "packed"))
    assert next(bench_data(packed, 0.01))["name"] == "read"


def test_folders_are_read_and_decoded_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(SyntheticScenes, "files", lambda self, index: [tmp_path])  # as of Zarr
    rows = bench_data(pretraining(SyntheticScenes(samples=8, size=32)), 0.01)
    assert next(rows)["name"] == "read and decode"


def test_files_are_read_without_being_decoded(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            picture = np.full((8, 8, 3), i, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    (tmp_path / "b" / "5.png").unlink()
    data = PairedFolder(tmp_path)
    for index, names in ((0, ("a", "b")), (5, ("a",))):
        files = b"".join((tmp_path / name / f"{index}.png").read_bytes() for name in names)
        assert data.read_bytes(index).tobytes() == files
    assert SyntheticScenes(samples=2, size=32).read_bytes(0) is None
    found = bench_data(pretraining(data), 0.01)
    rates = {row["name"]: row["pairs_per_second"] for row in found}
    assert len(rates) <= MOST_ROWS - 1  # a GPU has one more: the transfer to it
    assert list(rates)[:3] == ["read", "decode (difference)", "read and decode"]
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(BadSampleError, match=r"0\.png"):
        data.read_bytes(0)


@pytest.mark.parametrize(("both", "rest"), [(0.5, "4"), (0.25, "–"), (0.125, "–")])
def test_decoding_is_told_where_reading_takes_less_than_both(both, rest, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "a" / f"{i}.png")
    took = iter([both, 0.25])  # seconds to read and decode, and to read
    monkeypatch.setattr("decur.bench.data.measure", lambda *_: [next(took)])
    rows = bench_data(pretraining(PairedFolder(tmp_path)), 0.01)
    assert next(rows)["name"] == "read"
    row = next(rows)
    assert row["name"] == "decode (difference)" and _CELLS["pairs/s"](row) == rest


def test_the_command(capsys):
    scenes = ["--data", "SyntheticScenes", "--data.samples", "8", "--data.size", "32"]
    main(["bench", "data", *scenes, "--loader.batch_size", "4", "--loader.workers", "0"]
         + ["--views.size", "16", "--seconds", "0.01", "--device", "cpu"])  # fmt: skip
    out = capsys.readouterr().out
    assert "pairs/s" in out and "whole pipeline" in out
    for wrong, line in (
        (["bench"], "there is `decur bench data`"),
        (["bench", "speed"], "no measurement 'speed'; there is `decur bench data`, `views`"),
        (["bench", "data", *scenes, "--device", "abacus"], "device"),
        (["bench", "data", *scenes], "loader.batch_size"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2 and line in capsys.readouterr().err


def test_too_few_samples_for_a_batch():
    with pytest.raises(ConfigError, match="batch_size"):
        next(bench_data(pretraining(SyntheticScenes(samples=2, size=32)), 0.01))


@pytest.mark.parametrize(("kind", "views"), [(DeCUR, 2), (CLIP, 1)])
def test_the_loss_is_measured_at_each_width(kind, views):
    data = SyntheticScenes(samples=8, size=32, modalities=["optical", "sar"])
    rows = list(bench_loss(pretraining(data, kind(dim=64), 8), [16, 32], 1e15, 0.01))
    assert [row["dim"] for row in rows] == [16, 32]
    assert rows[0]["growth"] == 1
    assert rows[1]["growth"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"] / 2)
    for row in rows:
        gradients = 2 * views * 8 * row["dim"] * 4
        assert row["operations"] > 0 and row["floor"] == row["operations"] / 1e15
        assert gradients <= row["memory"] < 40 * gradients + 50_000
    assert loss_step(kind(dim=16), ["a", "b", "c"], 8, CPU)() == views
    (own,) = bench_loss(pretraining(data, kind(dim=64), 8), [], 1e15, 0.01)
    assert own["dim"] == 64


def test_more_widths_than_a_table_has_rows_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "loss", "--dims", *map(str, range(8, 8 + MOST_ROWS + 1))])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "--dims: takes up to 10 widths, got 11" in error


def test_views_are_measured_by_sensor_and_together():
    data = SyntheticScenes(samples=4, size=32, modalities=["optical", "sar"])
    rows = bench_views(pretraining(data), 0.01)
    assert [row["name"] for row in rows] == ["optical", "sar", "all sensors"]
    assert rows[2]["memory"] >= 2 * 4 * (6 + 2) * 16 * 16 * 4
    assert rows[2]["pairs_per_second"] == pytest.approx(4 / rows[2]["seconds"])
    alone = SyntheticScenes(samples=4, size=32, modalities=["sar"])
    assert [row["name"] for row in bench_views(pretraining(alone), 0.01)] == ["all sensors"]


@pytest.mark.parametrize(("sensors", "others"), [(9, 0), (12, 4)])
def test_views_of_many_sensors_are_ten_rows(sensors, others, tmp_path, monkeypatch):
    for name in (f"s{i:02}" for i in range(sensors)):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture = np.zeros((8, 8, 3), np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    run, seconds = pretraining(PairedFolder(tmp_path), batch=2), iter(range(1, 99))
    monkeypatch.setattr("decur.bench.data.measure", lambda *_: [next(seconds)])  # the last: slowest
    rows = bench_views(run, 0.01)
    names = [row["name"] for row in rows]
    assert len(rows) == MOST_ROWS and names[-1] == "all sensors"
    if others:
        assert names[:2] == ["s11", "s10"] and names[-2] == "4 others"
        assert rows[-2]["memory"] > rows[0]["memory"]  # of all four at once
    else:
        assert names[:-1] == list(run.data.modalities)
