"""BigEarthNet-MM (v1): pairs of Sentinel-1 and Sentinel-2 patches, labelled by land cover."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from decur.data.base import DATASETS, change_modalities, check_choices
from decur.data.sample import Sample, Target
from decur.data.sentinel import Offset, PatchPairs, offset_of
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SIZE = (120, 120)  # of the 10 m bands; those of 20 m have 60 x 60 pixels, those of 60 m 20 x 20

# CORINE Land Cover, level 3, in the order of the authors' label_indices.json (Sumbul et al. 2021).
CLASSES_43 = (
    *("Continuous urban fabric", "Discontinuous urban fabric", "Industrial or commercial units"),
    *("Road and rail networks and associated land", "Port areas", "Airports"),
    *("Mineral extraction sites", "Dump sites", "Construction sites", "Green urban areas"),
    *("Sport and leisure facilities", "Non-irrigated arable land", "Permanently irrigated land"),
    *("Rice fields", "Vineyards", "Fruit trees and berry plantations", "Olive groves", "Pastures"),
    *("Annual crops associated with permanent crops", "Complex cultivation patterns"),
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    *("Agro-forestry areas", "Broad-leaved forest", "Coniferous forest", "Mixed forest"),
    *("Natural grassland", "Moors and heathland", "Sclerophyllous vegetation"),
    *("Transitional woodland/shrub", "Beaches, dunes, sands", "Bare rock"),
    *("Sparsely vegetated areas", "Burnt areas", "Inland marshes", "Peatbogs", "Salt marshes"),
    *("Salines", "Intertidal flats", "Water courses", "Water bodies", "Coastal lagoons"),
    *("Estuaries", "Sea and ocean"),
)

# The 19 classes of Sumbul et al. 2021, each with the indices of the 43 that it gathers; what no
# class gathers (3-10, 30, 32, 37) is dropped.
_GATHERED: dict[str, tuple[int, ...]] = {
    "Urban fabric": (0, 1),
    "Industrial or commercial units": (2,),
    "Arable land": (11, 12, 13),
    "Permanent crops": (14, 15, 16, 18),
    "Pastures": (17,),
    "Complex cultivation patterns": (19,),
    CLASSES_43[20]: (20,),
    "Agro-forestry areas": (21,),
    "Broad-leaved forest": (22,),
    "Coniferous forest": (23,),
    "Mixed forest": (24,),
    "Natural grassland and sparsely vegetated areas": (25, 31),
    "Moors, heathland and sclerophyllous vegetation": (26, 27),
    "Transitional woodland, shrub": (28,),
    "Beaches, dunes, sands": (29,),
    "Inland wetlands": (33, 34),
    "Coastal wetlands": (35, 36),
    "Inland waters": (38, 39),
    "Marine waters": (40, 41, 42),
}
CLASSES_19 = tuple(_GATHERED)
TO_19 = {CLASSES_43[old]: new for new, olds in enumerate(_GATHERED.values()) for old in olds}
_TO_43 = {name: index for index, name in enumerate(CLASSES_43)}

# Statistics of its authors' bigearthnet-models, S1 in dB, S2 in DN.
_MODALITIES = {
    "s1": Modality.preset("sentinel1").with_(
        name="s1", mean=(-12.59, -19.22), std=(5.04, 5.42), size=SIZE
    ),
    "s2": Modality.preset("sentinel2-l2a").with_(name="s2", size=SIZE),
}

_LAYOUT = (
    "expected ROOT/BigEarthNet-v1.0/<S2 patch>/, ROOT/BigEarthNet-S1-v1.0/<S1 patch>/ and the "
    "splits ROOT/train.csv, val.csv, test.csv; the archives are at https://bigearth.net (TU "
    "Berlin, Zenodo 12687186), the splits in BigEarthNet-MM_19-classes_models of git.tu-berlin.de"
)


@DATASETS.register("BigEarthNetMM")
class BigEarthNetMM(PatchPairs):
    """BigEarthNet-MM, release 1: 590,326 pairs of patches of 120 x 120 pixels in ten countries.

    Sentinel-1 in dB (VV, VH) and Sentinel-2 L2A (12 bands, resized to 120 x 120), with the land
    cover that occurs in them as a multilabel. Published by RSiM, TU Berlin (https://bigearth.net),
    archived as Zenodo 12687186. Unpacked it must lie like this:

        ROOT/BigEarthNet-v1.0/<S2 patch>/<S2 patch>_B01.tif ... _B12.tif, _labels_metadata.json
        ROOT/BigEarthNet-S1-v1.0/<S1 patch>/<S1 patch>_VV.tif, _VH.tif, _labels_metadata.json
        ROOT/train.csv, val.csv, test.csv      (rows: S2 patch, S1 patch; or bigearthnet-*.csv)

    A pair is named after its S2 patch. Its group is the acquisition that it was cut from: the
    official splits share acquisitions. An encoder that was trained on Sentinel-1 and the 13 bands
    of L1C takes this data with `modalities={"s1": "sentinel1", "s2": "sentinel2-l1c"}`, which
    scales it alike, and `decur transfer --missing_bands empty`, which inserts an empty B10.

    The reading is our own: torchgeo's class gives both sensors in one integer tensor, which cuts
    the decimals off the decibels, and brings dependencies that nothing else here needs.

    Args:
        root: Folder of the data set.
        split: Split: "train", "val" or "test" (19-class splits, without snow and clouds); None for
            all three, or, where there are no such files, for all S1 patches, paired by their JSON.
        classes: Number of classes: 19 (Sumbul et al. 2021), 43 (CORINE), or None to read no labels.
        offset: Offset that is taken off S2: 1000 for products of processing baseline 04.00 and
            later; "auto" goes by the baseline that the JSON names, or by the date. The release has
            none such.
        modalities: Changes of the modalities, `{name: preset or fields}`; by default the statistics
            are the data set's own.
        s1_folder: Name of the folder of S1 patches.
        s2_folder: Name of the folder of S2 patches.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found.
        ConfigError: for wrong options.

    Source: Sumbul et al. 2021, "BigEarthNet-MM: A Large-Scale, Multimodal, Multilabel Benchmark
    Archive for Remote Sensing Image Classification and Retrieval".

    Examples:
        >>> data = BigEarthNetMM("bigearthnet", split="train")
        >>> data[0]["images"]["s2"].shape
        torch.Size([12, 120, 120])
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        classes: int | None = 19,
        offset: Offset = "auto",
        modalities: dict[str, Any] | None = None,
        s1_folder: str = "BigEarthNet-S1-v1.0",
        s2_folder: str = "BigEarthNet-v1.0",
    ) -> None:
        check_choices(
            "BigEarthNetMM",
            classes=(classes, (19, 43, None)),
            offset=(offset, get_args(Offset)),
            split=(split, (*SPLITS, None)),
        )
        self.offset, self.classes = offset, classes
        self._folders = {"s1": Path(root) / s1_folder, "s2": Path(root) / s2_folder}
        there = {name: _patches(folder) for name, folder in self._folders.items()}
        super().__init__(
            Path(root),
            _pairs(Path(root), split, self._folders["s1"], there["s1"]),
            there=there,
            modalities=change_modalities(_MODALITIES, modalities),
            wanted=f"split {split!r}",
            layout=_LAYOUT,
        )
        if classes is not None:
            self.targets["cover"] = Target(
                "multilabel", CLASSES_19 if classes == 19 else CLASSES_43
            )
        self._check_offset()

    def read(self, index: int) -> Sample:
        """Read one pair.

        Raises:
            BadSampleError: naming the file, if a band or the labels cannot be used.
        """
        about = self._about(index)
        target = {"cover": self._cover(index, about)} if self.targets else {}
        images = self.images(index, self._offset(index, about))
        sample: Sample = {"id": self.ids[index], "images": images}
        return {**sample, "target": target} if target else sample

    def files(self, index: int) -> list[Path]:
        """Return the bands of a pair, and the JSON of its labels."""
        return [*super().files(index), *([self._json(index)] if self.targets else [])]

    def folder(self, name: str, patch: str) -> Path:
        """Return the folder of a patch of "s1" or "s2"."""
        return self._folders[name] / patch

    def _about(self, index: int) -> dict[str, Any]:
        """Return the JSON of a patch; an empty mapping where no labels are wanted."""
        return _read_json(self._json(index)) if self.targets else {}

    def _json(self, index: int) -> Path:
        name = "s2" if self.present["s2"][index] else "s1"  # both hold the labels
        return self.file(name, index, ending="labels_metadata.json")

    def _offset(self, index: int, about: Mapping[str, Any] | None = None) -> int:
        if self.offset != "auto":
            return self.offset
        about = self._about(index) if about is None else about
        return offset_of(str(about.get("tile_source", self.ids[index])))

    def _cover(self, index: int, about: Mapping[str, Any]) -> Tensor:
        file, labels = self._json(index), about.get("labels")
        if not isinstance(labels, list):
            raise BadSampleError(file, "has no list `labels`; restore it from the archive")
        vector = torch.zeros(len(self.targets["cover"].classes))
        for label in labels:
            if label not in _TO_43:
                raise BadSampleError(
                    file, f"has label {label!r}, which is none of the 43 classes of CORINE"
                )
            row = (TO_19 if self.classes == 19 else _TO_43).get(label)
            if row is not None:
                vector[row] = 1
        return vector


def _patches(folder: Path) -> set[str]:
    """Return the names of the folders of patches."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_LAYOUT}")
    with os.scandir(folder) as entries:
        patches = {entry.name for entry in entries if entry.is_dir()}
    if not patches:
        raise DataError(f"{folder}: holds no folder of a patch; {_LAYOUT}")
    return patches


def _pairs(root: Path, split: str | None, s1_folder: Path, s1: set[str]) -> dict[str, str]:
    """Return `{S2 patch: S1 patch}` of a split, from its file or from the JSON of S1 patches."""
    files = {name: _split_file(root, name) for name in SPLITS}
    wanted = SPLITS if split is None else (split,)
    if split is None and not any(files.values()):
        return _pairs_by_json(s1_folder, s1)
    pairs: dict[str, str] = {}
    for name in wanted:
        file = files[name]
        if file is None:
            raise DataError(f"{root / f'{name}.csv'}: no such file of a split; {_LAYOUT}")
        for line, (s2, s1_patch) in enumerate(_rows(file), start=1):
            if s2 in pairs:
                raise DataError(f"{file}: line {line}: patch {s2} comes twice; keep one row of it")
            pairs[s2] = s1_patch
    return pairs


def _split_file(root: Path, split: str) -> Path | None:
    """Return the file of a split, under its own name or torchgeo's; None where there is none."""
    files = (root / f"{split}.csv", root / f"bigearthnet-{split}.csv")
    return next((file for file in files if file.is_file()), None)


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            rows = [[cell.strip() for cell in row] for row in csv.reader(opened) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV ({error}); {_LAYOUT}") from error
    for line, row in enumerate(rows, start=1):
        if len(row) != 2 or not (row[0].startswith("S2") and row[1].startswith("S1")):
            raise DataError(
                f"{file}: line {line} is {','.join(row)!r}; a row is `S2 patch,S1 patch`"
            )
        yield row[0], row[1]


def _pairs_by_json(folder: Path, patches: set[str]) -> dict[str, str]:
    log.info("%s: no splits; reading the JSON of %d patches to pair them", folder, len(patches))
    pairs: dict[str, str] = {}
    for patch in sorted(patches):
        file = folder / patch / f"{patch}_labels_metadata.json"
        s2 = _read_json(file).get("corresponding_s2_patch")
        if not isinstance(s2, str):
            raise DataError(f"{file}: names no `corresponding_s2_patch`; restore it, or add splits")
        if s2 in pairs:
            raise DataError(f"{folder}: {pairs[s2]} and {patch} both belong to {s2}; keep one")
        pairs[s2] = patch
    return pairs


def _read_json(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSampleError(
            file, "no such file of labels; restore it, or set classes to null to read none"
        ) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise BadSampleError(file, f"is no valid JSON ({reason}); copy it anew") from error
    if not isinstance(about, dict):
        raise BadSampleError(file, "must hold a JSON mapping; restore it from the archive")
    return about
