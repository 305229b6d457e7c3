"""What GDAL knows of a raster is kept: against rasterio, Pillow and arrays made by hand."""

import numpy as np
import pytest
import rasterio
import torch
from make_folder import write
from make_raster import write_placed
from PIL import Image, ImageOps
from rasterio.transform import Affine

from decur.data import rasters
from decur.data.files import parts_of, read_header, read_image, read_mask, read_sensor
from decur.data.georeference import read_place
from decur.data.map_rasters import read_raster_header
from decur.data.window_reader import WindowReader
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

RNG = np.random.default_rng(0)


def tif(path, pixels, **options):
    size = dict(zip(("count", "height", "width"), pixels.shape, strict=True))
    options = {"driver": "GTiff", "dtype": pixels.dtype, **size, **options}
    with rasterio.open(path, "w", **options) as target:
        target.write(pixels)
    return path


def test_nodata_of_each_band_from_metadata_beside_the_raster(tmp_path):
    pixels = np.array([[[1, 2, 3]], [[1, 2, 3]]], np.uint16)
    path = tif(tmp_path / "a.tif", pixels)
    bands = "".join(
        f'<PAMRasterBand band="{band}"><NoDataValue>{value}</NoDataValue></PAMRasterBand>'
        for band, value in ((1, 1), (2, 3))
    )
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    with rasterio.open(path) as source:
        masked = source.read(masked=True)
    np.testing.assert_array_equal(read_image(path).isnan(), np.ma.getmaskarray(masked))
    assert [part.name for part in parts_of(path)] == ["a.tif", "a.tif.aux.xml"]


@pytest.mark.parametrize("value", [1e38, -3.4028234663852886e38, 9.969209968386869e36])
def test_a_float_that_is_far_too_large_is_no_measurement(tmp_path, value):
    path = tif(tmp_path / "a.tif", np.array([[[1, value, np.nan]]], np.float32))
    assert read_image(path).isnan().tolist() == [[[False, True, True]]]
    np.save(tmp_path / "b.npy", np.array([[1, -1.7976931348623157e308]]))
    assert read_image(tmp_path / "b.npy").isnan().tolist() == [[[False, True]]]


def test_scale_and_offset_are_applied_after_nodata(tmp_path):
    path = tif(tmp_path / "a.tif", np.array([[[0, 100, 2000]]], np.int16), nodata=0)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (1e-4,), (-0.1,)
    expected = np.array([[[np.nan, -0.09, 0.1]]])
    np.testing.assert_allclose(read_image(path), expected, rtol=1e-6)
    assert read_image(path, nodata=100).isnan().sum() == 2  # a number of the file
    header = read_header(path)
    assert not header.is_byte and not header.is_integer


def test_a_measured_pixel_that_scale_and_offset_make_0_is_none_of_nodata_0(tmp_path):
    sensor = Modality("x", ("a",), (0.0,), (0.1,), nodata=0)
    path = tmp_path / "x" / "a.tif"
    write_placed(path, np.array([[0, 1000, 3000]], np.int16))
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (1e-4,), (-0.1,)
    with rasterio.open(path) as source:  # what GDAL says of the pixels, without the sensor's nodata
        in_units = source.read(1) * source.scales[0] + source.offsets[0]
    np.testing.assert_allclose(in_units, [[-0.1, 0, 0.2]], atol=1e-9)

    whole = read_sensor(path, sensor)
    raster = read_raster_header(path)
    window = WindowReader(raster.grid, [raster], nodata=0).read(0, 0, 1, 3)

    for image in (whole, window):
        assert image.isnan().tolist() == [[[True, False, False]]]
        # (x - mean + 2 std) / (4 std), and 0.5 where nothing was measured
        kept = sensor.with_(mean=(-0.1,)).scale(image)
        np.testing.assert_allclose(kept, [[[0.5, 0.75, 1]]], atol=1e-6)


@pytest.mark.parametrize(
    ("a", "e", "turn"),
    [(10, -10, lambda x: x), (10, 10, np.flipud), (-10, -10, np.fliplr)],
)
def test_rows_go_from_north_to_south(tmp_path, a, e, turn):
    pixels = RNG.integers(0, 99, (1, 3, 5)).astype(np.uint8)
    path = tif(tmp_path / "a.tif", pixels, transform=Affine(a, 0, 0, 0, e, 0), crs="EPSG:32632")
    np.testing.assert_array_equal(read_image(path)[0], turn(pixels[0]))
    rotated = Affine(8, -5, 0, 5, 8, 0)
    path = tif(tmp_path / "b.tif", pixels, transform=rotated, crs="EPSG:32632")
    np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_every_viewer(tmp_path, orientation):
    picture = Image.fromarray(RNG.integers(0, 255, (3, 5), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        picture.save(tmp_path / name, exif=exif, **({"lossless": True} if "webp" in name else {}))
        if name != "a.tif":  # of which Pillow turns some twice
            with Image.open(tmp_path / name) as opened:
                upright = np.asarray(ImageOps.exif_transpose(opened))
        image = read_image(tmp_path / name)
        np.testing.assert_array_equal(image[0], upright[..., 0] if "webp" in name else upright)
        assert read_header(tmp_path / name).size == upright.shape[:2]
        if name == "a.webp":
            upright = upright[..., 0]
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), upright)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "YCbCr"])
def test_colours_of_a_tiff_are_those_of_pillow(tmp_path, mode):
    picture = Image.fromarray(RNG.integers(0, 255, (6, 6, 3), dtype=np.uint8)).convert(mode)
    picture.save(tmp_path / "a.tif")
    expected = np.asarray(picture.convert("L" if mode == "1" else "RGB"))
    expected = expected[None] if mode == "1" else np.moveaxis(expected, -1, 0)
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == torch.uint8 and image.shape == expected.shape
    assert np.abs(image.numpy().astype(int) - expected).max() <= 2  # YCbCr rounds
    assert read_header(tmp_path / "a.tif").bands == len(expected)
    if mode in ("P", "1"):
        indices = np.asarray(picture).astype(int)
        np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), indices)


def test_pages_of_one_kind_are_bands_and_others_are_refused(tmp_path):
    pages = [Image.fromarray(RNG.integers(0, 255, (4, 6), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.stack(pages))
    assert read_header(tmp_path / "a.tif").bands == 3
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[pages[1].resize((3, 3))])
    for read in (read_image, read_header):
        with pytest.raises(BadSampleError, match=r"2 pages that differ .* one a file"):
            read(tmp_path / "b.tif")


def test_overviews_are_no_pages(tmp_path):
    pixels = RNG.integers(0, 255, (1, 64, 64)).astype(np.uint8)
    path = tif(tmp_path / "a.tif", pixels, driver="COG", blocksize=16, overviews="IGNORE_EXISTING")
    np.testing.assert_array_equal(read_image(path), pixels)


def test_another_format_behind_the_extension_is_not_opened(tmp_path):
    inner = tif(tmp_path / "inner.tif", np.ones((1, 4, 4), np.uint8))
    vrt = (
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{inner}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "a.tif").write_text(vrt)
    (tmp_path / "inner.tif.msk").write_text(vrt)
    with pytest.raises(BadSampleError, match=r"a\.tif: cannot be read .*not recognized"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(BadSampleError, match=r"inner\.tif\.msk: is no mask"):
        read_image(inner)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("int8", "int8"), ("uint32", "uint32"), ("int64", "int64"), ("float64", "float64")],
)
def test_types_of_numbers(tmp_path, name, dtype):
    pixels = RNG.integers(0, 100, (2, 4, 4)).astype(dtype)
    np.testing.assert_array_equal(read_image(tif(tmp_path / "a.tif", pixels)), pixels)
    with pytest.raises(BadSampleError, match="complex"):
        read_image(tif(tmp_path / "b.tif", pixels.astype(np.complex64)))


@pytest.mark.parametrize("data", [".img", ".dat", ".BSQ", ""])
def test_envi_is_read_by_its_header(tmp_path, data):
    pixels = RNG.normal(size=(5, 4, 6)).astype(np.float32)
    tif(tmp_path / f"a{data}", pixels, driver="ENVI")
    np.testing.assert_array_equal(read_image(tmp_path / "a.hdr"), pixels)
    assert read_header(tmp_path / "a.hdr").bands == 5
    assert len(parts_of(tmp_path / "a.hdr")) == 2 + (tmp_path / f"a{data}.aux.xml").is_file()
    whole = (tmp_path / f"a{data}").read_bytes()
    (tmp_path / f"a{data}").write_bytes(whole[:-1])
    with pytest.raises(BadSampleError, match=r"promises 480 bytes, and a.* has 479"):
        read_image(tmp_path / "a.hdr")
    (tmp_path / f"a{data}").unlink()
    with pytest.raises(BadSampleError, match="no data beside it"):
        read_image(tmp_path / "a.hdr")


def test_grey_that_is_stored_white_first_is_one_band(tmp_path):
    pixels = RNG.integers(0, 255, (6, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    expected = np.asarray(Image.open(tmp_path / "a.tif"))[None]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    assert read_header(tmp_path / "a.tif").bands == 1


def test_a_driver_that_is_not_there_is_named_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(rasters.DRIVERS, ".exr", ("NONE",))
    rasters.driver_of.cache_clear()
    (tmp_path / "a.exr").write_bytes(b"v/1\x01")
    with pytest.raises(DataError, match=r"a\.exr: this GDAL has no NONE.*convert such"):
        read_image(tmp_path / "a.exr")
    rasters.driver_of.cache_clear()


def test_elevation_tiles_of_srtm(tmp_path):
    heights = RNG.integers(0, 900, (1201, 1201)).astype(">i2")
    heights[0, 0] = -32768
    (tmp_path / "N47E010.hgt").write_bytes(heights.tobytes())
    image = read_image(tmp_path / "N47E010.hgt")
    assert image[0, 0, 0].isnan() and image[0, 1, 1] == heights[1, 1]


def test_bands_by_name_and_number(tmp_path):
    pixels = RNG.integers(0, 99, (3, 4, 4)).astype(np.uint16)
    path = tif(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as target:
        target.descriptions = ("B02", "B03", "B8A")
    np.testing.assert_array_equal(read_image(path, pick=("B8A", "b2")), pixels[[2, 0]])
    np.testing.assert_array_equal(read_image(path, pick=(3, "B3")), pixels[[2, 1]])
    np.testing.assert_array_equal(read_image(path, 3, pick=("B8A", "B3", "B2")), pixels[::-1])
    np.testing.assert_array_equal(read_image(path, 3, pick=("x", "y", "z")), pixels)
    with pytest.raises(BadSampleError, match=r"no band 'B12'; it has 3 bands \(B02, B03, B8A\)"):
        read_image(path, pick=("B2", "B12"))


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy"])
def test_size_is_checked_before_the_pixels_are_read(tmp_path, name):
    path = write(tmp_path / name, np.ones((1, 20, 30), np.uint8))
    assert read_image(path, max_pixels=600).shape == (1, 20, 30)
    for read in (read_image, read_header):
        with pytest.raises(BadSampleError, match=r"20 x 30 pixels.*--data\.max_pixels"):
            read(path, max_pixels=599)


def test_transparency_is_apart_also_where_a_file_states_nodata(tmp_path):
    pixels = RNG.integers(1, 255, (4, 4, 4)).astype(np.uint8)
    pixels[0, 1], pixels[3] = 0, 255
    pixels[3, 3] = 0
    path = tif(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES", nodata=0)
    expected = np.where((pixels[:3] == 0) | (pixels[3:] == 0), np.nan, pixels[:3])
    for bands in (None, 3):
        np.testing.assert_array_equal(read_image(path, bands), expected)
    assert read_header(path).bands == 3


def test_a_mask_of_one_band_beside_a_raster(tmp_path):
    path = tif(tmp_path / "a.tif", np.ones((2, 2, 3), np.float32))
    masks = np.full((2, 2, 3), 255, np.uint8)
    masks[1, 0] = 0
    tif(tmp_path / "a.tif.msk", masks)
    with rasterio.open(tmp_path / "a.tif.msk", "r+") as target:
        target.update_tags(INTERNAL_MASK_FLAGS_1=0, INTERNAL_MASK_FLAGS_2=0)
    np.testing.assert_array_equal(read_image(path).isnan(), masks == 0)


def test_signed_8_bit_pixels_are_a_depth_of_their_own(tmp_path):
    path = tif(tmp_path / "a.tif", np.array([[[-7, 7]]], np.int8))
    assert not read_header(path).is_byte
    assert read_image(path, is_byte=False).tolist() == [[[-7, 7]]]
    with pytest.raises(BadSampleError, match="has signed 8-bit pixels, others of its sensor 8-bit"):
        read_image(path, is_byte=True)


def test_complex_numbers_are_no_classes(tmp_path):
    path = tif(tmp_path / "a.tif", np.ones((1, 2, 2), np.complex64))
    with pytest.raises(BadSampleError, match="pixels of type complex64"):
        read_mask(path)


def beside(path, bands, place=""):
    """Write what GDAL says of a picture beside it, the text of each band given."""
    rows = "".join(
        f'<PAMRasterBand band="{band}">{said}</PAMRasterBand>'
        for band, said in enumerate(bands, start=1)
    )
    path.with_name(path.name + ".aux.xml").write_text(f"<PAMDataset>{place}{rows}</PAMDataset>")


@pytest.mark.parametrize(
    ("extension", "bands"), [("png", 1), ("png", 3), ("jpg", 1), ("bmp", 3), ("pgm", 1)]
)
def test_nodata_beside_a_picture_that_pillow_reads(tmp_path, extension, bands):
    pixels = np.full((16, 16, bands), 200, np.uint8)
    pixels[:8, :, 0] = 0
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels.squeeze()).save(path, format=None if extension != "pgm" else "PPM")
    before = read_image(path)
    assert not before.is_floating_point()
    beside(path, ["<NoDataValue>0</NoDataValue>"] * bands)
    np.testing.assert_array_equal(read_image(path).isnan(), before == 0)
    assert [part.name for part in parts_of(path)] == [path.name, f"{path.name}.aux.xml"]
    if (extension, bands) == ("png", 1):
        assert read_mask(path).unique().tolist() == [200, 255]


def test_units_and_place_beside_a_picture_that_pillow_reads(tmp_path):
    pixels = RNG.integers(1, 255, (6, 5)).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    beside(path, ["<Metadata><MDI key='STATISTICS_MEAN'>1</MDI></Metadata>"])
    assert read_header(path).is_byte  # GDAL also writes what says nothing of the pixels
    said = "<Scale>0.5</Scale><Offset>-3</Offset><UnitType>dB</UnitType>"
    place = "<SRS>EPSG:32632</SRS><GeoTransform>5e5, 10, 0, 5e6, 0, 10</GeoTransform>"  # south up
    beside(path, [f"<Description>VV</Description>{said}"], place)
    header = read_header(path)
    assert (header.names, header.units, header.is_byte) == (("VV",), ("dB",), False)
    np.testing.assert_array_equal(read_image(path)[0], pixels[::-1] * 0.5 - 3)
    assert read_place(path).bounds == (5e5, 5e6, 5e5 + 50, 5e6 + 60)


def test_indices_of_a_palette_that_are_nodata_beside_it(tmp_path):
    indices = np.arange(4, dtype=np.uint8).reshape(2, 2)
    picture = Image.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    beside(tmp_path / "a.png", ["<NoDataValue>2</NoDataValue>"])
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1], [255, 3]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").isnan().all(0), indices == 2)


def test_a_mask_beside_a_picture_that_pillow_reads(tmp_path):
    Image.fromarray(np.full((4, 5, 3), 9, np.uint8)).save(tmp_path / "a.jpg")
    mask = np.full((1, 4, 5), 255, np.uint8)
    mask[0, 2] = 0
    tif(tmp_path / "a.jpg.msk", mask)
    with rasterio.open(tmp_path / "a.jpg.msk", "r+") as target:
        target.update_tags(**{f"INTERNAL_MASK_FLAGS_{band}": 2 for band in (1, 2, 3)})  # of all
    holes = np.broadcast_to(mask == 0, (3, 4, 5))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").isnan(), holes)


@pytest.mark.parametrize("shift", [0.0, 5.0])  # on the grid, and between its pixels
def test_windows_know_masks_of_one_band_and_transparency_beside_nodata(tmp_path, shift):
    pixels = RNG.integers(1, 255, (4, 8, 8)).astype(np.uint8)
    pixels[0, 1], pixels[3], pixels[3, 6:] = 0, 255, 0
    options = {"photometric": "RGB", "alpha": "YES", "nodata": 0}
    seen = write_placed(tmp_path / "a.tif", pixels, **options)
    masked = write_placed(tmp_path / "b.tif", pixels[:2].astype(np.float32))
    masks = np.full((2, 8, 8), 255, np.uint8)
    masks[1, 4:] = 0
    tif(tmp_path / "b.tif.msk", masks)
    with rasterio.open(tmp_path / "b.tif.msk", "r+") as target:
        target.update_tags(INTERNAL_MASK_FLAGS_1=0, INTERNAL_MASK_FLAGS_2=0)
    for path in (seen, masked):
        raster = read_raster_header(path)
        grid = raster.grid
        moved = type(grid)(grid.crs, grid.west + shift, grid.north, grid.resolution, 8, 7)
        window = WindowReader(moved, [raster]).read(0, 0, 8, 7)
        holes = read_image(path).isnan().numpy()[:, :, :7]
        np.testing.assert_array_equal(window.isnan(), holes)
