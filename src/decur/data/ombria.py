"""OMBRIA: pairs of Sentinel-1 and Sentinel-2 pictures of floods, small enough to clone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, check_choices
from decur.data.files import read_image, read_mask, resize, resize_mask
from decur.data.sample import Sample, Target
from decur.errors import DataError
from decur.modality import Modality

SPLITS = ("train", "test", "2021")
SIZES = (128, 256)
CLASSES = ("dry", "flooded")

_MASK = "mask"
_SENSORS = {"s1": "Sentinel1", "s2": "Sentinel2"}  # and their folders below an event's
_FILE = re.compile(r"S([12])_(before|after|mask)_(\d+)\.png", re.IGNORECASE)
_EVENT_FILE = re.compile(r"(imbefore|imafter|gt)_(\d+)\.png", re.IGNORECASE)
_KINDS = {"imbefore": "before", "imafter": "after", "gt": _MASK}
_LAYOUT = (
    "expected ROOT/OmbriaS1/{train,test}/{BEFORE,AFTER,MASK}/S1_before_0001.png ..., OmbriaS2 "
    "alike, and 2021/<EVENT>/{Sentinel1,Sentinel2}/; "
    "git clone https://github.com/geodrak/OMBRIA"
)

# Either comes as 8-bit pictures with a stretch of their own: nothing to cut or normalise.
_MODALITIES = (
    Modality(name="s1", bands=("backscatter",), scaling="range", augmentation="sar"),
    Modality(name="s2", bands=("band1", "band2", "band3"), scaling="range"),
)

Files = dict[str, str]  # of one place: {"s1_before", "s1_after", "s1_mask", "s2_before", ...: file}


@DATASETS.register("Ombria")
class Ombria(PairedDataset):
    """OMBRIA: 694 flooded places of 256 x 256 pixels, each before and after: 1,388 pairs.

    Sentinel-1 (one band) and Sentinel-2 (three bands, false colour), 8-bit; the flood as the mask
    `flood` of the pictures from after it. Published by Drakonakis et al.; in the layout that
    `git clone https://github.com/geodrak/OMBRIA` gives:

        ROOT/OmbriaS1/{train,test}/{BEFORE,AFTER,MASK}/S1_{before,after,mask}_0001.png
        ROOT/OmbriaS2/{train,test}/{BEFORE,AFTER,MASK}/S2_{before,after,mask}_0001.png
        ROOT/2021/<EVENT>/{Sentinel1,Sentinel2}/{BEFORE,AFTER,MASK}/{imbefore,imafter,gt}_1.png

    A sample is named `<number>_before` or `<number>_after`; its group is the place, and for the 150
    places of 2021 the event. A picture that lacks its partner is kept, the other marked absent.

    The official test places lie among those for training, mostly next to one: a test on them
    flatters. That of 2021 is on other floods.

    Args:
        root: Folder that was cloned.
        split: Split: "train", "test" or "2021" (all its events); None for train and test.
        size: Height and width, 256 or, halved, 128.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found.
        ConfigError: for wrong options.

    Source: Drakonakis et al. 2022, "OmbriaNet: Supervised Flood Mapping via Convolutional Neural
    Networks Using Multitemporal Sentinel-1 and Sentinel-2 Data Fusion".

    Examples:
        >>> data = Ombria("OMBRIA", split="train", size=128)
        >>> data[0]["images"]["s2"].shape
        torch.Size([3, 128, 128])
    """

    groups: list[str]

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        size: Literal[128, 256] = 256,
    ) -> None:
        check_choices(
            "Ombria",
            split=(split, (*SPLITS, None)),
            size=(size, SIZES),
        )
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; {_LAYOUT}")
        places = _events(self.root) if split == "2021" else _places(self.root, split)
        self._samples: list[tuple[Files, str]] = []
        self.ids, self.groups = [], []
        for place, files in sorted(places.items()):
            for date in ("before", "after"):
                if any(f"{sensor}_{date}" in files for sensor in _SENSORS):
                    self._samples.append((files, date))
                    self.ids.append(f"{place}_{date}")
                    self.groups.append(place.rpartition("_")[0] or place)  # the event, if any
        self.modalities = {m.name: m.with_(size=(size, size)) for m in _MODALITIES}
        self.present = {
            name: np.array([f"{name}_{date}" in files for files, date in self._samples])
            for name in self.modalities
        }
        self.targets = {"flood": Target("mask", CLASSES)}

    def read(self, index: int) -> Sample:
        """Read one pair; its target holds the flood only where there is a mask.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        files, date = self._samples[index]
        sample: Sample = {"id": self.ids[index], "images": {}, "target": {}}
        for name in self.sensors_of(index):
            modality = self.modalities[name]
            picture = read_image(files[f"{name}_{date}"], modality.channels)
            sample["images"][name] = resize(picture, modality.size)
        if mask := self._mask(index):
            sample["target"]["flood"] = _read_flood(mask, self.modalities["s1"].size)
        return sample

    def files(self, index: int) -> list[str]:
        """Return the pictures of a pair, and the mask if there is one."""
        files, date = self._samples[index]
        pictures = [files[f"{name}_{date}"] for name in self.sensors_of(index)]
        return [file for file in (*pictures, self._mask(index)) if file is not None]

    def _mask(self, index: int) -> str | None:
        """Return the mask of a pair, if it has one that is wanted."""
        return _mask(*self._samples[index]) if self.targets else None


def _places(root: Path, split: str | None) -> dict[str, Files]:
    """Return `{number: files}` of the wanted splits."""
    found: dict[str, Files] = {}
    split_of: dict[str, str] = {}
    for name in ("train", "test") if split is None else (split,):
        for number in (1, 2):
            for file, match in _scan(root / f"OmbriaS{number}" / name, _FILE):
                sensor, kind, place = match[1], match[2].lower(), match[3]
                if sensor != str(number):
                    raise DataError(f"{file}: a picture of Sentinel-{sensor} in OmbriaS{number}")
                if split_of.setdefault(place, name) != name:
                    raise DataError(f"{file}: place {place} is in {split_of[place]} too; keep one")
                _add(found.setdefault(place, {}), f"s{sensor}_{kind}", file)
    return found


def _events(root: Path) -> dict[str, Files]:
    """Return `{<EVENT>_<number>: files}` of the floods of 2021."""
    found: dict[str, Files] = {}
    folder = root / "2021"
    events = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    events = [event for event in events if (folder / event).is_dir()]
    if not events:
        raise DataError(f"{folder}: holds no event; {_LAYOUT}")
    for event in events:
        for sensor, name in _SENSORS.items():
            for file, match in _scan(folder / event / name, _EVENT_FILE):
                place = f"{event}_{match[2]}"
                _add(found.setdefault(place, {}), f"{sensor}_{_KINDS[match[1].lower()]}", file)
    return found


def _scan(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the files below a folder whose names are as expected."""
    matched = False
    for kind in ("BEFORE", "AFTER", "MASK"):
        if not (folder / kind).is_dir():
            raise DataError(f"{folder / kind}: no such folder; {_LAYOUT}")
        for entry in sorted((folder / kind).iterdir()):
            if match := pattern.fullmatch(entry.name):
                matched = True
                yield str(entry), match
    if not matched:
        there = min((entry.name for entry in folder.glob("*/*")), default="nothing")
        raise DataError(f"{folder}: no picture in what is there ({there}); {_LAYOUT}")


def _add(files: Files, key: str, file: str) -> None:
    if key in files:
        raise DataError(f"{files[key]} and {file} are of the same place and date; keep one")
    files[key] = file


def _mask(files: Files, date: str) -> str | None:
    """Return the mask of a place after the flood; both sensors have the same."""
    return files.get(f"s1_{_MASK}", files.get(f"s2_{_MASK}")) if date == "after" else None


def _read_flood(file: str, size: tuple[int, int] | None) -> Tensor:
    mask = read_mask(file)  # (H, W), 0 and 1, or 0 and 255
    return resize_mask((mask > (0 if int(mask.max()) <= 1 else 127)).long(), size)
