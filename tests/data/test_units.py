"""Statistics that do not fit the data are told, with band, ranges and the likely cause."""

import numpy as np
import pytest
from make_folder import make_folder, write

from decur import Modality
from decur.data import PairedFolder
from decur.data.units import check_units
from decur.modality import PRESETS

RNG = np.random.default_rng(0)


def folder(root, pixels, fields):
    for row in range(3):
        for name in ("a", "b"):
            (root / name).mkdir(exist_ok=True)
            x = pixels(row).astype(np.float32)
            write(root / name / f"{row}.npy", x[:1] if name == "b" else x)
    return PairedFolder(root, {"a": fields, "b": {**PRESETS["dem"].to_dict(), "name": "b"}})


def spectra(scale, offset=0.0):
    mean = np.array(PRESETS["sentinel2-l2a"].mean)[:, None, None]
    return lambda row: scale * (mean * RNG.uniform(0.5, 1.5, (12, 9, 9)) + offset)


@pytest.mark.parametrize(
    ("pixels", "fields", "told"),
    [
        (spectra(1e-4), {"preset": "sentinel2-l2a"}, ["12 of 12", "B1", "`scale: 10000`"]),
        (spectra(1e-4), {"preset": "sentinel2-l2a", "scale": 10000}, None),
        (spectra(1), {"preset": "sentinel2-l2a"}, None),
        (spectra(1, 1000), {"preset": "sentinel2-l2a"}, ["bright deserts", "`offset: -1000`"]),
        (spectra(1, 1000), {"preset": "sentinel2-l2a", "offset": -1000}, None),
    ],
)
def test_sentinel_2(tmp_path, pixels, fields, told):
    expect(check_units(folder(tmp_path, pixels, fields)), told)


def expect(lines, told):
    assert bool(lines) == (told is not None), lines
    for word in told or ():
        assert word in lines[0] and "\n" not in lines[0]


def one_band(low, high):
    return lambda row: RNG.uniform(low, high, (1, 9, 9))


@pytest.mark.parametrize(
    ("pixels", "fields", "told"),
    [
        (one_band(600, 7000), {"preset": "depth"}, ["expected is 0 to 8", "`scale: 0.001`"]),
        (one_band(600, 7000), {"preset": "depth", "scale": 0.001}, None),
        (one_band(0.001, 0.2), {"preset": "sentinel1", "bands": ["VV"]}, ["`to_db: true`"]),
        (one_band(0.001, 0.2), {"preset": "sentinel1", "bands": ["VV"], "to_db": True}, None),
        (one_band(0, 255), {"bands": ["x"], "scaling": "range"}, None),
        (one_band(0, 2), {"bands": ["x"], "scaling": "range"}, ["x holds 0"]),
        (one_band(9, 9), {"bands": ["x"], "scaling": "image"}, None),
        (one_band(-23, -2), {"bands": ["VV"], "mean": [0.1], "std": [0.1]}, ["decibels where"]),
    ],
)
def test_other_sensors(tmp_path, pixels, fields, told):
    expect(check_units(folder(tmp_path, pixels, fields)), told)


def test_encoders_may_expect_other_units_than_the_data(tmp_path):
    data = folder(
        tmp_path, one_band(0, 1), {"bands": ["x"], "scaling": "range", "value_range": [0, 1]}
    )
    assert not check_units(data)
    encoder = Modality(name="a", bands=("x",), mean=(3000.0,), std=(900.0,))
    expect(check_units(data, {"a": encoder}), ["'a'", "x holds"])


def test_statistics_of_the_data_itself_fit(tmp_path):
    make_folder(tmp_path, {"s1": ["a", "b"], "s2": ["a", "b"]}, bands={"s1": 2, "s2": 3})
    assert not check_units(PairedFolder(tmp_path))
