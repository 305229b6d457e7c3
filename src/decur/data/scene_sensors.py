"""The sensors of a folder of scenes: their rasters, and how their pixels are scaled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

import numpy as np

from decur.data import rasters as gdal_rasters
from decur.data.band_statistics import BandStatistics
from decur.data.georeference import METRES_PER_DEGREE
from decur.data.grid import Grid, same_crs, unit_of
from decur.data.listing import subfolders
from decur.data.map_rasters import (
    RASTERS,
    Raster,
    read_raster_header,
    refuse_far,
    wanted_bands,
    warn_beyond,
    warn_palette,
    warn_untiled,
)
from decur.data.pairing import FEW_VALUES, named_as_labels
from decur.data.scene_layout import Scene, date_of
from decur.data.window_reader import SQUARE, read_squares
from decur.errors import ConfigError, DataError
from decur.modality import Modality, guess_augmentation

log = logging.getLogger(__name__)

_LAYOUT = "expected ROOT/<sensor>/<any name>.tif|jp2, which gdal_translate makes of other rasters"
_OTHERS = (".vrt", ".img", ".nc", ".hdf", ".h5", ".bil", ".bsq", ".dat", ".asc", ".grib", ".zarr")
_LOOKS = 64  # squares of a sensor's rasters whose pixels tell its statistics
_LABEL_LOOKS = 8  # squares whose pixels tell whether rasters are labels
_FINER = 1.5  # times finer than the grid, from where on a sensor loses what it sees
_DEGREES = 0.1  # a pixel of so many degrees was meant in metres


def find_rasters(root: Path, names: Sequence[str], window: int) -> dict[str, list[Raster]]:
    """Return the rasters of each sensor, by the names of their files.

    Args:
        root: the folder.
        names: of the sensors; none: all folders with rasters but those of labels.
        window: pixels along a window, for the warning of rasters that are stored in strips.

    Raises:
        DataError: if a folder is missing or holds none, or a raster has no place.
    """
    found: dict[str, list[Raster]] = {}
    for name in names or subfolders(root):
        folder = root / name
        if not folder.is_dir():
            there = ", ".join(subfolders(root)) or "no folder at all"
            raise DataError(f"{folder}: no such folder, there is {there}; {_LAYOUT}")
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in RASTERS)
        if not files:
            if names:
                raise DataError(f"{folder}: holds no rasters; {_LAYOUT}")
            _tell_others(folder)
            continue
        gdal_rasters.import_rasterio(".tif")
        found[name] = [read_raster_header(file) for file in files]
    if not found:
        raise DataError(f"{root}: holds no folder with rasters; {_LAYOUT}")
    if not names:
        found = _without_labels(root, found)
    lines = [warn_beyond([raster for of_sensor in found.values() for raster in of_sensor])]
    for rasters in found.values():
        lines += [warn_untiled(rasters, window), warn_palette(rasters)]
    for line in filter(None, lines):
        log.warning(line)
    return found


def _tell_others(folder: Path) -> None:
    """Say that a folder is left out whose rasters are of formats that are not read as scenes."""
    others = sorted(file for file in folder.iterdir() if file.suffix.lower() in _OTHERS)
    if others:
        log.warning(
            "%s is left out, since it holds no .tif or .jp2: gdal_translate -co TILED=YES "
            "-co COMPRESS=DEFLATE %s scene.tif makes one of others",
            folder,
            quote(str(others[0])),
        )


def _without_labels(root: Path, rasters: dict[str, list[Raster]]) -> dict[str, list[Raster]]:
    """Leave out folders that look like labels, unless no sensor would be left."""
    labels = {n: why for n, of in rasters.items() if (why := _looks_like_labels(n, of))}
    if len(labels) == len(rasters):
        return rasters
    for name, why in labels.items():
        log.warning(
            "%s looks like labels by its %s and is left out; --data.labels %s learns it, and "
            "naming it in --data.modalities trains on it",
            root / name,
            why,
            root / name,
        )
    return {name: of for name, of in rasters.items() if name not in labels}


def _looks_like_labels(name: str, rasters: Sequence[Raster]) -> str | None:
    """Return what makes rasters look like labels; None where nothing does."""
    if named_as_labels(name):
        return "name"
    if any(raster.bands != 1 for raster in rasters):
        return None
    values: set[float] = set()
    for square in (x.numpy() for x in read_squares(rasters, _LABEL_LOOKS)):
        pixels = np.unique(square[np.isfinite(square)])
        if (pixels != np.round(pixels)).any():
            return None
        values.update(pixels.tolist())
        if len(values) > FEW_VALUES:
            return None
    return f"{len(values)} different values" if len(values) > 1 else None


def check_resolution(rasters: Mapping[str, Sequence[Raster]], resolution: float | None) -> None:
    """Refuse a resolution that the reference's CRS means otherwise than a person does.

    Raises:
        ConfigError: for metres where the unit is the degree, with about the same in degrees, and
            for pixels that are larger than a raster.
    """
    if resolution is None:
        return
    if not resolution > 0:
        raise ConfigError(f"resolution: must be above 0, is {resolution:g}")
    from rasterio.crs import CRS

    first = next(iter(rasters.values()))[0]
    if resolution >= _DEGREES and CRS.from_user_input(first.grid.crs).is_geographic:
        raise ConfigError(
            f"resolution: {resolution:g} would be degrees, the unit of {first.path}; {resolution:g}"
            f" m are about {resolution / METRES_PER_DEGREE:.3g} degrees"
        )
    west, south, east, north = first.grid.bounds
    if resolution > max(east - west, north - south):
        raise ConfigError(
            f"resolution: a pixel of {resolution:g} is larger than {first.path}, which is "
            f"{east - west:g} x {north - south:g}; choose a finer one"
        )


def report_scenes(
    rasters: Mapping[str, Sequence[Raster]], scenes: Sequence[Scene], rest: Sequence[Raster]
) -> None:
    """Say which rasters are of no scene, and which are finer than the grid they are read onto.

    Raises:
        DataError: if sensors never meet, naming two rasters and where they lie.
    """
    reference, *others = rasters
    alone = [name for name in others if not any(name in scene.layers for scene in scenes)]
    together = any(len(scene.layers) > 1 for scene in scenes)
    if others and (alone or not together):
        other = alone[0] if alone else others[0]
        raise refuse_far((reference, other), rasters[reference][0], rasters[other][0])
    if rest:
        log.warning(
            "%d rasters overlap none of %s and are left out, such as %s; --data.extent union "
            "takes them",
            len(rest),
            reference,
            rest[0].path,
        )
    _tell_dates(scenes)
    for name in others:
        scene = next(scene for scene in scenes if name in scene.layers)
        own = _pixel_on(scene.layers[name][0][0], scene.grid)
        if scene.grid.resolution[0] > _FINER * own:
            order = ", ".join([name, *(other for other in rasters if other != name)])
            log.warning(
                "%s has pixels of %.3g %s and is read onto the grid of %s, with pixels of %.3g; "
                '--data.modalities "[%s]" reads onto its grid, --data.resolution sets any',
                name,
                own,
                unit_of(scene.grid.crs),
                reference,
                scene.grid.resolution[0],
                order,
            )


def _tell_dates(scenes: Sequence[Scene]) -> None:
    """Say which rasters are taken for dates of one place though no date is in their names."""
    for scene in scenes:
        for layers in scene.layers.values():
            undated = [layer[0].path for layer in layers if date_of(layer[0].path) is None]
            if len(layers) > 1 and undated:
                log.info(
                    "%s and %d more show one rectangle, and are taken for dates of a place, which "
                    "not all of their names tell; take out what is a copy",
                    undated[0],
                    len(layers) - 1,
                )
                return


def _pixel_on(raster: Raster, grid: Grid) -> float:
    """Return about how wide a pixel of a raster is in units of a grid's CRS."""
    if same_crs(raster.grid.crs, grid.crs):
        return raster.grid.resolution[0]
    west, _, east, _ = raster.grid.bounds_on(grid)
    return (east - west) / raster.grid.width


def describe_sensor(
    name: str, rasters: Sequence[Raster], known: Modality | None
) -> tuple[Modality, tuple[int, ...] | None]:
    """Return what a sensor is, and which rows of its rasters' bands are read; None: all.

    What is not known is told by the rasters alone, whatever windows are read of them: an encoder
    that was trained on windows of one size takes those of another.

    Args:
        name: of the sensor.
        rasters: its rasters.
        known: what `modalities` says; None: scaling by the statistics of 64 squares, by the range
            where all rasters are 8-bit.

    Raises:
        DataError: if the rasters have other bands, or differ in their number.
    """
    first = rasters[0]
    if known is not None:
        return known, wanted_bands(first, known)
    for raster in rasters:
        if raster.bands != first.bands:
            raise DataError(
                f"sensor {name!r}: {first.path} has {first.bands} bands, {raster.path} "
                f"{raster.bands}; give all the same, or name `bands` in modalities.yaml"
            )
    kinds = {raster.is_byte: raster.path for raster in rasters}
    if len(kinds) > 1:
        log.warning(
            "sensor %r: %s is 8-bit, and %s is not; are both in the same units? Put one kind in "
            "another folder if not",
            name,
            kinds[True],
            kinds[False],
        )
    bands = first.names or tuple(f"band{i + 1}" for i in range(first.bands))
    if all(raster.is_byte for raster in rasters):
        source = "8-bit rasters"
        modality = Modality(
            name=name, bands=bands, scaling="range", augmentation=guess_augmentation(name)
        )
    else:
        source = f"statistics of up to {_LOOKS} squares of {SQUARE} px"
        modality = _statistics(name, rasters).to_modality(name).with_(bands=bands, guessed=True)
    log.info(
        "modality %r: scaling %r from %s, augmentation %r by its name",
        name,
        modality.scaling,
        source,
        modality.augmentation,
    )
    return modality, None


def _statistics(name: str, rasters: Sequence[Raster]) -> BandStatistics:
    total: BandStatistics | None = None
    for number, square in enumerate(read_squares(rasters, _LOOKS)):
        one = BandStatistics.of_image(square.numpy(), seed=number, is_byte=False)
        total = one if total is None else total.merge(one)
    if total is None or not total.count.all():
        raise DataError(
            f"sensor {name!r}: no measured pixel was found in {rasters[0].path}"
            f"{' and others' if len(rasters) > 1 else ''}; give its statistics in modalities.yaml, "
            "or leave it out"
        )
    return total
