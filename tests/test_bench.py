"""`decur bench data` names every step, and a packed data set's bytes besides."""

import pytest

from decur.bench import bench_data
from decur.cli import main
from decur.data import PackedPairs, SyntheticScenes
from decur.data.packing import pack
from decur.errors import ConfigError
from decur.pretrain.settings import LoaderSettings, ViewSettings

FAST = {"loader": LoaderSettings(4, 0), "views": ViewSettings(16), "seconds": 0.01}


def test_steps_and_their_units(tmp_path):
    pytest.importorskip("litdata")
    data = SyntheticScenes(samples=8, size=32)
    steps = list(bench_data(data, **FAST))
    names = [found.step for found in steps]
    assert names == ["read and decode", "collate", "views", "loader, 0 workers", "whole pipeline"]
    size = sum(x.nbytes for x in data[0]["images"].values()) / 1e6
    for found in steps:
        assert found.pairs > 0 and found.megabytes == pytest.approx(found.pairs * size)
    pack(data, tmp_path / "packed")
    assert next(s.step for s in bench_data(PackedPairs(tmp_path / "packed"), **FAST)) == "read"


def test_the_command(capsys):
    scenes = ["--data", "SyntheticScenes", "--data.samples", "8", "--data.size", "32"]
    main(["bench", "data", *scenes, "--loader.batch_size", "4", "--loader.workers", "0"]
         + ["--views.size", "16", "--seconds", "0.01", "--device", "cpu"])  # fmt: skip
    out = capsys.readouterr().out
    assert "pairs/s" in out and "whole pipeline" in out
    for wrong, line in (
        (["bench"], "there is `decur bench data`"),
        (["bench", "data", *scenes, "--device", "abacus"], "device"),
        (["bench", "data", *scenes], "loader.batch_size"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2 and line in capsys.readouterr().err


def test_too_few_samples_for_a_batch():
    with pytest.raises(ConfigError, match="batch_size"):
        next(bench_data(SyntheticScenes(samples=2, size=32), LoaderSettings(4, 0)))
