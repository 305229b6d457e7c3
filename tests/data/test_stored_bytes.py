"""Every reader tells which files, or parts of files, a sample is read from."""

import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from make_bigearthnet_mm import make_bigearthnet_mm
from make_bigearthnet_v2 import make_bigearthnet_v2
from make_folder import make_folder
from make_geonrw import make_geonrw
from make_nyu import make_nyu
from make_ombria import make_ombria
from make_rgbx import make_rgbx
from make_ssl4eo_s12 import make_ssl4eo_s12
from make_ssl4eo_s12_v11 import file_name, make_ssl4eo_s12_v11, pixels
from make_sunrgbd import make_sunrgbd

from decur import data as readers
from decur.data.depth import Mat73
from decur.data.selection import select
from decur.data.ssl4eo import season_order
from decur.errors import BadSampleError

PICTURES = {".tif", ".png", ".jpg", ".jp2", ".json"}
LABELS = [["Pastures"], ["Pastures"], ["Vineyards"], ["Bare rock"]]
SPLITS = {"train": [0, 1], "val": [2], "test": [3]}
V2_LABELS = [["Urban fabric"], ["Pastures"], ["Marine waters"], ["Pastures"]]
SCENES = {"train": ["kv1/NYUdata/NYU0003", "xtion/a/0000103"], "test": ["realsense/sa/1"]}


def folder(root):
    return readers.PairedFolder(make_folder(root, dict.fromkeys(("a", "b", "mask"), "xyz")))


def ssl4eo(root):
    return readers.SSL4EOS12(make_ssl4eo_s12(root, {"s1": (5,), "s2c": (5,)}))


def bigearthnet(root):
    return readers.BigEarthNetMM(make_bigearthnet_mm(root, LABELS, SPLITS))


def bigearthnet_v2(root):
    made = make_bigearthnet_v2(root, V2_LABELS, ["train", "train", "validation", "test"])
    return readers.BigEarthNetV2(made, maps=True)


def geonrw(root):
    return readers.GeoNRW(make_geonrw(root, ("aachen", "bonn"), side=64))


def ombria(root):
    return readers.Ombria(make_ombria(root, {"train": range(1, 3), "test": (13,)}))


def rgbx(root):
    return readers.RGBX(make_rgbx(root, {"train": ["0", "1"], "test": ["5"]}))


def sunrgbd(root):
    return readers.SUNRGBD(make_sunrgbd(root, SCENES), depth="hha")


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) if torch.is_tensor(a) else a == b


@pytest.mark.parametrize(
    "make", [folder, ssl4eo, bigearthnet, bigearthnet_v2, geonrw, ombria, rgbx, sunrgbd]
)
def test_a_sample_is_read_from_its_files_and_no_others(make, tmp_path):
    data = make(tmp_path / "data")
    index = 1
    before = data[index]
    files = [Path(file) for file in data.files(index)]
    contents = {file: file.read_bytes() for file in files}
    stored = data.read_bytes(index).tobytes()
    assert stored.startswith(b"".join(contents.values()))
    if make is not sunrgbd:  # whose labels are rows of one file
        assert len(stored) == sum(map(len, contents.values()))
    for file in tmp_path.rglob("*"):
        if file.suffix in PICTURES and file not in contents:
            file.unlink()
    data = data if make is not geonrw else _forgetting(data)
    assert same(data[index], before)
    for file, content in contents.items():
        file.write_bytes(b"")
        with pytest.raises(BadSampleError):
            _forgetting(data)[index]
        file.write_bytes(content)
    for name in before["images"]:  # of a sensor that is not wanted nothing is read
        one = select(data, [name])
        fewer = set(map(Path, one.files(index)))
        assert fewer < set(contents)
        for file in set(contents) - fewer:
            file.unlink()
        found = one[index]
        assert same(found["images"], {name: before["images"][name]})
        assert same(found.get("target", {}), before.get("target", {}))
        for file, content in contents.items():
            file.write_bytes(content)
    plain = _forgetting(data.only(targets=()))  # nor of labels
    fewer = set(map(Path, plain.files(index)))
    in_files = make not in (ssl4eo, sunrgbd)  # which has none, and one file for all
    assert fewer < set(contents) if in_files else fewer == set(contents)
    for file in set(contents) - fewer:
        file.unlink()
    assert len(plain.read_bytes(index)) <= len(stored) - (make is not ssl4eo)
    found = plain[index]
    assert same(found["images"], before["images"]) and not found.get("target")


def _forgetting(data):
    """GeoNRW keeps the scene that it decoded last."""
    if isinstance(data, readers.GeoNRW):
        data._last = None
    return data


def test_a_row_of_a_matlab_file_is_the_chunks_that_hold_it(tmp_path):
    rows = np.random.default_rng(0).integers(0, 9, (5, 6, 7), dtype=np.uint16)
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file.create_dataset("whole", data=rows)
        file.create_dataset("packed", data=rows, chunks=(2, 6, 4), compression="gzip")
        cells = file.create_dataset("cells", (5, 1), dtype=h5py.ref_dtype)
        for row in range(5):
            name = f"#refs#/{row}"
            cells[row, 0] = file.create_dataset(
                name, data=rows[row], chunks=(6, 7), compression="gzip"
            ).ref
    mat = Mat73(tmp_path / "x.mat", ("whole", "packed", "cells"), layout="")
    assert mat.read_bytes("whole", 3).tobytes() == rows[3].tobytes()
    assert zlib.decompress(mat.read_bytes("cells", 3).tobytes()) == rows[3].tobytes()
    stored, parts = mat.read_bytes("packed", 3).tobytes(), []
    while stored:  # two streams, one after the other
        stream = zlib.decompressobj()
        parts.append(np.frombuffer(stream.decompress(stored), np.uint16).reshape(2, 6, 4))
        stored = stream.unused_data
    assert len(parts) == 2
    np.testing.assert_array_equal(np.concatenate(parts, axis=2)[1, :, :7], rows[3])


def test_nyu_and_sun_read_rows_of_matlab_files(tmp_path):
    root = make_nyu(tmp_path / "nyu", [3, 4], [1, 2])
    data = readers.NYUDepthV2(root, "train")
    file = Mat73(root / "nyu_depth_v2_labeled.mat", (), layout="")
    parts = [file.read_bytes(name, 3).tobytes() for name in ("images", "depths", "labels")]
    assert data.read_bytes(1).tobytes() == b"".join(parts)
    assert select(data, ["depth"]).read_bytes(1).tobytes() == b"".join(parts[1:])
    found = select(data, ["rgb"])[1]
    assert same(found["images"]["rgb"], data[1]["images"]["rgb"]) and len(found["images"]) == 1
    data = readers.SUNRGBD(make_sunrgbd(tmp_path / "sun", SCENES), "train")
    files = b"".join(Path(file).read_bytes() for file in data.files(0))
    label = data.read_bytes(0).tobytes()[len(files) :]
    seg = tmp_path / "sun/SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat"
    assert label in (seg.read_bytes()) and len(label) > 0


def test_a_place_of_the_zipped_release_is_the_chunks_of_its_seasons(tmp_path):
    root = make_ssl4eo_s12_v11(tmp_path, ((7, 3, 5),), ("s1",))
    data = readers.SSL4EOS12v11(root, sensors={"s1": "s1"})
    season = season_order(0, "s1", place="0000003", products=4)[1]
    path = root / "train" / "S1GRD" / file_name(1)
    bands = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")["bands"]
    with zipfile.ZipFile(path) as archive:
        keys = [f"bands/0.{season}.{band}.0.0" for band in range(2)]
        keys = [key for key in keys if key in archive.namelist()]
        expected = b"".join(archive.read(key) for key in keys)
    assert keys and data.read_bytes(5).tobytes() == expected
    np.testing.assert_array_equal(bands[1, season], pixels("s1", 3, season))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadSampleError, match=path.name):
        data.read_bytes(5)
