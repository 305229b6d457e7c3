"""What docs/data.md says of files that cannot be used is what reading them says."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_folder import write
from PIL import Image

from decur.data.files import EXTENSIONS, read_header, read_image, read_mask
from decur.errors import BadSampleError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
(TABLE,) = re.findall(r"### What makes a bad sample\n.*?\n\|---.*?\n(.*?)\n\n", PAGE, re.S)
ROWS = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", TABLE, re.M))
BYTES = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)


def cut(path):
    write(path, BYTES)
    path.write_bytes(path.read_bytes()[:60])
    return path


def filled(path, content):
    path.write_bytes(content)
    return path


def pages(path):
    first, second = (Image.fromarray(BYTES[0][:rows]) for rows in (4, 2))
    first.save(path, save_all=True, append_images=[second])
    return path


def moving(path):
    frames = [Image.fromarray(BYTES[0] + step) for step in (0, 9)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


def arrays(path):
    np.savez(path, one=BYTES, other=BYTES)
    return path


def text(path):
    with h5py.File(path, "w") as file:
        file["names"] = np.array([[b"a", b"b"]])
    return path


def objects(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return path


# What makes the file of each row in a folder, and how it is read; None: as a picture.
CASES = {
    "is not there": (lambda at: at / "a.png", None),
    "is empty": (lambda at: filled(at / "a.tif", b""), None),
    "is cut short, or damaged": (lambda at: cut(at / "a.tif"), None),
    "is no picture, whatever its name says": (lambda at: filled(at / "a.png", b"<xml/>" * 9), None),
    "is larger than `max_pixels`": (
        lambda at: write(at / "a.tif", BYTES),
        lambda path: read_image(path, max_pixels=15),
    ),
    "has no measured pixel": (
        lambda at: write(at / "a.tif", BYTES[:1] * 0, nodata=0),
        None,
    ),
    "has infinite values": (lambda at: write(at / "a.npy", np.full((4, 4), np.inf)), None),
    "has complex numbers": (lambda at: write(at / "a.npy", np.ones((4, 4), complex)), None),
    "has another number of bands than its sensor": (
        lambda at: write(at / "a.png", BYTES),
        lambda path: read_image(path, bands=2),
    ),
    "lacks a band that is named": (
        lambda at: write(at / "a.tif", BYTES),
        lambda path: read_image(path, pick=["B99"]),
    ),
    "has 16 bits where most files of the sensor have 8, or the other way round": (
        lambda at: write(at / "a.tif", BYTES.astype(np.uint16)),
        lambda path: read_image(path, is_byte=True),
    ),
    "has pages that differ": (lambda at: pages(at / "a.tif"), None),
    "moves (GIF, WebP, PNG)": (lambda at: moving(at / "a.gif"), None),
    "is an array of four dimensions": (lambda at: write(at / "a.npy", np.ones((1, 2, 4, 4))), None),
    "is an array whose bands could come first or last": (
        lambda at: write(at / "a.npy", np.ones((4, 8, 4))),
        lambda path: read_image(path, bands=4),
    ),
    "is an array that looks like (H, W, bands), and the bands are unknown": (
        lambda at: write(at / "a.npy", np.ones((16, 16, 3))),
        read_header,
    ),
    "holds several arrays, and none is named": (lambda at: arrays(at / "a.npz"), None),
    "holds structures, text or complex numbers only": (lambda at: text(at / "a.h5"), None),
    "holds Python objects": (lambda at: objects(at / "a.npy"), None),
    "is an ENVI header without its data": (lambda at: filled(at / "a.hdr", b"ENVI\n"), None),
    "is a mask of several bands": (lambda at: write(at / "a.png", BYTES), read_mask),
    "is a mask with fractions": (lambda at: write(at / "a.npy", np.full((4, 4), 0.5)), read_mask),
}


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("row", CASES)
def test_a_bad_sample_says_what_the_page_says(row, tmp_path):
    make, read = CASES[row]
    path = make(tmp_path)
    with pytest.raises(BadSampleError) as bad:
        (read or read_image)(path)
    assert ROWS[row] in str(bad.value) and "\n" not in str(bad.value)


def test_each_row_of_the_page_is_tried_and_each_extension_is_named():
    assert set(ROWS) == set(CASES)
    formats = PAGE.split("## Reading")[1].split("### What is kept")[0]
    assert {e for e in re.findall(r"`(\.\w+)`", formats) if e in EXTENSIONS} == EXTENSIONS
