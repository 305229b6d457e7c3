"""Embeddings of scenes are GeoParquet with a STAC item, against the specifications and rasterio."""

import json
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform

from decur.data import PairedFolder, PairedScenes
from decur.data.grid import Grid
from decur.embed import embed
from decur.embed.geography import footprint, rectangle
from decur.encoders import EncoderSettings
from decur.pretrain import LoaderSettings

UTM = "EPSG:32632"
SETTINGS = {
    "encoder": EncoderSettings(name="test_resnet"),
    "loader": LoaderSettings(batch_size=4, workers=0),
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sensors of one place of 64 x 64 pixels."""
    root = tmp_path_factory.mktemp("places")
    for name in ("s1", "s2"):
        path = root / name / "x_20230714.tif"
        path.parent.mkdir()
        profile = {"driver": "GTiff", "count": 1, "height": 64, "width": 64, "dtype": "uint8"}
        place = {"crs": UTM, "transform": from_origin(500_000, 5_000_000, 10, 10)}
        with rasterio.open(path, "w", **profile, **place) as file:
            file.write(np.random.default_rng(0).integers(0, 255, (1, 64, 64), "uint8"))
    return root


@pytest.fixture(scope="module")
def rows(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("geo") / "embeddings"
    embed(PairedScenes(folder, window=32), "random", out=str(out), **SETTINGS)
    return out


def points_of(polygon):
    """The corners of well-known binary: byte order, type 3 of a polygon, one ring."""
    order, kind, rings, count = struct.unpack_from("<BIII", polygon)
    assert (order, kind, rings, count) == (1, 3, 1, 5)
    return np.frombuffer(polygon, "<f8", offset=13).reshape(5, 2)


def test_footprints_are_the_windows_as_geoparquet_wants_them(rows):
    table = pq.read_table(sorted(rows.glob("part-*.parquet"))[0])
    assert table.column_names == ["id", "modality", "features", "geometry"]
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["crs"]["id"] == {"authority": "OGC", "code": "CRS84"}
    row = next(r for r in table.to_pylist() if r["id"].endswith("_r0_c32"))
    points = points_of(row["geometry"])
    xs = [500_320, 500_640, 500_640, 500_320, 500_320]
    ys = [4_999_680, 4_999_680, 5_000_000, 5_000_000, 4_999_680]
    expected = np.transpose(transform(UTM, "EPSG:4326", xs, ys))
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-9)
    x, y = points.T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counter-clockwise


def test_geopandas_reads_them(rows):
    geopandas = pytest.importorskip("geopandas")
    table = geopandas.read_parquet(sorted(rows.glob("part-*.parquet"))[0])
    assert table.geometry.is_valid.all()
    assert table.crs == "OGC:CRS84"
    area = table.to_crs(UTM).area
    np.testing.assert_allclose(area, 320 * 320, rtol=1e-4)


def test_the_item_is_stac_with_the_fields_of_the_extension(rows):
    item = json.loads((rows / "item.json").read_text())
    assert item["type"] == "Feature"
    about = item["properties"]
    assert about["datetime"] is None
    assert about["start_datetime"] == "2023-07-14T00:00:00Z"
    assert about["end_datetime"] == "2023-07-14T23:59:59Z"
    # of the extension's schema: no other `emb:` fields may stand in an item
    assert [key for key in about if key.startswith("emb:")] == ["emb:runtime_parameters"]
    assert about["emb:runtime_parameters"]["dimensions"]["features"].keys() == {"s1", "s2"}
    assert (rows / item["assets"]["embeddings"]["href"]).is_file()
    assert len(item["assets"]) == len(list(rows.glob("part-*.parquet")))
    west, south, east, north = item["bbox"]
    assert 8.99 < west < east < 9.02 and 45.1 < south < north < 45.2
    assert item["geometry"]["coordinates"][0][0] == [west, south]


def test_a_folder_of_geotiff_has_them_and_pictures_have_none(folder, tmp_path):
    embed(PairedFolder(folder), "random", out=str(tmp_path / "a"), **SETTINGS)
    (row, _) = pq.read_table(tmp_path / "a" / "part-000000.parquet").to_pylist()
    assert points_of(row["geometry"])[0] == pytest.approx(
        np.ravel(transform(UTM, "EPSG:4326", [500_000], [4_999_360]))
    )
    for name in ("s1", "s2"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        np.save(tmp_path / "plain" / name / "1.npy", np.ones((1, 8, 8), "uint8"))
    embed(PairedFolder(tmp_path / "plain"), "random", out=str(tmp_path / "b"), **SETTINGS)
    assert "geometry" not in pq.read_schema(tmp_path / "b" / "part-000000.parquet").names
    assert not (tmp_path / "b" / "item.json").exists()


def test_a_folder_that_was_begun_without_footprints_goes_on_without(folder, tmp_path):
    out = tmp_path / "rows"
    embed(PairedScenes(folder, window=32), "random", out=str(out), **SETTINGS)
    header = json.loads((out / "embeddings.json").read_text())
    del header["geometry"]
    (out / "embeddings.json").write_text(json.dumps(header))
    (out / "part-000000.parquet").unlink()
    embed(PairedScenes(folder, window=32), "random", out=str(out), **SETTINGS)
    assert "geometry" not in pq.read_schema(out / "part-000000.parquet").names


def test_a_footprint_across_180_degrees_is_small():
    points = points_of(footprint(Grid("EPSG:32701", 160_000, 8_000_000, (100.0, 100.0), 99, 999)))
    assert 0 < np.ptp(points[:, 0]) < 2


def test_longitudes_of_footprints_are_those_of_everyone():
    for west, expected in ((350.0, -10.0), (-190.0, 170.0), (179.5, 179.5), (-180.5, 179.5)):
        points = points_of(footprint(Grid("EPSG:4326", west, 10.0, (0.5, 0.5), 2, 2)))
        assert (points[:, 0].min(), points[:, 0].max()) == (expected, expected + 1)


def test_an_item_across_180_degrees_is_small():
    grids = [Grid("EPSG:4326", west, 10.0, (0.5, 0.5), 2, 2) for west in (178.0, 179.5, -180.0)]
    box, shape = rectangle({footprint(grid) for grid in grids})
    assert box == [178.0, 9.0, -179.0, 10.0]
    shapely = pytest.importorskip("shapely")
    assert shapely.geometry.shape(shape).bounds == (-180.0, 9.0, 180.0, 10.0)
    assert shapely.geometry.shape(shape).area == pytest.approx(3.0)
    box, shape = rectangle({footprint(grid) for grid in grids[:1]})
    assert (box, shape["type"]) == ([178.0, 9.0, 179.0, 10.0], "Polygon")
