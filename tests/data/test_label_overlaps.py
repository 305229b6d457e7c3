"""Labels that give one ground two classes, and shapes as people have them, in scenes."""

import json

import numpy as np
import pytest
from make_raster import NORTH, UTM, WEST, write_placed

from decur.data import PairedScenes
from decur.errors import DataError


def write(path, pixels, *place, **options):
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    return write_placed(path, pixels, *place, **{**tiles, **options})


def rectangle(left, top, right, bottom):
    """In pixels of the scene, with the corners at its pixels' corners."""
    xs, ys = (WEST + 10 * left, WEST + 10 * right), (NORTH - 10 * top, NORTH - 10 * bottom)
    ring = [(xs[0], ys[0]), (xs[1], ys[0]), (xs[1], ys[1]), (xs[0], ys[1])]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def write_shapes(path, shapes, column="class"):
    """Write geometries with their classes as GeoJSON in the CRS of the scene."""
    features = [
        {"type": "Feature", "properties": {column: value}, "geometry": geometry}
        for geometry, value in shapes
    ]
    named = {"type": "name", "properties": {"name": UTM}}
    text = {"type": "FeatureCollection", "features": features, "crs": named}
    path.write_text(json.dumps(text))


@pytest.mark.parametrize("changed", [0, 3, 64])
def test_label_rasters_that_disagree_are_told_with_their_share(tmp_path, caplog, changed):
    write(tmp_path / "s1" / "place.tif", np.ones((64, 128), np.uint8))
    left = np.arange(64)[:, None] // 16 % 2 * np.ones((1, 96), int)
    right = left.copy()
    right[:, :changed] = 1 - right[:, :changed]
    left[:16] = 255  # unknown
    write(tmp_path / "mask" / "a.tif", left.astype(np.uint8))
    write(tmp_path / "mask" / "b.tif", right.astype(np.uint8), WEST + 320)
    data = PairedScenes(tmp_path, window=32, block=1)
    told = [
        record.message for record in caplog.records if "label rasters overlap" in record.message
    ]
    assert len(told) == bool(changed)
    if changed:  # of the 64 columns that both cover, where both know a class
        assert "overlap in 1 places" in told[0]
        assert f"looked at there {100 * changed / 64:.3g} % have two classes" in told[0]
    mask = data._labels.read(data._scenes[0].grid, 0, 32, 64)
    # the first by name, but where it calls unknown what the second knows
    assert np.array_equal(mask[16:], left[16:, 32:]) and np.array_equal(mask[:16], right[:16, :64])
    alone = data._labels.read(data._scenes[0].grid, 0, 0, 32)
    assert (alone[:16] == 255).all()


@pytest.mark.parametrize(("width", "share"), [(0, None), (16, "20")])
def test_shapes_of_two_classes_on_one_ground_are_told(tmp_path, caplog, width, share):
    write(tmp_path / "s1" / "place.tif", np.ones((64, 128), np.uint8))
    shapes = [(rectangle(0, 0, 32, 64), "a"), (rectangle(32 - width, 0, 80, 64), "b")]
    shapes.append((rectangle(8, 0, 12, 64), "a"))  # over one of its own class
    write_shapes(tmp_path / "labels.geojson", shapes)
    data = PairedScenes(tmp_path, window=32, block=1)
    assert ("lie over each other on" in caplog.text) == (share is not None)
    if share:
        assert f"on {share} % of the pixels that shapes cover; the later one" in caplog.text
    mask = data._labels.read(data._scenes[0].grid, 0, 0, 64)
    assert (mask[:, 32 - width : 64] == 1).all() and (mask[:, : 32 - width] == 0).all()


def test_a_class_that_is_nowhere_is_told_and_thin_shapes_are_counted(tmp_path, caplog):
    write(tmp_path / "s1" / "place.tif", np.ones((64, 128), np.uint8))
    line = {"type": "LineString", "coordinates": [[WEST, NORTH - 5], [WEST + 640, NORTH - 5]]}
    shapes = [(rectangle(0, 0, 64, 64), "a"), (rectangle(70.6, 9.6, 70.9, 9.9), "b"), (line, "c")]
    write_shapes(tmp_path / "labels.geojson", shapes)
    with caplog.at_level("INFO", logger="decur"):
        data = PairedScenes(tmp_path, window=32, block=1, column="class")
    assert "no pixel of the scenes is of the class b, whose shapes lie" in caplog.text
    assert "3 of 3 shapes (lines and points among them, 1, label the pixels" in caplog.text
    mask = data._labels.read(data._scenes[0].grid, 0, 0, 64)
    assert (mask[0] == 2).all() and (mask[1:] == 0).all()


def test_labels_in_metres_without_a_crs_are_told_with_where_they_would_lie(tmp_path):
    write(tmp_path / "s1" / "place.tif", np.ones((64, 64), np.uint8))
    file = tmp_path / "labels.geojson"
    write_shapes(file, [(rectangle(0, 0, 32, 64), "a"), (rectangle(32, 0, 64, 64), "b")])
    known = json.loads(file.read_text())
    del known["crs"]
    file.write_text(json.dumps(known))
    with pytest.raises(DataError, match=r"the first is at 500000, 4999360, and place at 9, 45\.14"):
        PairedScenes(tmp_path, window=32)
    file.rename(tmp_path / "shapes.shp")
    with pytest.raises(DataError, match=r"ogr2ogr labels\.gpkg .*shapes\.shp"):
        PairedScenes(tmp_path, window=32, labels=tmp_path / "shapes.shp")


def test_geojson_with_a_mark_of_its_byte_order_is_read(tmp_path):
    write(tmp_path / "s1" / "place.tif", np.ones((64, 64), np.uint8))
    file = tmp_path / "labels.geojson"
    write_shapes(file, [(rectangle(0, 0, 32, 64), "a"), (rectangle(32, 0, 64, 64), "b")])
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert PairedScenes(tmp_path, window=32, block=1).targets["mask"].classes == ("a", "b")
