"""Pictures without a map and arrays, as people save them."""

from zipfile import ZipFile

import h5py
import numpy as np
import pytest
import scipy.io
import zarr
from PIL import Image

from decur.data.files import read_header, read_image, read_mask
from decur.errors import BadSampleError

RNG = np.random.default_rng(0)
CUBE = RNG.normal(size=(5, 8, 6)).astype(np.float32)  # (C, H, W)


def save_npz(path, **arrays):
    np.savez(path, **arrays)


def save_mat(path, **arrays):
    scipy.io.savemat(path, arrays)


def save_mat73(path, **arrays):
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
            file[name].attrs["MATLAB_class"] = np.bytes_("single")


def save_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"group/{name}"] = array
        file["other"] = h5py.ExternalLink("elsewhere.h5", "data")


def save_zarr(path, **arrays):
    group = zarr.open_group(path, mode="w")
    for name, array in arrays.items():
        group.create_array(f"group/{name}", data=array)


@pytest.mark.parametrize(
    ("name", "save", "key"),
    [
        ("a.npz", save_npz, "cube"),
        ("a.mat", save_mat, "cube"),
        ("b.mat", save_mat73, "cube"),
        ("a.h5", save_h5, "group/cube"),
        ("a.zarr", save_zarr, "group/cube"),
    ],
)
def test_one_array_is_read_and_of_several_the_named_one(tmp_path, name, save, key):
    path = tmp_path / name
    save(path, cube=CUBE)
    np.testing.assert_array_equal(read_image(path), CUBE)
    assert (read_header(path).bands, read_header(path).size) == (5, (8, 6))
    save(path, cube=CUBE, truth=CUBE[0])
    with pytest.raises(BadSampleError, match=r"has 2 arrays .*variable"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, variable=key), CUBE)
    with pytest.raises(BadSampleError, match="no array 'x'; there is"):
        read_image(path, variable="x")
    with pytest.raises(BadSampleError, match="8 x 6 pixels, more than max_pixels"):
        read_image(path, variable=key, max_pixels=47)
    if path.is_file():
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(BadSampleError, match="copy or download"):
            read_image(path, variable=key)


def test_the_number_of_bands_tells_where_they_stand(tmp_path):
    np.save(tmp_path / "last.npy", np.moveaxis(CUBE, 0, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "last.npy", 5), CUBE)
    assert read_header(tmp_path / "last.npy", 5).size == (8, 6)
    np.save(tmp_path / "patch.npy", np.zeros((11, 11, 144)))
    assert read_image(tmp_path / "patch.npy", 144).shape == (144, 11, 11)
    np.save(tmp_path / "both.npy", np.zeros((5, 8, 5)))
    with pytest.raises(BadSampleError, match="come first or last"):
        read_image(tmp_path / "both.npy", 5)


def claim_npy(path, shape):
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)


def claim_npz(path, shape):
    claim_npy(path.with_suffix(".npy"), shape)
    with ZipFile(path, "w") as archive:
        archive.write(path.with_suffix(".npy"), "x.npy")


def claim_mat(path, shape):
    scipy.io.savemat(path, {"x": np.zeros((2, 3, 4), np.float32)})
    sides = (np.array(sides, "<i4").tobytes() for sides in ((2, 3, 4), shape))
    path.write_bytes(path.read_bytes().replace(*sides))


def claim_h5(path, shape):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", shape, "f4", chunks=(1, 64, 64))


def claim_zarr(path, shape):
    zarr.create_array(path, shape=shape, dtype="f4", chunks=(1, 64, 64))


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("a.npy", claim_npy),
        ("a.npz", claim_npz),
        ("a.mat", claim_mat),
        ("a.h5", claim_h5),
        ("a.zarr", claim_zarr),
    ],
)
def test_a_header_that_claims_gigabytes_is_refused_before_memory_is_asked_for(
    tmp_path, name, claim
):
    path = tmp_path / name
    claim(path, (500, 1000, 1001))
    for read in (read_header, read_image):
        with pytest.raises(BadSampleError, match=r"claims 2\.0 GB.*--data\.max_pixels 100100001"):
            read(path)


def test_chunks_that_are_huge_or_countless_are_refused(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(3, 9, 9), dtype="f4", chunks=(50, 4000, 4000))
    with pytest.raises(BadSampleError, match=r"claims 3\.2 GB"):
        read_image(tmp_path / "a.zarr")
    zarr.create_array(tmp_path / "b.zarr", shape=(3, 900, 900), dtype="f4", chunks=(1, 1, 1))
    with pytest.raises(BadSampleError, match="2,430,000 chunks"):
        read_image(tmp_path / "b.zarr")


def test_what_hdf5_and_zarr_name_elsewhere_is_not_opened(tmp_path):
    (tmp_path / "raw").write_bytes(bytes(48))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (6, 8), "u1", external=[(str(tmp_path / "raw"), 0, 48)])
    with pytest.raises(BadSampleError, match="in other files"):
        read_image(tmp_path / "a.h5")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zarray").write_text(
        '{"zarr_format": 2, "shape": [4, 4], "chunks": [4, 4], "dtype": "|u1", "order": "C",'
        ' "compressor": null, "fill_value": 0, "filters": [{"id": "pickle"}]}'
    )
    with pytest.raises(BadSampleError, match="never opened"):
        read_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
def test_scale_offset_and_fill_value_by_the_conventions_of_netcdf(tmp_path, name):
    stored = RNG.integers(1, 100, (2, 4, 6)).astype(np.int16)
    stored[0, 0, 0] = -1
    if name == "a.h5":
        array = h5py.File(tmp_path / name, "w").create_dataset("a", data=stored)
    else:
        array = zarr.create_array(tmp_path / name, data=stored)
    array.attrs.update({"_FillValue": -1, "scale_factor": 0.5, "add_offset": 10.0})
    if name == "a.h5":
        array.file.close()
    expected = stored * 0.5 + 10
    expected[0, 0, 0] = np.nan
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    assert not read_header(tmp_path / name).is_integer


def test_16_bit_grey_with_transparency_is_one_band_also_for_its_header(tmp_path):
    import rasterio

    pixels = RNG.integers(0, 65_535, (2, 4, 5)).astype(np.uint16)
    shape = {"count": 2, "height": 4, "width": 5, "dtype": "uint16"}
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", **shape) as file:
        file.write(pixels)
    header = read_header(tmp_path / "a.png")
    assert (header.bands, header.alpha, header.is_byte) == (1, True, False)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels[:1])


@pytest.mark.parametrize(
    ("mode", "key"), [("L", 3), ("RGB", (3, 3, 3)), ("P", 3), ("1", 0), ("1", 1), ("I;16", 3)]
)
def test_the_transparent_colour_of_a_png_is_no_measurement(tmp_path, mode, key):
    values = RNG.integers(0, 6, (6, 6)).astype(np.uint8)
    pixels = values.astype(np.uint16) if mode == "I;16" else values
    picture = Image.fromarray(pixels if mode != "1" else values > 2)
    if mode in ("RGB", "P"):
        picture = picture.convert(mode)
    picture.save(tmp_path / "a.png", transparency=key)
    hole = (values > 2) == key if mode == "1" else values == 3
    image = read_image(tmp_path / "a.png")
    assert image.shape[0] == (3 if mode in ("RGB", "P") else 1)
    np.testing.assert_array_equal(image.isnan().all(0), hole)
    if mode != "RGB":
        classes = values > 2 if mode == "1" else values
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), np.where(hole, 255, classes))


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.webp"])
def test_other_pictures(tmp_path, name):
    pixels = RNG.integers(0, 255, (4, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(image, np.stack([pixels] * len(image)))
    if name == "a.gif":  # which stores grey as a palette
        assert len(image) == read_header(tmp_path / name).bands == 1
        np.testing.assert_array_equal(read_image(tmp_path / name, 3), np.stack([pixels] * 3))
    if name != "a.webp":
        assert read_mask(tmp_path / name).shape == (4, 5)


def test_a_picture_that_moves_is_refused(tmp_path):
    frames = [Image.fromarray(RNG.integers(0, 255, (4, 5), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(BadSampleError, match="3 frames"):
        read_image(tmp_path / "a.gif")


def test_16_bit_grey_of_a_pgm(tmp_path):
    depth = RNG.integers(0, 65536, (4, 5)).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 5 4 65535\n" + depth.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "a.pgm")[0], depth)
    assert not read_header(tmp_path / "a.pgm").is_byte
