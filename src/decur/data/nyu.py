"""NYU-Depth v2: labelled photographs of rooms with depth, in the files of its release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, check_choices
from decur.data.depth import Depth, Mat73, check_metres, depth_modality, encode_depth, read_mat
from decur.data.files import resize, resize_mask
from decur.data.sample import Sample, Target
from decur.data.selection import evenly_spaced
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

SPLITS = ("train", "test")

# fx, fy, cx, cy of the colour camera, to which depth is aligned; from its authors' toolbox,
# camera_params.m, where the first pixel is (1, 1). Of pictures of 480 x 640 pixels.
INTRINSICS = (518.858, 519.470, 325.582 - 1, 253.736 - 1)
SIZE = (480, 640)

_CHECKED = 8  # pictures whose depth is looked at
_LAYOUT = (
    "expected ROOT/nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat; the first is at "
    "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html (2.8 GB), the others at "
    "https://github.com/ankurhanda/nyuv2-meta-data"
)


@DATASETS.register("NYUDepthV2")
class NYUDepthV2(PairedDataset):
    """NYU-Depth v2: 1,449 photographs of rooms, 480 x 640, with depth, labelled in 40 classes.

    Published by Silberman et al., New York University:

        ROOT/nyu_depth_v2_labeled.mat    (images, depths, rawDepths, labels, scenes)
        ROOT/splits.mat                  (trainNdxs, testNdxs; needed for a split)
        ROOT/classMapping40.mat          (894 classes to 40, of Gupta et al. 2013; for labels)

    Each sample is read from where it lies in the large file, which every worker opens by itself. A
    sample is named after its number there, from 1: `0001`; its group is the scene. Photographs have
    a white frame of a few pixels, where depth is extrapolated and nothing labelled.

    Args:
        root: Folder of the data set.
        split: Split: "train" (795) or "test" (654); None for all.
        depth: Form of the depth: "metres" gives the modality "depth"; "hha" gives "hha", computed
            from depth.
        filled: Read `depths`, where holes are filled, rather than `rawDepths`.
        classes: Number of classes: 40, or None to read no labels.
        size: Height and width that all is resized to; None: its own.

    Raises:
        DataError: if a file is missing or not as expected, saying where to get it.
        ConfigError: for wrong options.

    Source: Silberman, Hoiem, Kohli and Fergus 2012, "Indoor Segmentation and Support Inference from
    RGBD Images".

    Examples:
        >>> data = NYUDepthV2("nyu_depth_v2", split="train")
        >>> data[0]["images"]["depth"].shape
        torch.Size([1, 480, 640])
    """

    groups: list[str]

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        depth: Depth = "metres",
        filled: bool = True,
        classes: Literal[40] | None = 40,
        size: tuple[int, int] | None = None,
    ) -> None:
        check_choices(
            "NYUDepthV2",
            split=(split, (*SPLITS, None)),
            depth=(depth, get_args(Depth)),
            classes=(classes, (40, None)),
        )
        self.root, self.depth = Path(root), depth
        self._depths = "depths" if filled else "rawDepths"
        names = ("images", self._depths, "scenes", *(("labels",) if classes else ()))
        self._data = Mat73(self.root / "nyu_depth_v2_labeled.mat", names, layout=_LAYOUT)
        images = self._data.shape("images")
        if len(images) != 4 or images[1] != 3:
            raise DataError(
                f"{self._data.file}: images have shape {images}, not (N, 3, width, height); "
                f"{_LAYOUT}"
            )
        count, own_size = images[0], (images[3], images[2])
        if depth == "hha" and own_size != SIZE:
            raise DataError(
                f"{self._data.file}: its pictures are {own_size[0]} x {own_size[1]}; the known "
                f"intrinsics are of {SIZE[0]} x {SIZE[1]}, so set depth to metres"
            )
        self._size = (size[0], size[1]) if size else own_size
        self._rows = _split(self.root / "splits.mat", split, count)
        self.ids = [f"{row + 1:04d}" for row in self._rows]
        scenes = self._data.strings("scenes")
        self.groups = [scenes[row] for row in self._rows]
        deep = depth_modality(depth, self._size)
        self.modalities = {"rgb": Modality.preset("rgb").with_(size=self._size), deep.name: deep}
        self.present = {name: np.ones(len(self.ids), dtype=bool) for name in self.modalities}
        self.targets = {}
        if classes is not None:
            self._to_40, classes_40 = _mapping(self.root / "classMapping40.mat")
            self.targets["label"] = Target("mask", classes_40)
        check_metres(self._some_depths(), self._data.file, remedy="NYU-Depth v2 has metres")

    def read(self, index: int) -> Sample:
        """Read one photograph with its depth and label.

        Raises:
            BadSampleError: naming the file and the row, if it cannot be used.
        """
        row = self._rows[index]
        images = {}
        for name in self.sensors_of(index):
            if name == "rgb":
                photograph = torch.from_numpy(_upright(self._data.read("images", row)))
                images[name] = resize(photograph, self._size)
            else:
                metres = self._read_depth(row)
                if metres.isnan().all():
                    reason = f"row {row} of {self._depths} has no depth"
                    raise BadSampleError(self._data.file, reason)
                images[name] = encode_depth(
                    metres, self.depth, intrinsics=INTRINSICS, size=self._size
                )
        sample: Sample = {"id": self.ids[index], "images": images}
        if self.targets:
            sample["target"] = {"label": self._read_label(row)}
        return sample

    def files(self, index: int) -> list[Path]:
        """Return the file that holds all samples."""
        return [self._data.file]

    def read_bytes(self, index: int) -> np.ndarray:
        """Return a row of each array that is read, as the file stores it: (bytes,) uint8.

        Raises:
            BadSampleError: naming the file and the row, if it cannot be read.
        """
        names = ["images" if name == "rgb" else self._depths for name in self.sensors_of(index)]
        names += ["labels"] if self.targets else []
        return np.concatenate([self._data.read_bytes(name, self._rows[index]) for name in names])

    def _read_depth(self, row: int) -> Tensor:
        metres = torch.from_numpy(_upright(self._data.read(self._depths, row)).astype(np.float32))
        return metres.masked_fill((metres <= 0) | ~metres.isfinite(), torch.nan)

    def _read_label(self, row: int) -> Tensor:
        raw = _upright(self._data.read("labels", row))
        if raw.max() >= len(self._to_40):
            raise BadSampleError(
                self._data.file,
                f"row {row} of labels has class {raw.max()}, classMapping40.mat knows 1 to "
                f"{len(self._to_40) - 1}; get both from {_LAYOUT}",
            )
        return resize_mask(torch.from_numpy(self._to_40[raw]), self._size)

    def _some_depths(self) -> Iterator[Tensor]:
        for index in evenly_spaced(len(self._rows), _CHECKED):
            try:
                yield self._read_depth(self._rows[index])
            except BadSampleError:
                continue  # comes up again when it is read as a sample


def _upright(pixels: np.ndarray) -> np.ndarray:
    """Return MATLAB's (width, height) as (height, width)."""
    return np.ascontiguousarray(pixels.swapaxes(-1, -2))


def _split(file: Path, split: str | None, count: int) -> list[int]:
    """Return the rows of the split, counted from 0."""
    if split is None:
        return list(range(count))
    name = f"{split}Ndxs"
    numbers = np.atleast_1d(read_mat(file, [name], layout=_LAYOUT)[name])
    if numbers.min() < 1 or numbers.max() > count:
        raise DataError(
            f"{file}: has pictures {numbers.min()} to {numbers.max()}, "
            f"nyu_depth_v2_labeled.mat 1 to {count}; {_LAYOUT}"
        )
    return [int(number) - 1 for number in numbers]


def _mapping(file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return for each class of the release (0 is "not labelled") one of 40 or 255; and 40 names."""
    found = read_mat(
        file,
        ["mapClass", "className"],
        layout=f"{_LAYOUT}; or set classes to null to read no labels",
    )
    to_40 = np.concatenate([[255], found["mapClass"].astype(np.int64) - 1])
    return to_40, tuple(str(name) for name in found["className"])
