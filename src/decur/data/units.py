"""Whether data and the statistics of its sensors are in the same units: a look at some samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decur.data.base import PairedDataset
from decur.data.mixtures import levels, mixtures
from decur.data.selection import evenly_spaced
from decur.data.sentinel import SHIFT, SHIFTED_FROM, looks_shifted
from decur.errors import BadSampleError
from decur.modality import Modality, sentinel2_bands

log = logging.getLogger(__name__)

_SAMPLES = 8  # whose pictures are looked at
_PIXELS = 4096  # pixels looked at in each band and picture
_CLIPPED = 0.5  # share of the pixels outside the range from which a band is lost
_USED = 0.01  # share of the range below which a band is flat
_CORRECT = "correct modalities.yaml, or let `decur stats` compute the statistics"
_NAMED = 4  # bands that a message names


@dataclass(frozen=True)
class _Misfit:
    """A band whose values and whose expected range do not fit."""

    band: str
    found: tuple[float, float]
    expected: tuple[float, float]


def check_units(data: PairedDataset, modalities: Mapping[str, Modality] | None = None) -> list[str]:
    """Warn of sensors whose statistics do not fit the data, with the likely cause.

    A band does not fit if more than half of its pixels lie outside the range that its scaling
    keeps, or if 96 % of them lie within a hundredth of it: an encoder would see it as a constant.

    Args:
        data: any data set, of which up to 8 samples from all over it are read.
        modalities: how the sensors are scaled, as their encoders say; None: as the data says.

    Returns:
        The warnings, one for each sensor that has any.
    """
    scaled = {
        name: modality
        for name, modality in (modalities or data.modalities).items()
        if name in data.modalities and modality.scaling != "image"
    }
    if not scaled or not len(data):
        return []
    pictures, ids = _some_pictures(data.only(list(scaled), targets=()), list(scaled))
    warnings = [
        line
        for name, modality in scaled.items()
        if pictures[name] and (line := unit_warning(f"modality {name!r}", pictures[name], modality))
    ]
    for name, modality in scaled.items():
        if pictures[name] and not modality.guessed:  # else looked for where they were guessed
            found = np.stack([levels(picture.numpy()) for picture in pictures[name]])
            warnings += mixtures(name, found, ids[name], bands=modality.bands, least=2)
    for line in warnings:
        log.warning("%s", line)
    return warnings


def _some_pictures(
    data: PairedDataset, names: list[str]
) -> tuple[dict[str, list[Tensor]], dict[str, list[str]]]:
    """Return pixels of some samples, a list of (C, P) for each sensor, and their ids."""
    pictures: dict[str, list[Tensor]] = {name: [] for name in names}
    ids: dict[str, list[str]] = {name: [] for name in names}
    for row in evenly_spaced(len(data), _SAMPLES).tolist():
        try:
            images = data[row]["images"]
        except BadSampleError:
            continue  # comes up again when it is read as a sample
        for name in set(names) & set(images):
            flat = images[name].flatten(1)  # (C, P)
            step = max(1, flat.shape[1] // _PIXELS)
            pictures[name].append(flat[:, ::step].float())
            ids[name].append(data.ids[row])
    return pictures, ids


def unit_warning(
    where: str, pictures: list[Tensor], modality: Modality, remedy: str | None = None
) -> str | None:
    """Return what does not fit of one sensor, in one line; None where all fits.

    Args:
        where: sensor or file, for the line.
        pictures: (C, P) pixels of each.
        modality: how they are scaled.
        remedy: what to do; None: to correct what `modalities.yaml` says of the sensor.
    """
    pixels = torch.cat(pictures, dim=1).numpy()  # (C, P)
    if modality.nodata is not None and not modality.converts:
        pixels = np.where(np.isin(pixels, modality.nodata), np.nan, pixels)
    misfits = [
        misfit
        for band, values, expected in zip(modality.bands, pixels, _expected(modality), strict=True)
        if (misfit := _misfit(band, values[~np.isnan(values)], expected))
    ]
    if misfits:
        worst = misfits[0]
        names = ", ".join(misfit.band for misfit in misfits[:_NAMED])
        more = ", ..." if len(misfits) > _NAMED else ""
        cause = _cause(worst) if remedy is None else _cause(worst).partition("?")[0] + "? "
        return (
            f"{where}: the statistics do not fit the data, {len(misfits)} of "
            f"{modality.channels} bands ({names}{more}) would be constant or clipped: "
            f"{worst.band} holds {worst.found[0]:.4g} to {worst.found[1]:.4g}, expected is "
            f"{worst.expected[0]:.4g} to {worst.expected[1]:.4g}; {cause}{remedy or _CORRECT}"
        )
    if _is_shifted(pictures, modality):
        return (
            f"{where}: most pictures have no band darker than {SHIFTED_FROM:g}, and the statistics "
            f"expect one: so are bright deserts, snow and cloud, and Sentinel-2 since processing "
            f"baseline 04.00 (25 January 2022), which adds {SHIFT}; if they are of that, set "
            f"`offset: -{SHIFT}`{f' or {remedy}' if remedy else ''}"
        )
    return None


def _expected(modality: Modality) -> list[tuple[float, float]]:
    """Return the range of raw values that each band keeps."""
    if modality.scaling == "range":
        return [modality.value_range] * modality.channels
    assert modality.mean is not None and modality.std is not None
    width = 2 if modality.scaling == "standard" else 4  # "zscore" clips nothing
    return [
        (mean - width * std, mean + width * std)
        for mean, std in zip(modality.mean, modality.std, strict=True)
    ]


def _misfit(band: str, values: np.ndarray, expected: tuple[float, float]) -> _Misfit | None:
    if not len(values):
        return None
    low, high = expected
    outside = float(((values < low) | (values > high)).mean())
    found = np.percentile(values, (2, 98))
    flat = found[1] - found[0] < _USED * (high - low)
    if outside <= _CLIPPED and not flat:
        return None
    return _Misfit(band, (float(found[0]), float(found[1])), expected)


def _cause(misfit: _Misfit) -> str:
    """Return what most likely makes a band not fit, and its remedy, as far as that can be told."""
    (low, high), (bottom, top) = misfit.found, misfit.expected
    if low >= 0 and bottom < 0 and top <= 30 and high <= 30:
        return "linear power where decibels are expected? set `to_db: true`; else "
    if -100 < low < -1 and high <= 30 and bottom > -1:
        return "decibels where linear power is expected? take other statistics; else "
    if low >= -0.5 and high <= 2 and top > 100:
        return (
            "reflectance from 0 to 1 where digital numbers are expected? set `scale: 10000`; else "
        )
    if top <= 3 and high > 50 * top and low >= -1:
        return "digital numbers where 0 to 1 is expected? set `scale: 0.0001`; else "
    if (bottom, top) == (0, 255) and high > 255:
        return "16-bit pictures where 8-bit ones are expected? set `value_range`; else "
    if top > 0 and 30 * top < high < 30_000 * top:
        return "millimetres where metres are expected? set `scale: 0.001`; else "
    if high > 0 and 30 * high < top < 30_000 * high:
        return "metres where millimetres are expected? set `scale: 1000`; else "
    return "another unit, or another product? "


def _is_shifted(pictures: list[Tensor], modality: Modality) -> bool:
    """Return whether Sentinel-2 looks shifted where its statistics are not."""
    if len(sentinel2_bands(modality.bands)) < 6 or modality.mean is None:
        return False
    if min(modality.mean) >= SHIFT or modality.converts:
        return False
    return 2 * sum(map(looks_shifted, pictures)) > len(pictures)
