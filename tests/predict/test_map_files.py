"""The files of a map: one command writes them at a time, and what is read with it is of it."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from make_raster import write_placed
from predict_rasters import noise

from decur.data import LoaderSettings
from decur.data.map_rasters import read_raster_header
from decur.errors import ConfigError
from decur.locks import holding
from decur.predict import predict
from decur.predict.map_files import MapFiles, join_parts, remove_stale, tell_replaced
from decur.predict.raster_files import MapLayout, tag_of_virtual, write_virtual

QUICK = {"loader": LoaderSettings(batch_size=8, workers=0), "window": 128, "overlap": 0.0}


class Said:
    """A console that keeps what is printed."""

    def __init__(self):
        self.lines = []

    def print(self, line, **_):
        self.lines.append(line)


def write_map(path, tag, rows=4, top=0):
    pixels = np.zeros((rows, 8), np.uint8)
    write_placed(path, pixels, north=5e6 - 10 * top)
    with rasterio.open(path, "r+") as file:
        file.update_tags(DECUR_MAP=tag)
    return path


def layout(tag):
    return MapLayout("uint8", 255, ("class",), tags={"DECUR_MAP": tag})


def test_two_commands_do_not_write_one_map(make_model, scene, tmp_path):
    out = tmp_path / "map.tif"
    code = (
        "import sys; from pathlib import Path; from decur.locks import holding\n"
        "with holding(Path(sys.argv[1]), '--out'): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, f"{out}.unfinished"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"--out .*process {other.pid} on .*writing there"):
            predict(make_model(), scene, out=str(out), **QUICK)
    finally:
        other.communicate("\n", timeout=60)
    assert not out.exists()


def test_the_next_owner_of_unfinished_work_keeps_its_files(
    make_model, scene, tmp_path, monkeypatch
):
    work = tmp_path / "map.tif.unfinished"

    class Held:
        """Another command has begun when the first gives the folder back."""

        def __init__(self, folder, key):
            self.held = holding(folder, key)

        def __enter__(self):
            return self.held.__enter__()

        def __exit__(self, *error):
            self.held.__exit__(*error)
            work.mkdir(exist_ok=True)
            (work / "map-000000.tif").write_bytes(b"of the next")

    monkeypatch.setattr("decur.predict.scene.holding", Held)
    predict(make_model(), scene, out=str(tmp_path / "map.tif"), **QUICK)
    assert [file.name for file in work.iterdir()] == ["map-000000.tif"]


def test_probabilities_and_overviews_of_an_earlier_map_go(make_model, scene, tmp_path, capsys):
    out = tmp_path / "map.tif"
    predict(make_model(), scene, out=str(out), probabilities=True, **QUICK)
    (tmp_path / "map.tif.ovr").write_bytes(b"made by gdaladdo -ro")
    write_placed(tmp_path / "own-probabilities.tif", noise(1, 4, 4))
    capsys.readouterr()
    found = predict(make_model(), scene[:1], out=str(out), **QUICK)
    assert found.probabilities is None
    assert "deleting  map-probabilities.tif, map.tif.ovr, of an earlier" in capsys.readouterr().out
    left = {path.name for path in tmp_path.iterdir() if path.is_file()} - {"map.png"}
    assert left == {"map.tif", "map.tif.aux.xml", "own-probabilities.tif"}
    remove_stale(MapFiles(tmp_path / "own.tif"), "tag", Said())
    assert (tmp_path / "own-probabilities.tif").exists()


def test_what_stays_of_another_map_is_told(tmp_path):
    for name in ("map.tif", "map-1of2.tif", "map-2of2.tif"):
        write_map(tmp_path / name, "old")
    write_map(tmp_path / "map-1of3.tif", "new")
    write_virtual(
        tmp_path / "map.vrt", read_raster_header(tmp_path / "map.tif").grid, layout("old"), []
    )
    for part, held in (("1of4", False), ("2of4", True), ("2of3", False)):
        work = tmp_path / f"map-{part}.tif.unfinished"
        work.mkdir()
        if held:
            (work / ".lock").touch()
    undone = ", map-1of4.tif.unfinished"
    for files, others in (
        (
            MapFiles(tmp_path / "map.tif"),
            f"map.vrt, map-1of2.tif, map-2of2.tif{undone}, map-2of3.tif.unfinished",
        ),
        (
            MapFiles(tmp_path / "map.tif", (1, 3)),
            f"map.tif, map-1of2.tif, map-2of2.tif{undone}",
        ),
    ):
        said = Said()
        tell_replaced(files, "new", said)
        assert f": {others} stay, of another map" in said.lines[-1]
    said = Said()
    tell_replaced(MapFiles(tmp_path / "map.tif"), "old", said)
    assert len(said.lines) == 1 and ": map-1of3.tif, map-1of4" in said.lines[0]


def test_a_part_that_ends_meanwhile_keeps_what_joins_it(tmp_path):
    files = [MapFiles(tmp_path / "map.tif", (which, 2)) for which in (1, 2)]
    write_map(files[0].made, "new")
    write_virtual(files[0].joined[0], read_raster_header(files[0].made).grid, layout("old"), [])
    remove_stale(files[0], "new", Said())  # of an earlier map
    assert not files[0].joined[0].exists()
    assert join_parts(files[0], "new", layout("new"), None) is None
    write_map(files[1].made, "new", top=4)
    assert join_parts(files[1], "new", layout("new"), None) == tmp_path / "map.vrt"
    remove_stale(files[0], "new", Said())
    join_parts(files[0], "new", layout("new"), None)
    assert tag_of_virtual(tmp_path / "map.vrt") == "new"
    with rasterio.open(tmp_path / "map.vrt") as joined:
        assert joined.shape == (8, 8)
