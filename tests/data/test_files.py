import struct
import zlib

import numpy as np
import pytest
import torch
from make_folder import write, write_raster
from PIL import Image

from decur.data import rasters
from decur.data.files import read_header, read_image, read_mask
from decur.errors import BadSampleError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

RNG = np.random.default_rng(0)


def _png(width, height, bits, colour, rows):
    """A PNG; each of the rows begins with its filter."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("extension", "dtype", "bands"),
    [
        (".tif", "uint8", 1),
        (".tiff", "uint16", 13),
        (".tif", "int16", 2),
        (".tif", "float32", 3),
        (".tif", "float64", 12),
        (".jp2", "uint16", 1),
        (".jp2", "uint8", 3),
        (".png", "uint8", 1),
        (".png", "uint8", 3),
        (".png", "uint8", 4),
        (".png", "uint16", 1),
        (".npy", "uint8", 5),
        (".npy", "int16", 1),
        (".npy", "float64", 2),
        (".npy", "bool", 1),
    ],
)
def test_pixels_come_back_as_written(tmp_path, extension, dtype, bands):
    pixels = RNG.uniform(0, 200, (bands, 20, 24)).astype(dtype)
    path = write(tmp_path / f"a{extension}", pixels)
    image = read_image(path, bands)
    assert image.shape == (bands, 20, 24)
    assert image.dtype == (torch.uint8 if dtype in ("uint8", "bool") else torch.float32)
    np.testing.assert_array_equal(image.numpy(), pixels.astype(image.numpy().dtype))
    header = read_header(path)
    alpha = extension == ".png" and bands == 4
    assert (header.bands, header.alpha, header.size) == (bands - alpha, alpha, (20, 24))
    assert header.is_byte == (dtype == "uint8")


def test_jpeg_is_close_to_what_was_written(tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    image = read_image(write(tmp_path / "a.jpg", smooth))
    assert image.shape == (1, 32, 32)
    assert np.abs(image[0].numpy().astype(int) - smooth).max() <= 3


def test_extension_in_capitals(tmp_path):
    path = write(tmp_path / "a.png", np.ones((4, 4), np.uint8)).rename(tmp_path / "a.PNG")
    assert read_image(path).shape == (1, 4, 4)


def test_16_bit_colour_png_keeps_its_lower_bits(tmp_path):
    pixels = RNG.integers(0, 65536, (5, 7, 3)).astype(">u2")
    path = tmp_path / "deep.png"
    path.write_bytes(_png(7, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in pixels)))
    np.testing.assert_array_equal(read_image(path).numpy(), np.moveaxis(pixels, -1, 0))
    assert not read_header(path).is_byte


def test_palette_gives_colours_to_images_and_indices_to_masks(tmp_path):
    indices = RNG.integers(0, 3, (6, 6)).astype(np.uint8)
    picture = Image.frombytes("P", (6, 6), indices.tobytes())
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    path = tmp_path / "a.png"
    picture.save(path)
    expected = np.eye(3, dtype=np.uint8)[indices] * 255  # (H, W, 3)
    np.testing.assert_array_equal(read_image(path).numpy(), np.moveaxis(expected, -1, 0))
    assert read_header(path).bands == 3
    mask = read_mask(path)
    assert mask.dtype == torch.int64
    np.testing.assert_array_equal(mask.numpy(), indices)


def test_mask_from_raster_and_its_faults(tmp_path):
    pixels = np.array([[[0, 1], [7, -1]]], np.int16)
    mask = read_mask(write(tmp_path / "a.tif", pixels, nodata=-1))
    assert mask.tolist() == [[0, 1], [7, 255]]
    with pytest.raises(BadSampleError, match="one band"):
        read_mask(write(tmp_path / "b.png", np.zeros((3, 4, 4), np.uint8)))
    with pytest.raises(BadSampleError, match="fractions"):
        read_mask(write(tmp_path / "c.npy", np.full((4, 4), 0.5)))


def test_nodata_becomes_nan(tmp_path):
    pixels = np.array([[[1.0, -9999.0], [2.0, 3.0]]], np.float32)
    own = read_image(write(tmp_path / "a.tif", pixels, nodata=-9999))
    named = read_image(write(tmp_path / "b.tif", pixels), nodata=-9999)
    expected = np.where(pixels == -9999, np.nan, pixels)
    np.testing.assert_array_equal(own.numpy(), expected)
    np.testing.assert_array_equal(named.numpy(), expected)
    byte = np.array([[0, 5]], np.uint8)
    assert read_image(write(tmp_path / "c.png", byte)).dtype == torch.uint8
    assert read_image(write(tmp_path / "c.png", byte), nodata=0).isnan().tolist() == [
        [[True, False]]
    ]


def test_band_names_only_where_each_has_its_own(tmp_path):
    pixels = np.ones((2, 4, 4), np.float32)
    named = write_raster(tmp_path / "a.tif", pixels, names=("VV", "VH"))
    twice = write_raster(tmp_path / "b.tif", pixels, names=("bands", "bands"))
    assert read_header(named).names == ("VV", "VH")
    assert read_header(twice).names is None


def _cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


@pytest.mark.parametrize("extension", [".tif", ".png", ".jpg", ".jp2", ".npy"])
@pytest.mark.parametrize("keep", [0, 0.02, 0.6])
def test_truncated_files_name_file_and_remedy(tmp_path, extension, keep):
    pixels = RNG.integers(0, 255, (1, 64, 64)).astype(np.uint8)
    path = _cut(write(tmp_path / f"a{extension}", pixels), keep)
    with pytest.raises(BadSampleError, match=r"copy or download") as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("name", "pixels", "match"),
    [
        ("a.tif", np.full((2, 4, 4), np.nan, np.float32), "no measured pixel"),
        ("a.tif", np.full((2, 4, 4), -1, np.int16), "no measured pixel"),
        ("a.npy", np.full((2, 4, 4), np.inf, np.float32), "infinite"),
        ("a.npy", np.full((2, 4, 4), 1e300), "no measured pixel"),
        ("a.tif", np.ones((1, 4, 4), np.float32), "has 1 band, its modality 2"),
        ("a.png", np.ones((3, 4, 4), np.uint8), "has 3 bands, its modality 2"),
        ("a.npy", np.ones((4, 4, 3)), r"looks like \(H, W, C\)"),
        ("a.npy", np.ones((2, 4, 2)), "come first or last"),
        ("a.npy", np.ones((1, 2, 4, 4)), r"save it as \(C, H, W\)"),
        ("a.npy", np.ones((2, 0, 4)), "no pixels"),
        ("a.npy", np.ones((2, 4, 4), complex), "complex"),
    ],
)
def test_unusable_pixels(tmp_path, name, pixels, match):
    path = write(tmp_path / name, pixels)
    with pytest.raises(BadSampleError, match=match) as caught:
        read_image(path, bands=2, nodata=-1)
    assert str(caught.value).startswith(str(path))


def test_array_of_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadSampleError):
        read_image(tmp_path / "a.npy")


def test_array_without_known_bands_is_not_guessed(tmp_path):
    with pytest.raises(BadSampleError, match="looks like"):
        read_header(write(tmp_path / "a.npy", np.ones((16, 16, 3))))
    assert read_image(write(tmp_path / "b.npy", np.ones((100, 16, 16)))).shape == (100, 16, 16)


def test_missing_file_and_unknown_extension(tmp_path):
    with pytest.raises(BadSampleError, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot read this kind"):
        read_image(tmp_path / "a.txt")


def test_without_rasterio_the_remedy_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    rasters.import_rasterio.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(DataError, match=r"reading \.tif needs rasterio.*decur\[eo\]"):
        read_image(path)
    rasters.import_rasterio.cache_clear()


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_pixels_that_a_raster_masks_are_not_measured(tmp_path, internal, dtype):
    import rasterio

    pixels = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], dtype)
    path = write(tmp_path / "a.tif", pixels)
    measured = np.array([[True, True], [True, False]])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as target:
        target.write_mask(measured)
    assert (tmp_path / "a.tif.msk").exists() != internal
    image = read_image(path)
    np.testing.assert_array_equal(image.numpy(), np.where(measured, pixels, np.nan))
    assert image.dtype == torch.float32
    assert read_header(path).is_byte == (dtype == "uint8")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as target:
        target.write_mask(np.ones_like(measured))
    assert read_image(path).dtype == (torch.uint8 if dtype == "uint8" else torch.float32)


def test_transparency_is_a_band_only_where_it_is_counted(tmp_path):
    import rasterio

    pixels = RNG.integers(1, 255, (4, 4, 4)).astype(np.uint8)
    pixels[3, 0] = 0
    size = {"count": 4, "height": 4, "width": 4, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", alpha="YES", **size) as target:
        target.write(pixels)
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 4).numpy(), pixels)
        expected = np.where(pixels[3:] == 0, np.nan, pixels[:3])
        np.testing.assert_array_equal(read_image(tmp_path / name).numpy(), expected)
        assert read_header(tmp_path / name).bands == 3
    with rasterio.open(tmp_path / "a.tif", "r+") as target:
        target.set_band_description(4, "NIR")  # GDAL marks any fourth band of 8 bits
    assert read_image(tmp_path / "a.tif").shape[0] == 4


def test_a_label_without_any_measurement_is_a_mask_of_unknowns(tmp_path):
    path = write(tmp_path / "a.tif", np.full((1, 2, 2), 7, np.uint8), nodata=7)
    assert read_mask(path).tolist() == [[255, 255], [255, 255]]
    with pytest.raises(BadSampleError, match="no measured pixel"):
        read_image(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_indices(tmp_path, bits):
    indices = np.arange(2**bits, dtype=np.uint8)[None, :16]  # (1, W)
    width = indices.shape[1]
    row = np.unpackbits(indices.T, axis=1)[:, 8 - bits :].tobytes()
    row = np.packbits(np.frombuffer(row, np.uint8)).tobytes()
    path = tmp_path / "a.png"
    path.write_bytes(_png(width, 1, bits, 0, b"\0" + row))
    assert read_mask(path).tolist() == indices.tolist()
    full = indices.astype(int) * (255 // (2**bits - 1))
    assert read_image(path)[0].tolist() == full.tolist()


def test_nodata_beyond_8_bits_is_no_8_bit_value(tmp_path):
    image = read_image(write(tmp_path / "a.png", np.array([[241, 5]], np.uint8)), nodata=-9999)
    assert image.tolist() == [[[241, 5]]]


def test_arrays_that_are_none_are_bad_samples(tmp_path):
    path = write(tmp_path / "a.npy", np.ones((1, 4, 4)))
    path.write_bytes(path.read_bytes().replace(b"), }", b"(, }"))  # TokenError in NumPy
    with open(tmp_path / "b.npy", "wb") as file:
        np.savez(file, np.ones((4, 4)))
    np.savez(tmp_path / "c.npz", np.ones((4, 4)), np.ones((4, 4)))
    for name, reason in {"a.npy": "cannot be read", "c.npz": "has 2 arrays"}.items():
        for read in (read_image, read_header):
            with pytest.raises(BadSampleError, match=reason):
                read(tmp_path / name)
    assert read_image(tmp_path / "b.npy").shape == (1, 4, 4)  # an .npz of one array
