"""BigEarthNet v2 (reBEN): its pairs processed again, each with a map of land cover."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, change_modalities, check_choices
from decur.data.bigearthnet import CLASSES_19, CLASSES_43, SIZE, SPLITS, TO_19
from decur.data.files import read_mask
from decur.data.sample import Sample, Target
from decur.data.sentinel import Offset, PatchPairs, offset_of
from decur.errors import BadSampleError, DataError, needing
from decur.modality import Modality

_SPELT = {"train": "train", "val": "validation", "test": "test"}  # in metadata.parquet
_COLUMNS = ("patch_id", "s1_name", "split", "labels")
_UNKNOWN = 255

# Codes of CORINE Land Cover 2018, level 3, of the 43 classes in their order: the nomenclature's 44
# without 335, glaciers and perpetual snow (Copernicus Land Monitoring Service).
CODES_43 = (
    *(111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142, 211, 212, 213, 221, 222, 223, 231),
    *(241, 242, 243, 244, 311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334, 411, 412, 421),
    *(422, 423, 511, 512, 521, 522, 523),
)

# Statistics of the training split, of bands resized bilinearly to 120 x 120 (the authors'
# ConfigILM, BENv2_utils.py), S1 in dB, S2 in DN.
_MODALITIES = {
    "s1": Modality.preset("sentinel1").with_(
        name="s1", mean=(-12.644, -19.353), std=(5.133, 5.591), size=SIZE
    ),
    "s2": Modality.preset("sentinel2-l2a").with_(
        name="s2",
        mean=(360.647, 438.372, 614.056, 588.410, 942.748, 1769.849, 2049.476)
        + (2193.292, 2235.487, 2241.106, 1568.212, 997.715),
        std=(563.173, 607.027, 603.297, 684.569, 727.578, 1087.429, 1261.430)
        + (1369.372, 1342.490, 1294.355, 1063.920, 806.885),
        size=SIZE,
    ),
}

_LAYOUT = (
    "expected ROOT/BigEarthNet-S2/<tile>/<S2 patch>/, ROOT/BigEarthNet-S1/<scene>/<S1 patch>/ and "
    "ROOT/metadata.parquet; unpack BigEarthNet-S2.tar.zst and BigEarthNet-S1.tar.zst of "
    "https://bigearth.net (TU Berlin, Zenodo 10891137) beside the metadata"
)


@DATASETS.register("BigEarthNetV2")
class BigEarthNetV2(PatchPairs):
    """BigEarthNet v2 (reBEN): 549,488 pairs of patches of 120 x 120 pixels in ten countries.

    The pairs of BigEarthNet-MM with Sentinel-2 corrected for the atmosphere anew, labels of CORINE
    Land Cover 2018, splits by geography, and a map of land cover each. Sentinel-1 in dB (VV, VH)
    and Sentinel-2 L2A (12 bands, resized to 120 x 120), with the land cover that occurs in them as
    a multilabel. Published by RSiM, TU Berlin (https://bigearth.net), archived as Zenodo 10891137.
    Unpacked it must lie like this, a patch's tile being its name without the last two fields, an
    S1 patch's scene without the last three:

        ROOT/BigEarthNet-S2/<tile>/<S2 patch>/<S2 patch>_B01.tif ... _B12.tif
        ROOT/BigEarthNet-S1/<scene>/<S1 patch>/<S1 patch>_VV.tif, _VH.tif
        ROOT/Reference_Maps/<tile>/<S2 patch>/<S2 patch>_reference_map.tif            (with `maps`)
        ROOT/metadata.parquet      (patch_id, s1_name, split and labels are read; needs pyarrow)

    A pair is named after its S2 patch. Its group is the acquisition that it was cut from, told by
    satellite and time as in `BigEarthNetMM`; an acquisition covers many tiles. All rows of the
    metadata are taken; patches with snow, cloud or shadow are in a file of their own, which stays
    unread. An encoder that was trained on Sentinel-1 and the 13 bands of L1C takes this data with
    `modalities={"s1": "sentinel1", "s2": "sentinel2-l1c"}`, which scales it alike, and `decur
    transfer --missing_bands empty`, which inserts an empty B10.

    Where Sentinel-2 or the map is 0 there is no measurement: the files declare it so, and no band
    of the release's patches that were looked at holds a 0.

    The reading is our own, as is that of `BigEarthNetMM`: torchgeo's class always reads the maps,
    maps 20 of the 32 CORINE codes that the 19 classes gather, and leaves the others as they are.

    Args:
        root: Folder of the data set.
        split: Split: "train", "val" or "test"; None for all three.
        classes: Number of classes: 19 (Sumbul et al. 2021), or None to read no labels.
        maps: Give the map of land cover, too, as the mask "map" of the 19 classes; 255 where CORINE
            has what is in none of them, or nothing.
        offset: Offset that is taken off S2: 1000 for products of processing baseline 04.00 and
            later; "auto" goes by the baseline that the patch's name tells, or by the date. The
            release has none such: its baseline is 99.99 (processed by the authors), its dates of
            2017 and 2018.
        modalities: Changes of the modalities, `{name: preset or fields}`; by default the statistics
            are the data set's own.
        s1_folder: Name of the folder of S1 patches.
        s2_folder: Name of the folder of S2 patches.
        maps_folder: Name of the folder of maps.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found, or
            if pyarrow is not installed.
        ConfigError: for wrong options.

    Source: Clasen et al. 2025, "reBEN: Refined BigEarthNet Dataset for Remote Sensing Image
    Analysis".

    Examples:
        >>> data = BigEarthNetV2("bigearthnet-v2", split="train")
        >>> data[0]["images"]["s2"].shape
        torch.Size([12, 120, 120])
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        classes: int | None = 19,
        maps: bool = False,
        offset: Offset = "auto",
        modalities: dict[str, Any] | None = None,
        s1_folder: str = "BigEarthNet-S1",
        s2_folder: str = "BigEarthNet-S2",
        maps_folder: str = "Reference_Maps",
    ) -> None:
        check_choices(
            "BigEarthNetV2",
            classes=(classes, (19, None)),
            maps=(maps, (True, False)),
            offset=(offset, get_args(Offset)),
            split=(split, (*SPLITS, None)),
        )
        self.offset = offset
        self._folders = {"s1": Path(root) / s1_folder, "s2": Path(root) / s2_folder}
        self._maps = Path(root) / maps_folder
        if maps and not self._maps.is_dir():
            raise DataError(
                f"{self._maps}: no such folder; unpack Reference_Maps.tar.zst, or leave maps out"
            )
        table = _Metadata(Path(root) / "metadata.parquet", split, with_labels=classes is not None)
        super().__init__(
            Path(root),
            table.pairs,
            there={name: _patches(folder) for name, folder in self._folders.items()},
            modalities=change_modalities(_MODALITIES, modalities),
            wanted=f"split {split!r}",
            layout=_LAYOUT,
        )
        if table.labels is not None:
            rows = {patch: row for row, patch in enumerate(table.pairs)}
            self._labels = table.labels[[rows[id_] for id_ in self.ids]]
            self.targets["cover"] = Target("multilabel", CLASSES_19)
        if maps:
            self.targets["map"] = Target("mask", CLASSES_19)
        self._check_offset()

    def read(self, index: int) -> Sample:
        """Read one pair.

        Raises:
            BadSampleError: naming the file, if a band or the map cannot be used.
        """
        sample: Sample = {
            "id": self.ids[index],
            "images": self.images(index, self._offset(index)),
        }
        if self.targets:
            sample["target"] = {}
        if "cover" in self.targets:
            sample["target"]["cover"] = torch.from_numpy(self._labels[index]).float()
        if "map" in self.targets:
            sample["target"]["map"] = self._map(index)
        return sample

    def files(self, index: int) -> list[Path]:
        """Return the bands of a pair, and its map."""
        return [*super().files(index), *([self._map_file(index)] if "map" in self.targets else [])]

    def folder(self, name: str, patch: str) -> Path:
        """Return the folder of a patch of "s1" or "s2"."""
        return self._folders[name] / patch.rsplit("_", 3 if name == "s1" else 2)[0] / patch

    def _offset(self, index: int) -> int:
        return offset_of(self.ids[index]) if self.offset == "auto" else self.offset

    def _map_file(self, index: int) -> Path:
        patch = self.ids[index]
        return self._maps / patch.rsplit("_", 2)[0] / patch / f"{patch}_reference_map.tif"

    def _map(self, index: int) -> Tensor:
        file = self._map_file(index)
        codes = read_mask(file)
        if codes.shape != SIZE:
            raise BadSampleError(
                file, f"has {codes.shape[0]} x {codes.shape[1]} pixels, not 120 x 120; unpack anew"
            )
        mask = torch.full(SIZE, _UNKNOWN)
        for code, name in zip(CODES_43, CLASSES_43, strict=True):
            if name in TO_19:
                mask[codes == code] = TO_19[name]
        return mask


class _Metadata:
    """The rows of a split in metadata.parquet.

    Attributes:
        pairs: `{S2 patch: S1 patch}` in the file's order.
        labels: (rows, 19) uint8 of 0 and 1; None if they are not wanted.
    """

    def __init__(self, file: Path, split: str | None, *, with_labels: bool) -> None:
        with needing(f"reading {file}", "eo", DataError):
            import pyarrow as pa
            import pyarrow.compute as pc
            import pyarrow.parquet as pq
        if not file.is_file():
            raise DataError(f"{file}: no such file; {_LAYOUT}")
        columns = [name for name in _COLUMNS if with_labels or name != "labels"]
        try:
            there = pq.read_schema(file).names
            if lacking := [name for name in columns if name not in there]:
                raise DataError(
                    f"{file}: has no column {', '.join(lacking)} (it has {', '.join(there)}); "
                    "download it anew"
                )
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{file}: cannot be read ({reason}); download it anew") from error
        if split is not None:
            table = table.filter(pc.equal(table["split"], _SPELT[split]))
        patches = table["patch_id"].to_pylist()
        self.pairs: dict[str, str] = dict(zip(patches, table["s1_name"].to_pylist(), strict=True))
        if len(self.pairs) < len(patches):
            raise DataError(f"{file}: names a patch twice; download it anew")
        self.labels: np.ndarray | None = None
        if with_labels:
            lists = table["labels"].combine_chunks()
            names = pc.list_flatten(lists)
            classes = pc.index_in(names, value_set=pa.array(CLASSES_19)).to_numpy(False)
            rows = pc.list_parent_indices(lists).to_numpy(False)
            if (unknown := np.flatnonzero(np.isnan(classes.astype(float)))).size:
                patch, name = patches[rows[unknown[0]]], names[int(unknown[0])]
                raise DataError(
                    f"{file}: patch {patch} has label {name.as_py()!r}, which is none of the 19 "
                    "classes; download it anew, or set classes to null to read no labels"
                )
            self.labels = np.zeros((len(patches), len(CLASSES_19)), np.uint8)
            self.labels[rows, classes.astype(int)] = 1


def _patches(folder: Path) -> set[str]:
    """Return the names of the folders of patches, which lie in folders of tiles or scenes."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_LAYOUT}")
    patches: set[str] = set()
    with os.scandir(folder) as parents:
        for parent in parents:
            if parent.is_dir():
                with os.scandir(parent) as entries:
                    patches |= {entry.name for entry in entries if entry.is_dir()}
    if not patches:
        raise DataError(f"{folder}: holds no folder of a patch in a folder of a tile; {_LAYOUT}")
    return patches
