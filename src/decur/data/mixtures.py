"""Whether the files of a sensor are of one kind: in one unit and of one processing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import compress

import numpy as np

from decur.data.sentinel import SHIFT, SHIFTED_FROM
from decur.modality import guess_augmentation, sentinel2_bands

_PIXELS = 1024  # pixels looked at in each band and picture
_FEW, _SOME = 0.05, 0.25  # share of the files that makes a mixture; of what deserts look like, too
_DECIBELS = -1.0  # below it all bands have their medians: no power, no reflectance
_POWER = 30.0  # above it no linear power of a radar lies
_APART = 30.0  # ratio of the values of files next to each other: no scene differs so from another
_DARK = 900.0  # below it 2 % of the pixels of the darkest band lie where nothing is shifted


def levels(image: np.ndarray) -> np.ndarray:
    """Return what tells the unit of a picture, (4,) float32.

    Args:
        image: (C, ...), NaN where there is no measurement.

    Returns:
        The value below which 2 % of the pixels of the darkest band lie, without those that are 0;
        the highest median of a band; the lowest value; the value that 2 % of all pixels exceed.
    """
    flat = image.reshape(len(image), -1)
    flat = flat[:, :: max(1, flat.shape[1] // _PIXELS)].astype(np.float32)  # (C, P)
    measured = flat[:, ~np.isnan(flat).all(0)]
    if not measured.size:
        return np.full(4, np.nan, np.float32)
    measured = measured[~np.isnan(measured).all(1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of bands that are 0
        dark = np.nanpercentile(np.where(measured == 0, np.nan, measured), 2, axis=1)
    highest = np.nanmedian(measured, 1).max()
    top = np.nanpercentile(measured, 98)
    return np.array([np.nanmin([*dark, np.inf]), highest, np.nanmin(measured), top], np.float32)


def mixtures(
    name: str, found: np.ndarray, files: Sequence[str], *, bands: Sequence[str], least: int = 1
) -> list[str]:
    """Return a line for each way in which the files of a sensor are of two kinds.

    Args:
        name: of the sensor.
        found: `levels` of each file, (N, 4).
        files: their names, for examples.
        bands: of the sensor.
        least: number of files that makes a kind.
    """
    if guess_augmentation(name) == "dem":
        return []  # heights are of any sign and size
    dark, high, bottom, top = found.T
    decibels, power = high < _DECIBELS, (bottom >= 0) & (top <= _POWER) & (top > 0)
    lines = _line(
        name,
        files,
        (decibels, "look like decibels"),
        (power, "like linear power"),
        "convert them to one; `to_db: true` is for all files of a sensor",
        max(least, _FEW * len(files)),
    )
    small, large = _far_apart(np.where((bottom >= 0) & (top > 0), top, np.nan))
    if small.any():
        least_large, most_small = top[large].min(), top[small].max()
        lines += _line(
            name,
            files,
            (small, f"hold numbers up to {most_small:.3g}"),
            (large, f"numbers beyond {least_large:.3g}"),
            "if these are reflectance and digital numbers, or metres and millimetres, convert them "
            "to one unit",
            max(least, _FEW * len(files)),
        )
    known = sentinel2_bands(bands)
    if len(known) >= 6:
        share = _FEW if "B10" in known else _SOME  # of cirrus, which is dark everywhere
        lines += _line(
            name,
            files,
            (dark >= SHIFTED_FROM, f"have no band darker than {SHIFTED_FROM:g}"),
            (dark < _DARK, "have"),
            f"if the former are no deserts, snow or cloud but Sentinel-2 since processing baseline "
            f"04.00 (25 January 2022), take {SHIFT} off them, or put them into a folder of their "
            f"own with `offset: -{SHIFT}`",
            max(least, share * len(files)),
        )
    return lines


def _line(
    name: str,
    files: Sequence[str],
    first: tuple[np.ndarray, str],
    second: tuple[np.ndarray, str],
    remedy: str,
    least: float,
) -> list[str]:
    """Return a line about two kinds of files, (N,) bool each; none where one has too few."""
    told = []
    for which, what in (first, second):
        if which.sum() < max(least, 1):
            return []
        told.append(f"{which.sum()} {what} (such as {next(compress(files, which))})")
    return [f"{name}: of {len(files)} files {told[0]}, {told[1]}; {remedy}"]


def _far_apart(top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which files lie below and above the widest gap between their values, if any is."""
    order = np.sort(top[~np.isnan(top)])
    ratios = order[1:] / order[:-1]
    if not len(ratios) or ratios.max() < _APART:
        return np.zeros(len(top), bool), np.zeros(len(top), bool)
    split = order[int(ratios.argmax())]
    return top <= split, top > split
