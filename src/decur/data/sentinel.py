"""For data sets of Sentinel-1 and Sentinel-2: patches of one file a band, and the offset."""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from decur.data.base import PairedDataset
from decur.data.files import read_image, resize
from decur.data.selection import evenly_spaced
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

log = logging.getLogger(__name__)

Offset = Literal["auto", 0, 1000]

# Since processing baseline 04.00, in force from 25 January 2022, a Sentinel-2 pixel is the
# reflectance times 10,000 plus 1000 (ESA, Sentinel-2 Processing Baseline 04.00, 2022).
SHIFT = 1000
_FIRST_BASELINE, _FIRST_DAY = 400, "20220125"
# Baseline of products that people have processed themselves; it says nothing of the offset.
_OWN_BASELINE = 9999

# The darkest band of a scene has half of its pixels below this, unless it is shifted, or cloud or
# snow from edge to edge. A little below 1000: negative reflectance is why there is a shift.
SHIFTED_FROM = 950.0
_CHECKED = 8  # scenes that are looked at for the offset


class PatchPairs(PairedDataset):
    """Base of data sets of S1 and S2 patches, each a folder with one file a band.

    A pair is named after its S2 patch. Its group is the acquisition that this was cut from: what
    stands before the third `_` of the name.

    Args:
        root: the folder, for messages.
        pairs: `{S2 patch: S1 patch}` of what is wanted.
        there: `{"s1": patches, "s2": patches}` that have a folder.
        modalities: "s1" and "s2", sizes set.
        wanted: what the pairs are, for messages, as "split 'train'".
        layout: what was expected, for messages.

    Raises:
        DataError: if none of the pairs is there.
    """

    def __init__(
        self,
        root: Path,
        pairs: Mapping[str, str],
        *,
        there: Mapping[str, set[str]],
        modalities: dict[str, Modality],
        wanted: str,
        layout: str,
    ) -> None:
        found = {s2: s1 for s2, s1 in pairs.items() if s2 in there["s2"] or s1 in there["s1"]}
        if not found:
            raise DataError(
                f"{root}: none of the {len(pairs)} pairs of {wanted} has a folder of its patches, "
                f"for example {next(iter(pairs), '')!r}; {layout}"
            )
        if lost := len(pairs) - len(found):
            log.warning("%s: %d of %d pairs have no files", root, lost, len(pairs))
        self.root, self.modalities, self.targets = root, modalities, {}
        self.ids = sorted(found)
        self._names = {"s1": [found[id_] for id_ in self.ids], "s2": self.ids}
        self.present = {
            name: np.array([patch in there[name] for patch in names])
            for name, names in self._names.items()
        }
        self.groups = ["_".join(id_.split("_")[:3]) for id_ in self.ids]

    def images(self, index: int, offset: int) -> dict[str, Tensor]:
        """Read the pictures of a pair; the offset is subtracted from that of S2.

        Raises:
            BadSampleError: naming the file, if a band cannot be used.
        """
        images = {name: self._read(name, index) for name in self.sensors_of(index)}
        if "s2" in images:
            images["s2"] = without_offset(images["s2"], offset)
        return images

    def files(self, index: int) -> list[Path]:
        """Return the bands of a pair."""
        return [file for name in self.sensors_of(index) for file in self._bands(name, index)]

    @abstractmethod
    def folder(self, name: str, patch: str) -> Path:
        """Return the folder of a patch of "s1" or "s2"."""

    def file(self, name: str, index: int, *, ending: str) -> Path:
        """Return one file of a patch of "s1" or "s2"."""
        patch = self._names[name][index]
        return self.folder(name, patch) / f"{patch}_{ending}"

    def _read(self, name: str, index: int) -> Tensor:
        return read_bands(self._bands(name, index), self.modalities[name].size)

    def _bands(self, name: str, index: int) -> list[Path]:
        bands = self.modalities[name].bands
        return [self.file(name, index, ending=f"{band_in_file(band)}.tif") for band in bands]

    @abstractmethod
    def _offset(self, index: int) -> int: ...

    def _check_offset(self) -> None:
        check_offset(
            some_scenes(self.present["s2"], lambda row: (self._read("s2", row), self._offset(row))),
            self.root,
        )


def band_in_file(band: str) -> str:
    """Return a band of Sentinel-2 as files spell it: B01 for B1."""
    return f"B0{band[1]}" if len(band) == 2 and band[1].isdigit() else band


def some_scenes(
    has: np.ndarray, scene: Callable[[int], tuple[Tensor, int]]
) -> Iterator[tuple[Tensor, int]]:
    """Yield a few scenes from all over a data set, for `check_offset`.

    Args:
        has: (N,) bool: which samples have the sensor.
        scene: reads a sample's raw image and the offset that is taken off it.
    """
    rows = np.flatnonzero(has)
    for row in rows[evenly_spaced(len(rows), _CHECKED)].tolist():
        try:
            yield scene(row)
        except BadSampleError:
            continue  # comes up again when it is read as a sample


def read_bands(files: Sequence[Path], size: tuple[int, int] | None) -> Tensor:
    """Read files of one band each, resized to one size (bilinear, as the authors do), and stack.

    Args:
        files: one for each band, in order.
        size: height and width.

    Returns:
        (C, H, W) float32, in raw units; NaN where there is no measurement.

    Raises:
        BadSampleError: naming the file that is missing, unreadable, or compressed to 8 bits.
    """
    bands = []
    for file in files:
        band = read_image(file, bands=1)
        if band.dtype == torch.uint8:
            raise BadSampleError(
                file, "has 8-bit pixels, of which the raw values are lost; get the raw release"
            )
        bands.append(resize(band, size))
    return torch.cat(bands)


def offset_of(product: str) -> int:
    """Return the offset in the pixels of a Sentinel-2 product: 0, or 1000 since baseline 04.00.

    Told by the processing baseline in its name (`_N0400_`), else by the first date in it.
    """
    baseline = re.search(r"_N(\d{4})(?:_|\b)", product)
    if baseline and int(baseline[1]) != _OWN_BASELINE:
        return SHIFT if int(baseline[1]) >= _FIRST_BASELINE else 0
    day = re.search(r"(?<!\d)(20\d{6})T\d", product)
    return SHIFT if day and day[1] >= _FIRST_DAY else 0


def without_offset(image: Tensor, offset: int) -> Tensor:
    """Return the image less the offset, at least 0, so that 0 ("no measurement") stays."""
    return (image - offset).clamp_min(0) if offset else image


def looks_shifted(image: Tensor) -> bool:
    """Return whether no band of a raw image of Sentinel-2, (C, ...), is dark."""
    return bool(image.flatten(1).nanmedian(1).values.nan_to_num(0).min() >= SHIFTED_FROM)


def check_offset(scenes: Iterable[tuple[Tensor, int]], where: object) -> None:
    """Warn when most of some scenes look shifted and are not corrected, or the other way round.

    Args:
        scenes: raw images (C, H, W) of Sentinel-2, each with the offset that is taken off it.
        where: the data set, for the message.
    """
    seen = [(looks_shifted(image), offset) for image, offset in scenes]
    kept = sum(shifted and not offset for shifted, offset in seen)
    lost = sum(offset > 0 and not shifted for shifted, offset in seen)
    if 2 * kept > len(seen):
        log.warning(
            "%s: %d of %d Sentinel-2 scenes have no band darker than %g, as bright deserts, snow "
            "and cloud, or as if shifted by %d since processing baseline 04.00; if shifted, set "
            "offset to %d",
            where,
            kept,
            len(seen),
            SHIFTED_FROM,
            SHIFT,
            SHIFT,
        )
    if 2 * lost > len(seen):
        log.warning(
            "%s: %d is taken off Sentinel-2 scenes, of which %d of %d have a band darker than %g, "
            "as if never shifted; if so, set offset to 0",
            where,
            SHIFT,
            lost,
            len(seen),
            SHIFTED_FROM,
        )
