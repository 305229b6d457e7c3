"""`decur bench data` names every step; views and losses are measured alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from decur.bench.data import bench_data, bench_loss, bench_views
from decur.cli import main
from decur.data import LoaderSettings, PackedPairs, PairedFolder, SyntheticScenes
from decur.data.packed import pack
from decur.errors import BadSampleError, ConfigError
from decur.objectives import CLIP, DeCUR
from decur.pretrain.settings import ViewSettings

CPU = torch.device("cpu")
FAST = {"loader": LoaderSettings(4, 0), "views": ViewSettings(16), "device": CPU, "seconds": 0.01}


def test_steps_and_their_units(tmp_path):
    pytest.importorskip("litdata")
    data = SyntheticScenes(samples=8, size=32)
    steps = list(bench_data(data, **FAST))
    names = [found.name for found in steps]
    assert names == ["read and decode", "collate", "views", "loader, 0 workers", "whole pipeline"]
    size = sum(x.nbytes for x in data[0]["images"].values()) / 1e6
    for found in steps:
        assert found.pairs_per_second > 0
        assert found.about["megabytes"] == pytest.approx(found.pairs_per_second * size)
        assert found.quartiles[0] <= found.seconds <= found.quartiles[1]
    pack(data, tmp_path / "packed")
    assert next(s.name for s in bench_data(PackedPairs(tmp_path / "packed"), **FAST)) == "read"


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
    rates = {found.name: found.pairs_per_second for found in bench_data(data, **FAST)}
    assert list(rates)[:3] == ["read", "decode", "read and decode"]
    both = 1 / rates["read"] + 1 / rates["decode"]
    assert both == pytest.approx(1 / rates["read and decode"], rel=0.01) or (
        rates["read"] < rates["read and decode"]
    )
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(BadSampleError, match=r"0\.png"):
        data.read_bytes(0)


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
        next(bench_data(SyntheticScenes(samples=2, size=32), **FAST))


@pytest.mark.parametrize(("kind", "views"), [(DeCUR, 2), (CLIP, 1)])
def test_the_loss_is_measured_at_each_width(kind, views):
    objectives = [kind(dim=16), kind(dim=32)]
    rows = list(bench_loss(objectives, ["a", "b"], 8, CPU, 1e15, 0.01))
    assert [row.about["dim"] for row in rows] == [16, 32]
    assert rows[0].about["growth"] == 1
    assert rows[1].about["growth"] == pytest.approx(rows[1].seconds / rows[0].seconds / 2)
    for row in rows:
        gradients = 2 * views * 8 * row.about["dim"] * 4
        assert row.about["views"] == views and row.operations > 0
        assert row.floor == row.operations / 1e15
        assert gradients <= row.memory < 40 * gradients + 50_000


def test_views_are_measured_by_sensor_and_together():
    data = SyntheticScenes(samples=4, size=32, modalities=["optical", "sar"])
    options = LoaderSettings(4, 0), ViewSettings(16), CPU, 0.01
    rows = list(bench_views(data, *options))
    assert [row.name for row in rows] == ["optical", "sar", "all sensors"]
    assert rows[2].memory >= 2 * 4 * (6 + 2) * 16 * 16 * 4 and rows[2].pairs == 4
    (alone,) = bench_views(SyntheticScenes(samples=4, size=32, modalities=["sar"]), *options)
    assert alone.name == "all sensors"
