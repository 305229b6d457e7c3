"""PairedScenes: windows of large rasters on one grid, against rasterio and hand-made rasters."""

import json
import pickle

import numpy as np
import pytest
import rasterio
import torch
from make_raster import NORTH, UTM, WEST, write_placed
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.rpc import RPC
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform, transform_bounds

from decur.data import PackedPairs, PairedScenes
from decur.data.grid import Grid
from decur.data.map_rasters import read_raster_header
from decur.data.packed import pack
from decur.data.scene_layout import date_of
from decur.data.selection import Regrouped
from decur.data.stats import compute_stats
from decur.data.window_reader import WindowReader
from decur.errors import BadSampleError, ConfigError, DataError

BANDS = {"scaling": "range", "value_range": [0, 1000]}


def write(path, pixels, *place, **options):
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    return write_placed(path, pixels, *place, **{**tiles, **options})


def smooth(height, width, bands=1, period=40.0):
    """Waves that resampling hardly changes, in [100, 900]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / period + b) * np.cos(y / period - b) for b in range(bands)]
    return (500 + 400 * np.array(waves)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Two sensors of one place: the second is coarser and begins elsewhere."""
    write(tmp_path / "s1" / "place.tif", smooth(192, 256, bands=2))
    write(tmp_path / "s2" / "other_name.tif", smooth(120, 120, bands=3), WEST - 100, NORTH + 60, 20)
    (tmp_path / "modalities.yaml").write_text(
        json.dumps(
            {
                "s1": {"bands": ["VV", "VH"], **BANDS},
                "s2": {"bands": ["a", "b", "c"], **BANDS},
            }
        )
    )
    return tmp_path


def test_windows_are_the_reference_as_it_is_and_the_other_warped_onto_it(folder):
    data = PairedScenes(folder, window=64)
    assert len(data) == 3 * 4
    index = data.ids.index("place_r64_c128")
    sample = data[index]
    with rasterio.open(folder / "s1" / "place.tif") as file:
        own = file.read(window=((64, 128), (128, 192)))
        target = {"dst_transform": file.transform, "dst_crs": file.crs}
    assert np.array_equal(sample["images"]["s1"], own)
    with rasterio.open(folder / "s2" / "other_name.tif") as file:
        whole = np.full((3, 192, 256), np.nan, np.float32)
        source = {"src_transform": file.transform, "src_crs": file.crs}
        reproject(file.read(), whole, **source, **target, resampling=Resampling.bilinear)
    np.testing.assert_allclose(sample["images"]["s2"], whole[:, 64:128, 128:192], rtol=0, atol=1e-2)
    place = sample["place"]
    assert place.crs == UTM
    assert place.transform == (10.0, 0.0, WEST + 1280, 0.0, -10.0, NORTH - 640)


def test_it_comes_through_a_worker_and_a_pack(folder, tmp_path):
    data = PairedScenes(folder, window=64)
    copied = pickle.loads(pickle.dumps(data))
    assert torch.equal(copied[1]["images"]["s2"], data[1]["images"]["s2"])
    pack(data, tmp_path / "packed")
    packed = PackedPairs(tmp_path / "packed")
    assert packed.ids == data.ids
    assert packed.place(5) == packed[5]["place"] == data.place(5)


def test_another_crs_is_read_where_it_lies(tmp_path):
    west, south, east, north = transform_bounds(
        UTM, "EPSG:4326", WEST, NORTH - 640, WEST + 640, NORTH
    )
    step = 2e-5
    columns, rows = int((east - west) / step) + 40, int((north - south) / step) + 40
    line = west - 20 * step + (np.arange(columns) + 0.5) * step
    longitudes = np.tile(line, (rows, 1))
    write(tmp_path / "a" / "1.tif", np.ones((64, 64), np.uint8))
    write(
        tmp_path / "b" / "1.tif", longitudes, west - 20 * step, north + 20 * step, step, "EPSG:4326"
    )
    data = PairedScenes(tmp_path, window=64)
    (sample,) = [data[i] for i in range(len(data))]
    centres = [WEST + 10 * (c + 0.5) for c in range(64)], [NORTH - 10 * (30 + 0.5)] * 64
    expected, _ = transform(UTM, "EPSG:4326", *centres)
    np.testing.assert_allclose(sample["images"]["b"][0, 30], expected, rtol=0, atol=step)


def test_union_keeps_windows_that_one_sensor_sees(folder):
    both = PairedScenes(folder, window=32)
    either = PairedScenes(folder, window=32, extent="union")
    assert both.present["s1"].all() and both.present["s2"].all()
    assert len(either) > len(both)
    assert (~either.present["s1"]).any()
    lone = int(np.flatnonzero(~either.present["s1"])[0])
    assert set(either[lone]["images"]) == {"s2"}


def test_windows_mostly_without_data_are_left_out(folder):
    pixels = smooth(192, 256, bands=2)
    pixels[:, :, :120] = -1
    write(folder / "s1" / "place.tif", pixels, nodata=-1)
    data = PairedScenes(folder, window=64)
    columns = {int(id_.split("_c")[1]) for id_ in data.ids}
    assert columns == {128, 192}  # the second column of windows is measured to an eighth
    some = PairedScenes(folder, window=64, min_valid=0.1)
    assert {int(id_.split("_c")[1]) for id_ in some.ids} == {64, 128, 192}
    image = some[some.ids.index("place_r0_c64")]["images"]["s1"]
    assert image.isnan().float().mean() == pytest.approx(56 / 64)


def test_dates_of_a_place_are_drawn_for_each_window(tmp_path):
    for day in (1, 2, 3):
        write(tmp_path / "s1" / f"x_2023010{day}.tif", np.full((128, 128), day, np.uint8))
        write(
            tmp_path / "s2" / f"y_2023010{day}T101010.tif", np.full((128, 128), 10 * day, np.uint8)
        )
    data = PairedScenes(tmp_path, window=64)
    assert len(data) == 4 * 3
    values = {
        id_: [int(data[i]["images"][n][0, 0, 0]) for n in ("s1", "s2")]
        for i, id_ in enumerate(data.ids)
    }
    first = [values[f"x_20230101_r0_c0_d{k}"] for k in range(3)]
    assert sorted(a for a, _ in first) == [1, 2, 3]
    assert sorted(b for _, b in first) == [10, 20, 30]
    assert any(10 * a != b for a, b in values.values())  # paired at random
    same = PairedScenes(tmp_path, window=64, dates="same")
    assert all(
        10 * same[i]["images"]["s1"][0, 0, 0] == same[i]["images"]["s2"][0, 0, 0]
        for i in range(len(same))
    )
    assert len(PairedScenes(tmp_path, window=64, dates="first")) == 4


def test_tiles_of_a_mosaic_are_read_across_their_border(tmp_path):
    whole = np.arange(128 * 128, dtype=np.float32).reshape(128, 128)
    write(tmp_path / "a" / "whole.tif", whole)
    write(tmp_path / "b" / "left.tif", whole[:, :50])
    write(tmp_path / "b" / "right.tif", whole[:, 50:], west=WEST + 500)
    data = PairedScenes(tmp_path, window=64)
    for index in range(len(data)):
        images = data[index]["images"]
        assert torch.equal(images["a"], images["b"])


def test_a_list_of_classes_means_the_same_as_in_a_folder_of_pairs(tmp_path):
    write(tmp_path / "a" / "a.tif", np.zeros((64, 64), np.uint8))
    values = np.repeat(np.array([7, 255, 0, 3], np.uint8), 1024).reshape(64, 64)
    write(tmp_path / "mask" / "a.tif", values)
    listed = tmp_path / "mask" / "classes.txt"
    listed.write_text("roof, 7\nwater, 255\nunknown, 0\nwood, 3\n")
    data = PairedScenes(tmp_path, window=64)
    assert data.targets["mask"].classes == ("roof", "water", "wood")
    expected = np.repeat([0, 1, 255, 2], 1024).reshape(64, 64)
    assert np.array_equal(data[0]["target"]["mask"].numpy(), expected)
    listed.write_text("roof, 7\nwater, 255\n")
    with pytest.raises(BadSampleError, match=r"has class 0, known are 7, 255; list all in classes"):
        PairedScenes(tmp_path, window=64)[0]
    listed.write_text("roof, 255, 0, 0\nwater, 0, 0, 255\n")
    with pytest.raises(DataError, match="gives colours"):
        PairedScenes(tmp_path, window=64)


def test_groups_are_blocks_that_do_not_touch(tmp_path):
    write(tmp_path / "s1" / "a.tif", np.zeros((320, 320), np.uint8))
    write(tmp_path / "s1" / "b.tif", np.zeros((320, 320), np.uint8), west=WEST + 2880)
    write(
        tmp_path / "mask" / "a.tif",
        np.random.default_rng(0).integers(0, 3, (320, 320)).astype("u1"),
    )
    data = PairedScenes(tmp_path, window=32, stride=16)
    assert len(data) == 2 * 19 * 19  # pretraining sees them all
    assert data.targets["mask"].classes == ("0", "1", "2")
    labelled = [i for i in range(len(data)) if "mask" in data[i]["target"]]
    assert len({data.groups[i] for i in labelled}) >= 10
    boxes = {i: data.place(i).bounds for i in labelled}
    for i, a in boxes.items():
        for j, b in boxes.items():
            touch = (
                a.west <= b.east and b.west <= a.east and a.south <= b.north and b.south <= a.north
            )
            assert not touch or data.groups[i] == data.groups[j]
    train = PairedScenes(tmp_path, window=32, stride=16, split="train")
    test = PairedScenes(tmp_path, window=32, stride=16, split="test")
    assert not set(train.groups) & set(test.groups)
    inside = [id_ for id_, group in zip(data.ids, data.groups, strict=True) if group != "between"]
    assert sorted([*train.ids, *test.ids]) == sorted(inside)


def test_what_two_zones_show_is_not_tested_and_trained_on(tmp_path):
    west, north = 730_000, 5_000_000
    (x,), (y,) = transform("EPSG:32632", "EPSG:32633", [west], [north])
    pixels = smooth(256, 256)
    write(tmp_path / "s1" / "a.tif", pixels, west, north, crs="EPSG:32632")
    write(tmp_path / "s1" / "b.tif", pixels, x + 1000, y, crs="EPSG:32633")
    ids = []
    for split in ("train", "test"):
        data = PairedScenes(tmp_path, window=16, split=split)
        ids += data.ids
        for row in (row for row, id_ in enumerate(data.ids) if id_.startswith("b")):
            box = data.place(row).bounds
            edges = transform_bounds("EPSG:32633", "EPSG:32632", *box)
            assert edges[0] > west + 2560 or edges[3] < north - 2560 or edges[1] > north
    assert {id_[0] for id_ in ids} == {"a", "b"}


def test_what_a_sensor_is_does_not_depend_on_the_windows(folder):
    (folder / "modalities.yaml").unlink()
    write(folder / "mask" / "a.tif", np.ones((192, 256), np.uint8))
    data = PairedScenes(folder, window=64)
    other = PairedScenes(folder, window=32, resolution=20, labels=None, block=1)
    for name in ("s1", "s2"):
        assert other.modalities[name].with_(size=(64, 64)) == data.modalities[name]
    with rasterio.open(folder / "s1" / "place.tif") as file:
        whole = file.read()  # smaller than a square
    assert data.modalities["s1"].mean == pytest.approx(whole.mean((1, 2)), rel=1e-5)


def test_the_order_of_names_says_whose_grid_it_is(folder, caplog):
    write(folder / "s2" / "other_name.tif", smooth(480, 480, bands=3), WEST - 100, NORTH + 60, 5)
    assert PairedScenes(folder, window=64).place(0).resolution == (10, 10)
    assert "s2 has pixels of 5 m and is read onto the grid of s1, with pixels of 10" in caplog.text
    data = PairedScenes(folder, ["s2", "s1"], window=64)
    assert data.place(0).resolution == (5, 5)
    assert data.modalities["s1"].bands == ("VV", "VH")  # as modalities.yaml says


def test_a_folder_that_looks_like_labels_is_no_sensor(folder, caplog):
    (folder / "modalities.yaml").unlink()
    classes = np.random.default_rng(0).integers(0, 3, (192, 256)).astype("u1")
    write(folder / "Labels" / "a.tif", classes)
    write(folder / "water" / "a.tif", classes)
    assert list(PairedScenes(folder, window=64).modalities) == ["s1", "s2"]
    assert "looks like labels by its name and is left out; --data.labels" in caplog.text
    assert "looks like labels by its 3 different values" in caplog.text
    assert "water" in PairedScenes(folder, ["s1", "water"], window=64).modalities


def test_dates_are_paired_anew_in_each_epoch(tmp_path):
    for day in (1, 2, 3):
        for name in ("s1", "s2"):
            write(tmp_path / name / f"x_2023010{day}.tif", np.full((128, 128), day, np.uint8))
    data = PairedScenes(tmp_path, window=64)
    anew = Regrouped(data)
    pairs = {
        tuple(int(x[0, 0, 0]) for x in anew[index, epoch]["images"].values())
        for epoch in range(20)
        for index, id_ in enumerate(data.ids)
        if id_.startswith("x_20230101_r0_c64")
    }
    assert len(pairs) == 9
    write(tmp_path / "mask" / "a.tif", np.random.default_rng(0).integers(0, 2, (128, 128), "u1"))
    labelled = PairedScenes(tmp_path, window=16)
    assert Regrouped(labelled.only(targets=()))
    with pytest.raises(ConfigError, match="one group and show different places"):
        Regrouped(labelled)


def test_shapes_with_a_class_column_are_burnt_in(folder):
    from rasterio.warp import transform_geom

    def square(left, top, side):
        ring = [(left, top), (left + side, top), (left + side, top - side), (left, top - side)]
        return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}

    shapes = [(square(WEST, NORTH, 320), "wheat"), (square(WEST + 320, NORTH, 320), "maize")]
    features = [
        {
            "type": "Feature",
            "properties": {"crop": crop},
            "geometry": transform_geom(UTM, "OGC:CRS84", shape, precision=9),
        }
        for shape, crop in shapes
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / "labels.geojson").write_text(text)
    data = PairedScenes(folder, window=64, block=1)
    assert data.targets["mask"].classes == ("maize", "wheat")
    mask = data[data.ids.index("place_r0_c0")]["target"]["mask"]
    assert (mask[:32, :32] == 1).all()
    assert (mask[:32, 32:] == 0).all()
    assert (mask[32:] == 255).all()
    one = json.dumps({"type": "FeatureCollection", "features": features[:1]})
    (folder / "labels.geojson").write_text(one)
    data = PairedScenes(folder, window=64, block=1)
    assert data.targets["mask"].classes == ("other", "wheat")
    assert int(data[0]["target"]["mask"].sum()) == 32 * 32


@pytest.mark.parametrize("stride", [64, 48])
def test_windows_beside_a_slanting_shape_have_no_labels(tmp_path, stride):
    for name in ("s1", "s2"):
        write(tmp_path / name / "place.tif", np.ones((384, 384), np.uint8))
    ring = [(WEST, NORTH), (WEST, NORTH - 3840), (WEST + 3840, NORTH - 3840), (WEST, NORTH)]
    pond = [(WEST + 3300, NORTH), (WEST + 3400, NORTH), (WEST + 3400, NORTH - 80)]
    shapes = {"a": ring, "b": [*pond, pond[0]]}
    features = [
        {
            "type": "Feature",
            "properties": {"class": name},
            "geometry": {"type": "Polygon", "coordinates": [corners]},
        }
        for name, corners in shapes.items()
    ]
    named = {"type": "name", "properties": {"name": UTM}}
    text = json.dumps({"type": "FeatureCollection", "features": features, "crs": named})
    (tmp_path / "labels.geojson").write_text(text)
    data = PairedScenes(tmp_path, window=64, stride=stride)
    masks = [data._labels.read(data.place(i), 0, 0, 64) for i in range(len(data))]
    shown = np.array([mask is not None and bool((mask != 255).any()) for mask in masks])
    boxes = np.array([data.place(i).bounds for i in range(len(data))])
    labelled = data._labels.covered(data._scenes[0].grid, boxes)
    assert (labelled | ~shown).all()  # none is lost
    corners = labelled & ~shown  # windows that the shape touches in a corner
    assert 0 < shown.sum() < len(data) and corners.sum() <= (5 if stride == 64 else 7)


def test_labels_of_scenes_around_the_world_lie_in_their_own_zones(tmp_path):
    features = []
    for zone, west in (("EPSG:32632", 9.0), ("EPSG:32722", -51.0), ("EPSG:32660", 177.0)):
        (x,), (y,) = transform("OGC:CRS84", zone, [west], [0.0])
        write(tmp_path / "s1" / f"{zone[-5:]}.tif", np.ones((64, 64), np.uint8), x, y, crs=zone)
        for shift, crop in ((0.0, "wheat"), (0.003, "maize")):
            left, right = west - 0.003 + shift * 2, west + shift * 2 + 0.003
            ring = [[left, -0.02], [right, -0.02], [right, 0.02], [left, 0.02], [left, -0.02]]
            shape = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": {"c": crop}, "geometry": shape})
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (tmp_path / "labels.geojson").write_text(text)
    data = PairedScenes(tmp_path, window=64, block=1)
    masks = [data[i]["target"]["mask"] for i in range(3)]
    assert all(sorted(mask.unique().tolist()) == [0, 1] for mask in masks)


def test_resolution_in_metres(folder):
    data = PairedScenes(folder, window=32, resolution=20)
    assert data.place(0).resolution == (20, 20)
    assert len(data) == 3 * 4
    coarse = data[0]["images"]["s1"]
    fine = PairedScenes(folder, window=64)[0]["images"]["s1"]
    means = torch.nn.functional.avg_pool2d(fine, 2)
    torch.testing.assert_close(coarse[:, 1:-1, 1:-1], means[:, 1:-1, 1:-1], rtol=0, atol=2)


def test_what_cannot_be_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(DataError, match=r"fit into none of 1 scenes; the largest is 192 x 256"):
        PairedScenes(folder, window=512)
    with pytest.raises(ConfigError, match=r"choose a coarser one"):
        PairedScenes(folder, window=64, resolution=0.001)
    write(folder / "s2" / "other_name.tif", smooth(120, 120, bands=3), WEST + 1e6, NORTH)
    with pytest.raises(DataError, match=r"do not overlap: s1 .* and s2 .*correct their CRS"):
        PairedScenes(folder, window=64)
    write(folder / "s2" / "other_name.tif", smooth(120, 120, bands=3), crs=None)
    with pytest.raises(DataError, match=r"has no CRS.*rio edit-info --crs"):
        PairedScenes(folder, window=64)
    write(folder / "s2" / "other_name.tif", smooth(120, 120, bands=2))
    with pytest.raises(DataError, match=r"is given 3 bands"):
        PairedScenes(folder, window=64)
    rotated = from_origin(WEST, NORTH, 10, 10) @ rasterio.Affine.rotation(20)
    with rasterio.open(folder / "s2" / "other_name.tif", "r+") as file:
        file.transform = rotated
    with pytest.raises(DataError, match=r"do not run from west to east.*gdalwarp"):
        PairedScenes(folder, window=64)


def test_a_raster_without_a_place_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "s1" / "a.tif"
    write(path, np.ones((64, 64), np.complex64))
    with pytest.raises(DataError, match="complex numbers; write amplitudes"):
        PairedScenes(tmp_path, window=64)
    write(path, np.ones((64, 64), np.uint8))
    with rasterio.open(path, "r+") as file:
        file.transform = rasterio.Affine.identity()
    with pytest.raises(DataError, match="a CRS and no transform"):
        PairedScenes(tmp_path, window=64)
    points = [GroundControlPoint(0, 0, 9, 45), GroundControlPoint(64, 64, 9.1, 44.9)]
    write(path, np.ones((64, 64), np.uint8), crs=None)
    with rasterio.open(path, "r+") as file:
        file.gcps = (points, rasterio.CRS.from_epsg(4326))
    with pytest.raises(DataError, match=r"ground control points and no grid.*gdalwarp"):
        PairedScenes(tmp_path, window=64)
    path = tmp_path / "a camera.tif"
    write(path, np.ones((64, 64), np.uint8), crs=None)
    with rasterio.open(path, "r+") as file:
        file.transform = rasterio.Affine.identity()
        ones = [1.0] * 20
        file.rpcs = RPC(0, 1, 45, 1, ones, ones, 32, 32, 9, 1, ones, ones, 32, 32)
    with pytest.raises(DataError, match=r"RPC.* gdalwarp -rpc -t_srs EPSG:CODE '.*a camera.tif' w"):
        read_raster_header(path)


def test_a_raster_in_metres_across_180_degrees_is_seen_from_degrees(tmp_path):
    pixels = smooth(60, 60)
    write(tmp_path / "s1" / "west.tif", pixels, 179.85, 53.9, 0.0025, crs="EPSG:4326")
    write(tmp_path / "s1" / "east.tif", pixels, -180.0, 53.9, 0.0025, crs="EPSG:4326")
    (x,), (y,) = transform("OGC:CRS84", "EPSG:32660", [179.8], [54.0])
    write(tmp_path / "s2" / "a.tif", smooth(400, 400), x, y, 100, crs="EPSG:32660")
    data = PairedScenes(tmp_path, window=60)
    assert data.ids == ["east_r0_c0", "west_r0_c0"]
    with rasterio.open(tmp_path / "s2" / "a.tif") as source:
        for row in range(2):
            west = data.place(row).west + 30.5 * 0.0025  # of the pixel in row and column 30
            points = transform("OGC:CRS84", "EPSG:32660", [west], [53.9 - 30.5 * 0.0025])
            (value,) = next(source.sample(zip(*points, strict=True)))
            assert abs(float(data[row]["images"]["s2"][0, 30, 30]) - value) < 10


def test_what_shows_no_earth_is_refused(tmp_path):
    disk = "+proj=geos +h=35785831 +lon_0=0"
    write(tmp_path / "s1" / "a.tif", smooth(64, 64), -5.5e6, 5.5e6, 171_875, crs=disk)
    with pytest.raises(DataError, match=r"a\.tif: .* cannot be placed in .* shows no Earth"):
        PairedScenes(tmp_path, window=16)


def test_metres_are_no_degrees(tmp_path):
    write(tmp_path / "s1" / "a.tif", np.ones((64, 64), np.uint8), 9, 45, 1e-4, "EPSG:4326")
    with pytest.raises(ConfigError, match=r"10 would be degrees.*10 m are about 8\.98e-05 degrees"):
        PairedScenes(tmp_path, window=32, resolution=10)


def test_labels_of_another_place_are_refused(folder):
    write(folder / "mask" / "a.tif", np.ones((64, 64), np.uint8), west=WEST + 1e5)
    with pytest.raises(DataError, match="no label lies within a window"):
        PairedScenes(folder, window=64)


def test_layers_of_a_package_are_told_apart(folder):
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import box

    fields = [box(WEST + 320 * i, NORTH - 640, WEST + 320 * (i + 1), NORTH) for i in range(2)]
    table = geopandas.GeoDataFrame({"crop": ["wheat", "maize"]}, geometry=fields, crs=UTM)
    file = folder / "labels.gpkg"
    table.iloc[:0].to_file(file, layer="fields")
    with pytest.raises(DataError, match=r"labels\.gpkg: holds no shape"):
        PairedScenes(folder, window=64, block=1)
    table.to_file(file, layer="fields")
    assert PairedScenes(folder, window=64, block=1).targets["mask"].classes == ("maize", "wheat")
    table.to_file(file, layer="a field")
    with pytest.raises(
        DataError, match=r"layers \(fields, a field\).*ogr2ogr labels.gpkg .* fields"
    ):
        PairedScenes(folder, window=64, block=1)


def test_a_package_as_surveys_have_it(folder, caplog):
    """A date, a row whose shape was deleted, and classes that are spelled in several ways."""
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import Polygon, box

    fields = [box(WEST + 160 * i, NORTH - 640, WEST + 160 * (i + 1), NORTH) for i in range(4)]
    about = {"crop": ["Wheat ", "wheat", "", "maize", "rye"], "seen": np.datetime64("2024-05-01")}
    table = geopandas.GeoDataFrame(about, geometry=[*fields, Polygon()], crs=UTM)
    table["cut"] = [True, False, True, False, True]
    for name in ("labels.gpkg", "labels.geojson"):
        table.to_file(folder / name)
        data = PairedScenes(folder, window=64, block=1, column="crop")
        assert data.targets["mask"].classes == ("Wheat", "maize", "wheat")
        mask = data[data.ids.index("place_r0_c0")]["target"]["mask"]
        assert mask[0, ::16].tolist() == [0, 2, 255, 1]
        assert "'Wheat', 'wheat' are different classes" in caplog.text
        assert PairedScenes(folder, window=64, block=1, column="cut").targets["mask"].classes == (
            "False",
            "True",
        )
    assert "labels.geojson: labels are read from it, and not from labels.gpkg;" in caplog.text


def test_values_that_are_most_likely_no_classes_are_told_of(folder, caplog):
    values = np.zeros((192, 256), np.uint32)
    values[:64, :64], values[64:, 64:] = 10, 95
    write(folder / "mask" / "a.tif", values)
    PairedScenes(folder, window=64, block=1)
    assert "3 different values up to 95, taken for 96 classes; make 95 its nodata" in caplog.text
    values[0, 0] = 2**32 - 1
    write(folder / "mask" / "a.tif", values)
    with pytest.raises(DataError, match=r"up to 4294967295, and classes are at most 65,536; make"):
        PairedScenes(folder, window=64, block=1)
    write(folder / "mask" / "a.tif", values, nodata=2**32 - 1)
    assert len(PairedScenes(folder, window=64, block=1).targets["mask"].classes) == 96


def test_a_raster_whose_pixels_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "s1" / "a.tif", np.zeros((64, 64), np.float32))
    data = (tmp_path / "s1" / "a.tif").read_bytes()
    (tmp_path / "s1" / "a.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadSampleError, match=r"a\.tif: cannot be read \(.*IReadBlock failed"):
        PairedScenes(tmp_path, window=64)


def test_statistics_of_a_raster_that_is_too_large_are_those_of_squares(tmp_path):
    pixels = smooth(600, 800, bands=2)
    pixels[:, :, :300] = -1
    write(tmp_path / "s1" / "a.tif", pixels, nodata=-1)
    found = compute_stats(tmp_path, max_pixels=400_000)["s1"]
    seen = np.where(pixels == -1, np.nan, pixels)  # 2 x 2 squares of 256 pixels
    rows, columns = (np.linspace(0, n - 256, 4)[1:-1].astype(int) for n in (600, 800))
    squares = [seen[:, r : r + 256, c : c + 256] for r in rows for c in columns]
    mean = np.nanmean(np.stack(squares), axis=(0, 2, 3))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    assert found.images == 1 and not found.bad
    write(tmp_path / "s1" / "b.tif", pixels, crs=None)
    (bad,) = compute_stats(tmp_path, max_pixels=400_000)["s1"].bad
    assert bad[0].endswith("b.tif") and "more than max_pixels" in bad[1]


def test_untiled_rasters_are_told_with_the_remedy(tmp_path, caplog):
    write(tmp_path / "s1" / "a.tif", np.zeros((64, 512), np.uint8), tiled=False)
    PairedScenes(tmp_path, window=64)
    assert "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE" in caplog.text


def test_a_palette_is_told_with_the_remedy(tmp_path, caplog):
    write(tmp_path / "s1" / "a.tif", np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    with rasterio.open(tmp_path / "s1" / "a.tif", "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0), 1: (0, 255, 0)})
    PairedScenes(tmp_path, window=64)
    assert "1 of 1 rasters have a palette" in caplog.text
    assert "gdal_translate -expand rgb" in caplog.text


ALIGNED = Grid(UTM, WEST, NORTH, (10.0, 10.0), 32, 32)
SHIFTED = Grid(UTM, WEST + 5, NORTH, (10.0, 10.0), 32, 31)  # by half a pixel


def read_on(grid, path, **options):
    reader = WindowReader(grid, [read_raster_header(path)], **options)
    return reader.read(0, 0, grid.height, grid.width)


@pytest.mark.parametrize(
    ("own", "nodata"), [(-9999, -32768), (None, (-9999, -32768)), (-32768, (-32768, -9999))]
)
def test_holes_of_several_values_are_not_mixed_into_their_neighbours(tmp_path, own, nodata):
    pixels = smooth(32, 32)
    pixels[..., :8], pixels[..., 20:] = -9999, -32768
    write(tmp_path / "a.tif", pixels, nodata=own)
    holes = read_on(ALIGNED, tmp_path / "a.tif", nodata=nodata).isnan()  # (1, 32, 32)
    assert torch.equal(holes.nonzero()[:, 2].unique(), torch.tensor([*range(8), *range(20, 32)]))
    warped = read_on(SHIFTED, tmp_path / "a.tif", nodata=nodata)
    between = (pixels[..., 8:19] + pixels[..., 9:20]) / 2  # of neighbours that are both measured
    np.testing.assert_allclose(warped[..., 8:19], between, rtol=0, atol=1e-3)
    assert warped[~warped.isnan()].min() >= 100
    assert warped[..., :7].isnan().all() and warped[..., 19:].isnan().all()


def test_a_mask_and_a_value_are_both_holes_when_warped(tmp_path):
    pixels = np.full((1, 32, 32), 100, np.uint8)
    pixels[..., 20:] = 7
    write(tmp_path / "a.tif", pixels)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.write_mask(np.arange(32)[None].repeat(32, 0) >= 8)
    warped = read_on(SHIFTED, tmp_path / "a.tif", nodata=7)
    assert warped[..., :7].isnan().all() and warped[..., 19:].isnan().all()
    assert (warped[..., 7:19] == 100).all()


@pytest.mark.parametrize("grid", [ALIGNED, SHIFTED])
def test_nodata_is_in_the_numbers_of_the_file_before_its_scale_and_offset(tmp_path, grid):
    pixels = np.full((1, 32, 32), 1000, np.uint16)  # is 0 in units: a genuine value
    pixels[..., :8] = 0
    write(tmp_path / "a.tif", pixels)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.scales, file.offsets = (0.1,), (-100.0,)
    read = read_on(grid, tmp_path / "a.tif", nodata=0)
    assert read[..., :7].isnan().all()
    # but for what tells it from 0 in units, which the sensor's nodata would be there
    assert (read[..., 8:] > 0).all() and read[..., 8:].max() < 1e-37


@pytest.mark.parametrize("grid", [ALIGNED, SHIFTED])
def test_a_raster_that_is_written_anew_is_read_anew(tmp_path, grid):
    for value in (1, 2):
        write(tmp_path / "a.tif", np.full((32, 32), value, np.float32))
        assert (read_on(grid, tmp_path / "a.tif") == value).all()


def test_no_two_scenes_have_one_id(tmp_path):
    for number, name in enumerate(("a.tif", "a.tiff", "a-2.tif")):
        write(tmp_path / "s1" / name, np.ones((64, 64), np.uint8), west=WEST + 2000 * number)
    assert sorted(PairedScenes(tmp_path, window=64).ids) == ["a-2_r0_c0", "a-3_r0_c0", "a_r0_c0"]


def test_what_is_in_no_calendar_is_no_date():
    assert date_of("T_20230435.tif") is None
    assert date_of("T_2023-02-29_2024-02-29.tif") == "20240229"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"properties": [1]}, "properties that are no mapping"),
        ({"properties": {"c": [1]}}, r"the class \[1\]"),
        ({"properties": {"c": float("nan")}}, "the class nan"),
        ({"properties": {"c": 1e999}}, "the class inf"),
        ({"geometry": "x"}, "a geometry that is no mapping"),
        ({"geometry": {"type": "Point", "coordinates": [9.0, float("nan")]}}, "no finite number"),
        ({"geometry": {"type": "Point", "coordinates": ["9", "45"]}}, "no finite number"),
    ],
)
def test_a_feature_that_cannot_be_is_named(folder, change, reason):
    point = {"type": "Point", "coordinates": [9.0, 45.0]}
    feature = {"type": "Feature", "properties": {"c": 1}, "geometry": point}
    text = json.dumps({"type": "FeatureCollection", "features": [feature, {**feature, **change}]})
    (folder / "labels.geojson").write_text(text)
    with pytest.raises(DataError, match=rf"labels\.geojson: feature 2 has .*{reason}"):
        PairedScenes(folder, window=64, column="c")


def test_what_a_folder_of_scenes_does_not_say_is_told(tmp_path, caplog):
    pixels = np.arange(64 * 64).reshape(64, 64)
    write(tmp_path / "s1" / "a.tif", (pixels % 250).astype(np.uint8))
    write(tmp_path / "s1" / "copy of a.tif", pixels.astype(np.uint16))
    (tmp_path / "s2").mkdir()
    (tmp_path / "s2" / "mosaic.vrt").write_text("<VRTDataset/>")
    with caplog.at_level("INFO", logger="decur"):
        data = PairedScenes(tmp_path, window=32)
    assert list(data.modalities) == ["s1"] and len(data) == 8
    assert "s2 is left out, since it holds no .tif or .jp2: gdal_translate" in caplog.text
    assert "a.tif and 1 more show one rectangle, and are taken for dates" in caplog.text
    assert "a.tif is 8-bit, and" in caplog.text
