"""What the sensors of a folder of pairs are: as they are given, or guessed from their files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from decur.data.decoding import Header
from decur.data.files import check_bands, read_header
from decur.data.selection import spaced
from decur.data.stats import stats_of_files
from decur.errors import BadSampleError, DataError
from decur.modality import Modality, guess_augmentation, preset_of

log = logging.getLogger(__name__)

_HEADERS = 50  # files of a modality whose headers tell its size
_STATS_FILES = 200  # files of a modality whose pixels tell its statistics, where none are given


def complete_modality(
    name: str, files: list[str], *, modality: Modality | None, max_pixels: int
) -> tuple[Modality, bool | None]:
    """Return the modality with all fields set: guessed if not given, the size from headers.

    The second value says whether its pictures of whole numbers are 8-bit; None where any may be.
    """
    headers: list[Header] = []
    known = modality.channels if modality and not modality.picks else None
    variable = modality.variable if modality else None
    for file in spaced(files, _HEADERS):
        try:
            headers.append(read_header(file, known, variable=variable, max_pixels=max_pixels))
        except BadSampleError as error:
            first_bad = error
    if not headers:
        raise DataError(f"modality {name!r}: none of its files can be read; the first: {first_bad}")
    usual = Counter(header.bands for header in headers).most_common(1)[0][0]
    is_byte = _usual_depth(name, headers)
    if modality is None:
        modality = _guess(name, files, headers, is_byte=is_byte, max_pixels=max_pixels)
    first = next(header for header in headers if header.bands == usual)
    check_bands(first, modality)
    if modality.size is None:
        sizes = Counter(header.size for header in headers if header.bands == usual)
        modality = modality.with_(size=sizes.most_common(1)[0][0])
    if first.alpha and modality.channels == first.bands and modality.picks is None:
        log.info(
            "modality %r: its files have a band that is marked as transparency; it is not read as "
            "a band unless `bands` names %d of them",
            name,
            first.bands + 1,
        )
    if len(units := {header.units for header in headers}) > 1:
        log.warning(
            "modality %r: its files state different units (%s); convert them to one",
            name,
            " and ".join(sorted(", ".join(unit or ("none",)) for unit in units)),
        )
    return modality, None if modality.scaling == "image" else is_byte


def _usual_depth(name: str, headers: list[Header]) -> bool | None:
    """Return whether most files are 8-bit; None where most hold no whole numbers."""
    kinds = Counter(header.is_byte if header.is_integer else None for header in headers)
    usual, count = kinds.most_common(1)[0]
    if usual is not None and count + kinds[None] < len(headers):
        log.warning(
            "modality %r: %d of %d files that were looked at are %s and the others are not; these "
            "are bad samples",
            name,
            count,
            len(headers),
            "8-bit" if usual else "deeper than 8 bits",
        )
    return usual


def _guess(
    name: str, files: list[str], headers: list[Header], *, is_byte: bool | None, max_pixels: int
) -> Modality:
    if is_byte and all(header.is_integer for header in headers):
        bands = Counter(header.bands for header in headers).most_common(1)[0][0]
        modality = Modality(
            name=name,
            bands=headers[0].names or tuple(f"band{i + 1}" for i in range(bands)),
            scaling="range",
            augmentation=guess_augmentation(name),
        )
        source = "8-bit files"
    else:
        sample = spaced(files, _STATS_FILES)
        statistics = stats_of_files(
            sample, sensor=name, is_byte=is_byte, max_pixels=max_pixels, workers=2
        )
        for line in statistics.warnings:
            log.warning("%s", line)
        for line in statistics.suspicions():
            log.info("modality %r: %s", name, line)
        modality = statistics.to_modality(name).with_(guessed=True)
        source = f"statistics of {len(sample)} of {len(files)} files"
    log.info(
        "modality %r: scaling %r from %s, augmentation %r by its name; "
        "`decur stats ROOT` writes modalities.yaml from all files",
        name,
        modality.scaling,
        source,
        modality.augmentation,
    )
    if preset := preset_of(modality.bands):
        log.info(
            "modality %r: %d bands without names are shown in pictures as those of %s in their "
            "order; if they are, write `%s: {preset: %s}` into a file for --data.modalities",
            name,
            modality.channels,
            preset,
            name,
            preset,
        )
    return modality


def warn_of_turned(modalities: Mapping[str, Modality]) -> None:
    """Warn of two sensors of which one has the height of the other as its width."""
    sizes = {name: modality.size for name, modality in modalities.items() if modality.size}
    for name, (height, width) in sizes.items():
        for other, size in sizes.items():
            if name < other and height != width and size == (width, height):
                log.warning(
                    "pictures of %r are %d x %d and those of %r %d x %d: one is turned, perhaps "
                    "since only its files state an orientation (EXIF); turn one of them",
                    name,
                    height,
                    width,
                    other,
                    width,
                    height,
                )
