"""Statistics of the bands of a data set, in one pass over its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml

from decur.data.bands import BandStatistics
from decur.data.base import PairedDataset
from decur.data.files import read_header, read_image
from decur.data.listing import modality_files
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

Advance = Callable[[int], object]

_CHUNK = 32  # images a unit of work: fixed, so that the result does not depend on the workers
_SAMPLED_PIXELS = 500_000  # a band, over all images together


def stats_of_files(
    paths: Sequence[str | Path],
    nodata: float | tuple[float, ...] | None = None,
    workers: int = 1,
    advance: Advance | None = None,
) -> BandStatistics:
    """Statistics of one modality's files; bad ones are left out and listed.

    Args:
        paths: of the files.
        nodata: raw values that mean "no measurement", besides NaN and the files' own.
        workers: threads that read; the result does not depend on their number.
        advance: told now and then how many more files have been read.

    Raises:
        DataError: if no file can be read, or if the numbers of bands differ.
    """
    if not paths:
        raise DataError("no files to compute statistics of")
    draw = _pixels_to_draw(len(paths))

    def of_file(index: int) -> dict[str, BandStatistics]:
        path = paths[index]
        image = read_image(path, nodata=nodata).numpy()
        is_byte = image.dtype == np.uint8
        if not is_byte and np.nanmin(image) >= 0 and np.nanmax(image) <= 255:
            is_byte = read_header(path).is_byte  # 8-bit with holes is float by now
        return {"": BandStatistics.of_image(image, draw, index, is_byte)}

    found, bad = _accumulate(of_file, len(paths), workers, advance)
    if not found:
        raise DataError(f"none of {len(paths)} files can be read; the first: {': '.join(bad[0])}")
    total = found[""]
    total.bad = bad
    unusable = {path for path, _ in bad}
    first_good = next(path for path in paths if str(path) not in unusable)
    total.names = read_header(first_good).names
    return total


def compute_stats(
    source: PairedDataset | str | Path,
    modalities: Mapping[str, Modality] | None = None,
    workers: int = 1,
    advance: Advance | None = None,
) -> dict[str, BandStatistics]:
    """Statistics of each modality, in one pass, without holding the data.

    Args:
        source: the root of a folder of pairs (files are read as they are, before any resizing),
            or any data set (its samples are read; a bad one is left out whole).
        modalities: of a root: those to read, for their names and `nodata`; None reads every
            folder of pictures.
        workers: threads that read; the result does not depend on their number.
        advance: told now and then how many more files, or samples, have been read.

    Returns:
        `{modality: BandStatistics}`.

    Raises:
        DataError: if there is nothing to read, naming the folder.
    """
    if not isinstance(source, PairedDataset):
        folders = modality_files(source, tuple(modalities) if modalities else None)
        return {
            name: stats_of_files(
                list(files.values()),
                modalities[name].nodata if modalities else None,
                workers,
                advance,
            )
            for name, files in folders.items()
        }
    dataset = source
    draw = _pixels_to_draw(len(dataset))

    def of_sample(index: int) -> dict[str, BandStatistics]:
        return {
            name: BandStatistics.of_image(image.numpy(), draw, seed=index)
            for name, image in dataset.read(index)["images"].items()
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
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text("\n".join(lines), encoding="utf-8")
    unfinished.replace(path)
    return written


def _pixels_to_draw(images: int) -> int:
    return min(max(_SAMPLED_PIXELS // images, 4), 16_384)


def _accumulate(
    read: Callable[[int], dict[str, BandStatistics]],
    n: int,
    workers: int,
    advance: Advance | None,
) -> tuple[dict[str, BandStatistics], list[tuple[str, str]]]:
    """Merged statistics of `read(0)` to `read(n - 1)` by name, and the bad samples among them."""

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
