"""Rasters that count longitudes to 360 or lie across 180 degrees are read where they lie."""

import numpy as np
import pytest
from make_raster import write_placed
from rasterio.warp import transform

from decur.data import PairedScenes
from decur.data.georeference import compare_places, read_place
from decur.data.grid import Grid
from decur.data.map_rasters import measured_cells, read_raster_header
from decur.data.window_reader import WindowReader
from decur.embed.geography import footprint
from decur.errors import DataError

STEP, SIZE = 0.001, 64  # degrees of a pixel, and pixels along a raster


def hill(longitude, latitude):
    """A number that only depends on the place, whatever turns its longitude is counted with."""
    return 500 + 400 * np.sin(np.radians(longitude) * 900) * np.cos(np.radians(latitude) * 700)


def in_degrees(path, west, north=10.0, size=SIZE):
    xs = west + STEP * (np.arange(size) + 0.5)
    ys = north - STEP * (np.arange(size) + 0.5)
    pixels = hill(*np.meshgrid(xs, ys)).astype(np.float32)
    return write_placed(path, pixels, west, north, STEP, crs="EPSG:4326")


def in_metres(path, west, crs, north=10.0, size=SIZE):
    (left,), (top,) = transform("OGC:CRS84", crs, [west], [north])
    xs, ys = np.meshgrid(100 * np.arange(size) + 50 + left, top - 100 * np.arange(size) - 50)
    lon, lat = transform(crs, "OGC:CRS84", xs.ravel(), ys.ravel())
    pixels = hill(np.array(lon), np.array(lat)).reshape(size, size).astype(np.float32)
    return write_placed(path, pixels, left, top, 100.0, crs=crs)


@pytest.mark.parametrize("west", [350.0, -10.0, 179.97, -180.03, 180.01])
def test_each_way_of_counting_reads_the_same_ground(tmp_path, west):
    zone = "EPSG:32629" if west in (350.0, -10.0) else "EPSG:32660"
    other = {350.0: -10.0, -10.0: 350.0, 179.97: -180.03, -180.03: 179.97, 180.01: -179.99}[west]
    files = [
        in_degrees(tmp_path / "own.tif", west),
        in_degrees(tmp_path / "turned.tif", other),
        in_degrees(tmp_path / "shifted.tif", other - 0.0095, 10.0105, 96),  # on other pixels
        in_metres(tmp_path / "metres.tif", west - 0.003, zone, 10.003, 100),
    ]
    own, *others = map(read_raster_header, files)
    for raster in others:
        for source, onto in ((raster, own), (own, raster)):
            grid = onto.grid
            found = WindowReader(grid, [source]).read(0, 0, grid.height, grid.width)[0].numpy()
            wanted = WindowReader(grid, [onto]).read(0, 0, grid.height, grid.width)[0].numpy()
            seen = np.isfinite(found)
            assert seen.all() or onto is not own
            assert np.abs(found - wanted)[seen].max() < 4  # of 800, by bilinear reading
            cells = measured_cells(source, grid)  # by their centres
            assert abs(int(cells.sum()) - int(seen.sum())) < 0.05 * cells.sum()


def test_scenes_pair_whichever_way_they_count(tmp_path):
    in_degrees(tmp_path / "s1" / "a.tif", 350.0)
    in_degrees(tmp_path / "s2" / "b.tif", -10.0)
    data = PairedScenes(tmp_path, window=32)
    assert len(data) == 4
    for sample in data:
        np.testing.assert_array_equal(sample["images"]["s1"], sample["images"]["s2"])


def test_tiles_on_both_sides_of_180_degrees_make_one_scene(tmp_path):
    in_degrees(tmp_path / "s1" / "west.tif", 180 - SIZE * STEP)
    in_degrees(tmp_path / "s1" / "east.tif", -180.0)
    in_degrees(tmp_path / "s2" / "one.tif", 180 - SIZE * STEP, size=2 * SIZE)
    data = PairedScenes(tmp_path, ["s2", "s1"], window=32, extent="union")
    assert {scene.grid.width for scene in data._scenes} == {2 * SIZE}
    assert len(data) == 16
    for sample in data:
        if "s1" in sample["images"]:
            np.testing.assert_allclose(sample["images"]["s1"], sample["images"]["s2"], atol=0.1)


@pytest.mark.parametrize("turned", [0.0, 360.0, -360.0])
def test_a_place_is_in_one_block_whichever_way_it_is_counted(tmp_path, turned):
    across = 180 - 48 * STEP  # some windows lie before 180 degrees, one on it, others behind it
    in_degrees(tmp_path / "s1" / "a.tif", across, size=4 * SIZE)
    in_degrees(tmp_path / "s1" / "b.tif", across + turned + 64 * STEP, size=5 * SIZE)
    in_degrees(tmp_path / "s1" / "c.tif", 12.0, size=4 * SIZE)  # far from there
    data = PairedScenes(tmp_path, window=16, block=2)
    blocks, whole = {}, {}
    for index, block in enumerate(data.groups):
        west, _, east, north = (round(edge / STEP) for edge in data.place(index).bounds)
        blocks.setdefault((west % 360_000, north), set()).add(block)
        if block != "between":
            whole.setdefault(block, []).append((west, east, north))
    assert all(len(names) == 1 for names in blocks.values())
    assert len(blocks) < len(data) and len(whole) > 40
    for one, of_one in whole.items():
        for other, of_other in whole.items():
            if one < other:
                for west, east, north in of_one:
                    for left, right, top in of_other:
                        turn = 360_000 * round((west - left) / 360_000)
                        beside = west <= right + turn and left + turn <= east
                        assert not (beside and abs(north - top) <= 16)


def test_windows_all_around_the_earth_do_not_touch_across_180_degrees(tmp_path):
    pixels = np.arange(60 * 360, dtype=np.float32).reshape(60, 360)
    write_placed(tmp_path / "s1" / "a.tif", pixels, -180.0, 30.0, 1.0, crs="EPSG:4326")
    data = PairedScenes(tmp_path, window=8, block=1)
    first, last = (
        {block for i, block in enumerate(data.groups) if edge(data.place(i).bounds)}
        for edge in (lambda b: b.west == -180, lambda b: b.east == 180)
    )
    assert first != {"between"} and last == {"between"}


def test_a_grid_lies_near_another_in_whole_turns():
    grid = Grid("EPSG:4326", -10.0, 5.0, (0.5, 0.5), 10, 10)
    there = Grid("EPSG:4326", 351.0, 5.0, (0.5, 0.5), 10, 10)
    assert grid.near(there).west == 350.0 and there.near(grid).west == -9.0
    assert grid.near(grid) is grid
    world = Grid("EPSG:4326", -180.0, 90.0, (1.0, 1.0), 180, 360)
    assert world.near(grid) is world
    assert there.usual_west == -9.0 and world.usual_west == -180.0


def test_a_plan_of_a_site_has_no_place_on_earth(tmp_path):
    plan = 'LOCAL_CS["site",UNIT["metre",1]]'
    write_placed(tmp_path / "s1" / "a.tif", np.ones((64, 64), np.uint8), 0, 640, crs=plan)
    with pytest.raises(DataError, match=r"a\.tif: .* give it the CRS of its place"):
        PairedScenes(tmp_path, window=32)
    place = read_place(tmp_path / "s1" / "a.tif")
    assert place is not None and footprint(place.grid) is None
    utm = read_place(write_placed(tmp_path / "b.tif", np.ones((64, 64), np.uint8)))
    assert not compare_places(utm, place).overlap
