"""`decur bench data` names every step, and the bytes of files and packed samples besides."""

import numpy as np
import pytest
from PIL import Image

from decur.bench import bench_data
from decur.cli import main
from decur.data import LoaderSettings, PackedPairs, PairedFolder, SyntheticScenes
from decur.data.packed import pack
from decur.errors import BadSampleError, ConfigError
from decur.pretrain.settings import ViewSettings

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
        assert found.row.time.low <= found.row.time.median <= found.row.time.high
        assert 0 < found.row.floor <= found.row.time.median
    pack(data, tmp_path / "packed")
    assert next(s.step for s in bench_data(PackedPairs(tmp_path / "packed"), **FAST)) == "read"


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
    steps = {found.step: found for found in bench_data(data, **FAST)}
    assert list(steps)[:3] == ["read", "decode", "read and decode"]
    both = 1 / steps["read"].pairs + 1 / steps["decode"].pairs
    assert both == pytest.approx(1 / steps["read and decode"].pairs, rel=0.01) or (
        steps["read"].pairs < steps["read and decode"].pairs
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
        next(bench_data(SyntheticScenes(samples=2, size=32), LoaderSettings(4, 0)))
