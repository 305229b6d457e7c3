"""The pass over the files of a data set that computes the statistics of its bands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import yaml

from decur.data.band_statistics import BandStatistics
from decur.data.base import PairedDataset
from decur.data.decoding import TooLargeError
from decur.data.files import (
    MAX_PIXELS,
    Header,
    bands_taken,
    check_bands,
    read_header,
    read_image,
    read_sensor,
)
from decur.data.map_rasters import Raster, read_raster_header, wanted_bands
from decur.data.mixtures import mixtures
from decur.data.pairing import named_as_labels, sensor_files
from decur.data.window_reader import SQUARE, read_squares
from decur.errors import BadSampleError, DataError
from decur.modality import Modality
from decur.modality import guess_augmentation as guess_augmentation  # other people's imports
from decur.runs import write_text

log = logging.getLogger(__name__)

Advance = Callable[[int], object]

_CHUNK = 32  # images a unit of work: fixed, so that the result does not depend on the workers
_MOST_SQUARES = 400  # most squares that are read of a raster too large to be read whole
_SAMPLED_PIXELS = 500_000  # a band, over all images together


def stats_of_files(
    paths: Sequence[str | Path],
    nodata: float | tuple[float, ...] | None = None,
    *,
    sensor: str = "data",
    modality: Modality | None = None,
    is_byte: bool | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    advance: Advance | None = None,
) -> BandStatistics:
    """Compute the statistics of one modality's files; bad files are left out and listed.

    Args:
        paths: of the files.
        nodata: values of the files that mean "no measurement", besides NaN and the files' own.
        sensor: its name, for warnings.
        modality: the bands, array, nodata and units to read them in; None reads them as they are,
            the bands in the order of the first file where they have names.
        is_byte: whether pictures of whole numbers must be 8-bit, or must not; None takes any.
        max_pixels: height times width that is read at most.
        workers: threads that read; the result does not depend on their number.
        advance: told now and then how many more files have been read.

    Raises:
        DataError: if no file can be read, or if the numbers of bands differ.
    """
    if not paths:
        raise DataError("no files to compute statistics of")
    draw = _pixels_to_draw(len(paths))
    counts: dict[int, str | Path] = {}  # of bands, with a file of each

    def of_file(index: int) -> dict[str, BandStatistics]:
        path = paths[index]
        try:
            found = of_picture(path, index)
        except TooLargeError as error:
            try:
                raster = read_raster_header(path)
            except DataError:  # it has no place, so that it cannot be read in windows
                raise error from None
            found = _of_scene(raster, modality, nodata, names, max_pixels, draw)
        counts.setdefault(len(found.count), path)
        if len(counts) > 1:
            (few, one), (many, other) = sorted(counts.items())
            raise DataError(
                f"{one} has {few} band{'s' * (few > 1)}, {other} {many}; put them into different "
                "folders, or say in modalities.yaml which are right"
            )
        return {"": found}

    def of_picture(path: str | Path, index: int) -> BandStatistics:
        if modality is None:
            image = read_image(
                path,
                len(names) if names else None,
                nodata=nodata,
                pick=names,
                is_byte=is_byte,
                max_pixels=max_pixels,
            ).numpy()
        else:
            picture = read_sensor(path, modality, is_byte=is_byte, max_pixels=max_pixels)
            image = modality.convert(picture).numpy()
        byte = image.dtype == np.uint8
        converted = modality is not None and modality.converts
        if not byte and not converted and np.nanmin(image) >= 0 and np.nanmax(image) <= 255:
            byte = header(path).is_byte  # 8-bit with holes is float by now
        return BandStatistics.of_image(image, draw, seed=index, is_byte=byte)

    def header(path: str | Path) -> Header:
        bands, variable = (modality.channels, modality.variable) if modality else (None, None)
        return read_header(path, bands, variable=variable, max_pixels=sys.maxsize)

    names = None if modality else _first_names(paths, header)
    found, bad = _accumulate(of_file, len(paths), workers, advance)
    if not found:
        if modality is not None:
            with suppress(BadSampleError):
                check_bands(header(paths[0]), modality)
        raise DataError(f"none of {len(paths)} files can be read; the first: {': '.join(bad[0])}")
    total = found[""]
    total.bad = bad
    unusable = {path for path, _ in bad}
    good = [str(path) for path in paths if str(path) not in unusable]
    total.names = header(good[0]).names
    bands = modality.bands if modality else total.band_names
    if not total.is_byte:
        total.warnings += mixtures(sensor, total.levels, good, bands=bands)
    if quality := [band for band in bands if named_as_labels(band)]:
        total.warnings.append(
            f"{sensor}: band {', '.join(quality)} is no measurement by its name; leave it out with "
            "`bands` in modalities.yaml"
        )
    return total


def _first_names(
    paths: Sequence[str | Path], header: Callable[[str | Path], Header]
) -> tuple[str, ...] | None:
    """Return the names of the bands of the first file that can be read."""
    for path in paths:
        with suppress(BadSampleError):
            return header(path).names
    return None


def _of_scene(
    raster: Raster,
    modality: Modality | None,
    nodata: float | tuple[float, ...] | None,
    names: Sequence[str] | None,
    max_pixels: int,
    draw: int,
) -> BandStatistics:
    """Compute the statistics of a raster on a map by squares from all over it.

    Args:
        raster: any.
        modality: as of `stats_of_files`.
        nodata: as of `stats_of_files`.
        names: of the bands in their order, where those of the raster are named.
        max_pixels: how many are read at most, about.
        draw: pixels of each band for the percentiles.

    Raises:
        DataError: if it has other bands.
        BadSampleError: if it cannot be read, or has no measured pixel.
    """
    most = min(_MOST_SQUARES, max(1, max_pixels // SQUARE**2))
    log.info(
        "%s: %s x %s pixels; up to %s squares of %d px all over it are read, for want of memory",
        raster.path,
        f"{raster.grid.height:,}",
        f"{raster.grid.width:,}",
        f"{most:,}",
        SQUARE,
    )
    meant, bands = nodata, None
    if modality is not None:
        meant, bands = modality.nodata, wanted_bands(raster, modality)
    elif names and (rows := bands_taken(raster.names or (), raster.bands, names)):
        bands = tuple(rows)
    total: BandStatistics | None = None
    for seed, square in enumerate(read_squares([raster], most, nodata=meant, bands=bands)):
        image = square if modality is None else modality.convert(square)
        is_byte = raster.is_byte and (modality is None or not modality.converts)
        one = BandStatistics.of_image(image.numpy(), -(-draw // most), seed=seed, is_byte=is_byte)
        total = one if total is None else total.merge(one)
    if total is None or not total.count.any():
        raise BadSampleError(raster.path, "has no measured pixel (all NaN or nodata); delete it")
    total.images, total.levels = 1, total.levels[:1]
    return total


def compute_stats(
    source: PairedDataset | str | Path,
    modalities: Mapping[str, Modality] | None = None,
    *,
    workers: int = 1,
    advance: Advance | None = None,
    max_pixels: int = MAX_PIXELS,
    pattern: str | Mapping[str, str] | None = None,
) -> dict[str, BandStatistics]:
    """Compute the statistics of each modality in one pass, without holding the data.

    Args:
        source: the root of a folder of pairs (files are read as they are, before any resizing),
            or any data set (its samples are read; a bad one is left out whole).
        modalities: of a root: those to read, in their bands and units; None reads every folder
            of pictures.
        workers: threads that read; the result does not depend on their number.
        advance: told now and then how many more files, or samples, have been read.
        max_pixels: of a root: height times width that is read at most.
        pattern: of a root: where its files lie, see `PairedFolder`.

    Returns:
        `{modality: BandStatistics}`.

    Raises:
        DataError: if there is nothing to read, naming the folder.
    """
    if not isinstance(source, PairedDataset):
        folders = sensor_files(source, tuple(modalities) if modalities else None, pattern)
        return {
            name: stats_of_files(
                list(files.values()),
                sensor=name,
                modality=modalities[name] if modalities else None,
                max_pixels=max_pixels,
                workers=workers,
                advance=advance,
            )
            for name, files in folders.items()
        }
    dataset = source
    draw = _pixels_to_draw(len(dataset))

    def of_sample(index: int) -> dict[str, BandStatistics]:
        return {
            name: BandStatistics.of_image(image.numpy(), draw, seed=index)
            for name, image in dataset[index]["images"].items()
        }

    found, bad = _accumulate(of_sample, len(dataset), workers, advance)
    if not found:
        first = f"; the first: {': '.join(bad[0])}" if bad else ""
        raise DataError(f"none of {len(dataset)} samples can be read{first}")
    for name, stats in found.items():
        stats.bad = bad
        stats.names = dataset.modalities[name].bands
    return {name: found[name] for name in dataset.modalities if name in found}


def write_modalities(
    path: str | Path,
    statistics: Mapping[str, BandStatistics],
    *,
    modalities: Mapping[str, Modality] | None = None,
) -> dict[str, Modality]:
    """Write modalities as YAML that `load_modalities` takes; percentiles come as comments.

    Args:
        path: file to write, whole or not at all.
        statistics: from `compute_stats`.
        modalities: those whose mean and std shall be replaced, all else kept; others are made
            by `BandStatistics.to_modality`.

    Returns:
        What was written.
    """
    path = Path(path)
    written: dict[str, Modality] = {}
    lines = ["# Modalities with the statistics of their bands, in raw units."]
    for name, stats in statistics.items():
        written[name] = stats.to_modality(name, (modalities or {}).get(name))
        lines += ["", *(f"# {line}" for line in stats.report())]
        fields = {k: v for k, v in written[name].to_dict().items() if k != "name"}
        lines.append(
            yaml.safe_dump({name: fields}, sort_keys=False, default_flow_style=None, width=100)
        )
    write_text(path, "\n".join(lines))
    return written


def _pixels_to_draw(images: int) -> int:
    return min(max(_SAMPLED_PIXELS // images, 4), 16_384)


def _accumulate(
    read: Callable[[int], dict[str, BandStatistics]],
    n: int,
    workers: int,
    advance: Advance | None,
) -> tuple[dict[str, BandStatistics], list[tuple[str, str]]]:
    """Merge the statistics of `read(0)` to `read(n - 1)` by name; list the bad samples."""

    def of_chunk(start: int) -> tuple[dict[str, BandStatistics], list[tuple[str, str]]]:
        good, bad = [], []
        for index in range(start, min(start + _CHUNK, n)):
            try:
                good.append(read(index))
            except BadSampleError as error:
                bad.append((error.path, error.reason))
        if advance is not None:
            advance(len(good) + len(bad))
        return _merge_all(good), bad

    with ThreadPoolExecutor(max(workers, 1)) as pool:  # decoders and NumPy release the GIL
        chunks = list(pool.map(of_chunk, range(0, n, _CHUNK)))
    return _merge_all([part for part, _ in chunks]), [entry for _, bad in chunks for entry in bad]


def _merge_all(parts: list[dict[str, BandStatistics]]) -> dict[str, BandStatistics]:
    """Merge in pairs, then pairs of pairs: each drawn pixel is copied log(n) times, not n."""
    while len(parts) > 1:
        parts = [_merge_two(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0] if parts else {}


def _merge_two(
    a: dict[str, BandStatistics], b: dict[str, BandStatistics] | None = None
) -> dict[str, BandStatistics]:
    b = b or {}
    both = {name: a[name].merge(b[name]) for name in a.keys() & b.keys()}
    return {**a, **b, **both}
