import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform

from decur.data import PairedFolder
from decur.data.georeference import read_place
from decur.errors import BadSampleError

GIVEN = {n: {"bands": ["x"], "scaling": "image"} for n in ("s1", "s2")}


def put(path, pixels, left, top, step=10.0, crs="EPSG:32632", south_up=False):
    """Write a raster whose upper left corner lies at 500000 + left, 5000000 + top metres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = len(pixels)
    transform = Affine(step, 0, 5e5 + left, 0, -step, 5e6 + top)
    if south_up:
        transform = Affine(step, 0, 5e5 + left, 0, step, 5e6 + top - rows * step)
        pixels = pixels[::-1]
    about = {"count": 1, "height": rows, "width": rows, "dtype": pixels.dtype, "crs": crs}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **about) as target:
        target.write(np.ascontiguousarray(pixels)[None])


@pytest.fixture
def picture():
    return np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)


def test_pictures_of_other_places_are_bad_samples(tmp_path, picture, caplog):
    for id_, left in {"a": 0, "b": 5000}.items():
        put(tmp_path / "s1" / f"{id_}.tif", picture, 0, 0)
        put(tmp_path / "s2" / f"{id_}.tif", picture, left, 0)
    data = PairedFolder(tmp_path, GIVEN)
    assert "in 1 of 2 samples pictures do not overlap" in caplog.text
    assert set(data[0]["images"]) == {"s1", "s2"}
    with pytest.raises(BadSampleError, match=r"s2/b\.tif: does not overlap .*s1/b\.tif"):
        data[1]


def test_a_pair_apart_is_refused_also_where_nobody_looked_for_it(tmp_path, picture, monkeypatch):
    monkeypatch.setattr("decur.data.folder._PLACES", 2)
    for number in range(5):
        put(tmp_path / "s1" / f"{number}.tif", picture, 0, 0)
        put(tmp_path / "s2" / f"{number}.tif", picture, 5000 * (number == 1), 0)
        classes = (picture > 0).astype(np.uint8)
        put(tmp_path / "mask" / f"{number}.tif", classes, 5000 * (number == 3), 0)
    data = PairedFolder(tmp_path, GIVEN)
    bad = set()
    for index in range(5):
        try:
            data[index]
        except BadSampleError as error:
            assert "does not overlap" in str(error)
            bad.add(index)
    assert bad == {1, 3}
    assert set(data.only(targets=())[3]["images"]) == {"s1", "s2"}  # a mask that nobody reads


def test_other_pixels_of_one_place_are_no_other_grid(tmp_path, picture, caplog):
    put(tmp_path / "s1" / "a.tif", picture, 0, 0)
    put(tmp_path / "s2" / "a.tif", picture[:16, :16], 4, -4, step=20.0, south_up=True)
    assert len(PairedFolder(tmp_path, GIVEN)) == 1 and not caplog.text


def test_other_grids_are_told_of_or_resampled(tmp_path, picture, caplog):
    put(tmp_path / "s1" / "a.tif", picture, 0, 0)
    put(tmp_path / "s2" / "a.tif", picture, 45, -30)
    put(tmp_path / "mask" / "a.tif", (picture > 0).astype(np.uint8), 40, 0)
    data = PairedFolder(tmp_path, GIVEN)
    assert "in 1 of 1 samples pictures lie on other grids, up to 45 m apart" in caplog.text
    assert "--data.align true resamples them onto that of s1" in caplog.text
    np.testing.assert_array_equal(data[0]["images"]["s2"][0], picture)
    sample = PairedFolder(tmp_path, GIVEN, align=True)[0]
    np.testing.assert_array_equal(sample["images"]["s1"][0], picture)
    with (
        rasterio.open(tmp_path / "s1" / "a.tif") as one,
        rasterio.open(tmp_path / "s2/a.tif") as two,
    ):
        grid = {"crs": one.crs, "transform": one.transform, "width": 32, "height": 32}
        with WarpedVRT(two, resampling=Resampling.bilinear, nodata=np.nan, **grid) as warped:
            expected = warped.read(1)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(sample["images"]["s2"][0], expected, atol=1e-6)
    mask = sample["target"]["mask"]
    np.testing.assert_array_equal(mask[:, 4:], (picture > 0)[:, :-4])
    assert (mask[:, :4] == 255).all() and mask.dtype == torch.int64


def test_a_picture_in_degrees_is_brought_onto_one_in_metres(tmp_path, picture, caplog):
    put(tmp_path / "s1" / "a.tif", picture, 0, 0)
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(
        "EPSG:32632", "EPSG:4326", 5e5, 5e6 - 320, 500320, 5e6
    )
    transform = rasterio.transform.from_bounds(west, south, east, north, 40, 40)
    about = {"count": 1, "height": 40, "width": 40, "dtype": "uint8", "crs": "EPSG:4326"}
    (tmp_path / "s2").mkdir()
    with rasterio.open(
        tmp_path / "s2" / "a.tif", "w", driver="GTiff", transform=transform, **about
    ) as f:
        f.write(np.tile(np.arange(40, dtype=np.uint8), (40, 1))[None])
    image = PairedFolder(tmp_path, GIVEN, align=True)[0]["images"]["s2"]
    assert image.shape == (1, 32, 32)
    columns = image[0].float().nanmean(0)
    np.testing.assert_allclose(columns[1:-1], np.arange(1, 31) * 40 / 32 + 0.125, atol=0.5)


def test_a_place_is_read_anew_when_its_file_changes(tmp_path, picture, monkeypatch):
    path = tmp_path / "a.tif"
    put(path, picture, 0, 0)
    first = read_place(path)
    with monkeypatch.context() as patch:  # what is known opens no file
        patch.setattr("decur.data.rasters.open_raster", None)
        assert read_place(path) is first
    put(path, picture[:9, :9], 90, 0)
    assert (read_place(path).transform.c, read_place(path).size) == (500_090, (9, 9))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("EPSG:4326", 179.999), ("EPSG:4326", -180.001)),  # the same, counted otherwise
        (("EPSG:4326", 179.998), ("EPSG:32660", None)),  # a UTM zone that ends at 180 degrees
    ],
)
def test_pictures_across_180_degrees_are_not_apart(tmp_path, picture, first, second):
    easting = transform("EPSG:4326", "EPSG:32660", [179.999], [0.0])[0][0]
    for name, (crs, west) in {"s1": first, "s2": second}.items():
        step, left, top = (0.0001, west, 0.001) if west else (10.0, easting, 100.0)
        (tmp_path / name).mkdir()
        about = {"count": 1, "height": 32, "width": 32, "dtype": "float32", "crs": crs}
        place = Affine(step, 0, left, 0, -step, top)
        file = tmp_path / name / "a.tif"
        with rasterio.open(file, "w", driver="GTiff", transform=place, **about) as target:
            target.write(picture[None])
    assert set(PairedFolder(tmp_path, GIVEN)[0]["images"]) == {"s1", "s2"}
