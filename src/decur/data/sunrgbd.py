"""SUN RGB-D: rooms seen by four depth cameras, in the layout of its archives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, check_choices
from decur.data.depth import Depth, Mat73, check_metres, depth_modality, encode_depth, read_mat
from decur.data.files import read_image, resize, resize_mask
from decur.data.sample import Sample, Target
from decur.data.selection import evenly_spaced
from decur.digest import digest, file_state
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
FARTHEST = 8.0  # m; SUNRGBDtoolbox, read3dPoints.m

# SUNRGBDtoolbox/Metadata/seg37list.mat; 0 in a label is none of them.
CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor_mat", "clothes", "ceiling", "books", "fridge", "tv", "paper", "towel"),
    *("shower_curtain", "box", "whiteboard", "person", "night_stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag"),
)

_SEGMENTATION = "SUNRGBD2Dseg/seglabel"  # in SUNRGBD2Dseg.mat
_CHECKED = 8  # scenes whose depth is looked at
_LAYOUT = (
    "expected ROOT/SUNRGBD/{kv1,kv2,realsense,xtion}/... and ROOT/SUNRGBDtoolbox/; unpack "
    "SUNRGBD.zip and SUNRGBDtoolbox.zip from https://rgbd.cs.princeton.edu"
)


@DATASETS.register("SUNRGBD")
class SUNRGBD(PairedDataset):
    """SUN RGB-D: 10,335 photographs of rooms with depth, of four cameras, labelled in 37 classes.

    Published by Song et al., Princeton (https://rgbd.cs.princeton.edu), 6.9 GB packed:

        ROOT/SUNRGBD/{kv1,kv2,realsense,xtion}/.../<scene>/image/<name>.jpg
                                                  <scene>/depth_bfx/<name>.png, depth/<name>.png
                                                  <scene>/intrinsics.txt
        ROOT/SUNRGBDtoolbox/Metadata/{SUNRGBDMeta,SUNRGBD2Dseg}.mat, traintestSUNRGBD/allsplit.mat

    The toolbox is needed for a split and for labels only, which are read one by one from where
    they lie (no 64 GB of memory). A sample is named after its folder, `kv1/NYUdata/NYU0001`; its
    group is that scene, or of SUN3D the video that it is a frame of. Scenes without a folder of
    photographs or of depth are kept and marked absent. Cameras differ in size: all is resized.

    The official split is not one of places: 44 videos of SUN3D have frames in both parts, so that a
    test sees rooms that training has seen.

    Depth is 16-bit, rotated by three bits, in millimetres; beyond 8 m it counts as 8 m.

    Args:
        root: Folder that holds both archives.
        split: Split: "train" (5,285) or "test" (5,050); None for all scenes there are.
        depth: Form of the depth: "metres" gives the modality "depth"; "hha" gives "hha", computed
            from depth.
        filled: Read `depth_bfx`, where holes are filled, rather than `depth`.
        classes: Number of classes: 37, or None to read no labels.
        size: Height and width that all is resized to.
        resize_labels: Resize labels, too; tests are for those of their own sizes.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found.
        ConfigError: for wrong options.

    Source: Song, Lichtenberg and Xiao 2015, "SUN RGB-D: A RGB-D Scene Understanding Benchmark
    Suite".

    Examples:
        >>> data = SUNRGBD("sunrgbd", split="train", depth="hha")
        >>> data[0]["images"]["hha"].shape
        torch.Size([3, 480, 640])
    """

    groups: list[str]

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        depth: Depth = "metres",
        filled: bool = True,
        classes: Literal[37] | None = 37,
        size: tuple[int, int] = (480, 640),
        resize_labels: bool = True,
    ) -> None:
        check_choices(
            "SUNRGBD",
            split=(split, (*SPLITS, None)),
            depth=(depth, get_args(Depth)),
            classes=(classes, (37, None)),
        )
        self.root, self.depth, self._size = Path(root), depth, (size[0], size[1])
        self._folder = "depth_bfx" if filled else "depth"
        self._resize_labels = resize_labels
        toolbox = self.root / "SUNRGBDtoolbox"
        scenes = _scan(self.root / "SUNRGBD", self._folder)
        if split is None:
            self.ids = sorted(scenes)
        else:
            wanted = _split(toolbox, split)
            self.ids = [id_ for id_ in wanted if id_ in scenes]
            if lost := len(wanted) - len(self.ids):
                log.warning("%s: %d of %d scenes have no folder", self.root, lost, len(wanted))
        if not self.ids:
            raise DataError(
                f"{self.root / 'SUNRGBD'}: none of its {len(scenes)} scenes is in split {split!r}, "
                f"for example {min(scenes)!r}; {_LAYOUT}"
            )
        self.groups = [_group(id_) for id_ in self.ids]
        deep = depth_modality(depth, self._size)
        self.modalities = {"rgb": Modality.preset("rgb").with_(size=self._size), deep.name: deep}
        self.present = {
            name: np.array([folder in scenes[id_] for id_ in self.ids])
            for name, folder in (("rgb", "image"), (deep.name, self._folder))
        }
        self.targets = {}
        self._labels: Mat73 | None = None
        if classes is not None:
            self.targets["label"] = Target("mask", CLASSES)
            self._rows, self._labels = _labels(toolbox)
        check_metres(
            self._some_depths(), self.root, remedy="SUN RGB-D has millimetres, rotated by 3 bits"
        )

    def read(self, index: int) -> Sample:
        """Read one scene; its target holds a mask only where the toolbox has one.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        id_ = self.ids[index]
        sample: Sample = {"id": id_, "images": {}}
        for name in self.sensors_of(index):
            if name == "rgb":
                photograph = read_image(_only_file(self._scene(index) / "image"), bands=3)
                sample["images"][name] = resize(photograph, self._size)
            else:
                sample["images"][name] = self._read_depth(index)
        if self.targets:
            sample["target"] = {}
            if id_ in self._rows:
                sample["target"]["label"] = self._read_label(self._rows[id_])
        return sample

    def files(self, index: int) -> list[Path]:
        """Return the pictures of a scene, and for HHA its intrinsics; one file has all labels.

        Raises:
            BadSampleError: naming the folder, if a picture is missing.
        """
        scene, files = self._scene(index), []
        for name in self.sensors_of(index):
            files.append(_only_file(scene / ("image" if name == "rgb" else self._folder)))
            if name == "hha":
                files.append(scene / "intrinsics.txt")
        return files

    def file_digest(self, rows: Iterable[int] | None = None) -> str:
        """Return that of the samples' files, and of the file of all labels where these are read."""
        own = super().file_digest(rows)
        if self._labels is None or not self.targets:
            return own
        return digest(own, file_state(self._labels.file))

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return the bytes of a scene's files, and of its label: (bytes,) uint8.

        Raises:
            BadSampleError: naming the file, if it cannot be read.
        """
        stored = super().read_bytes(index)
        if not self.targets or stored is None or self.ids[index] not in self._rows:
            return stored
        assert self._labels is not None
        label = self._labels.read_bytes(_SEGMENTATION, self._rows[self.ids[index]])
        return np.concatenate([stored, label])

    def _scene(self, index: int) -> Path:
        return self.root / "SUNRGBD" / self.ids[index]

    def _read_depth(self, index: int) -> Tensor:
        metres = read_depth(_only_file(self._scene(index) / self._folder))
        intrinsics = None
        if self.depth == "hha":
            intrinsics = read_intrinsics(self._scene(index) / "intrinsics.txt")
        return encode_depth(metres, self.depth, intrinsics=intrinsics, size=self._size)

    def _read_label(self, row: int) -> Tensor:
        assert self._labels is not None
        raw = self._labels.read(_SEGMENTATION, row)
        if raw.ndim != 2 or raw.max() > len(CLASSES):
            raise BadSampleError(
                self._labels.file,
                f"row {row} holds no label of {len(CLASSES)} classes (shape {raw.shape}, up to "
                f"{raw.max()}); download it anew",
            )
        label = torch.from_numpy(raw.T.astype(np.int64)) - 1  # MATLAB's axes are reversed
        label = label.masked_fill(label < 0, 255)
        return resize_mask(label, self._size) if self._resize_labels else label

    def _some_depths(self) -> Iterator[Tensor]:
        rows = np.flatnonzero(self.present[list(self.modalities)[1]])
        for row in rows[evenly_spaced(len(rows), _CHECKED)].tolist():
            try:
                yield read_depth(_only_file(self._scene(row) / self._folder))
            except BadSampleError:
                continue  # comes up again when it is read as a sample


def read_depth(file: Path) -> Tensor:
    """Read a 16-bit picture of depth in millimetres, rotated left by three bits.

    Returns:
        (H, W) float32 in metres, at most 8; NaN where there is none.

    Raises:
        BadSampleError: naming the file, if it cannot be used.
    """
    raw = read_image(file, bands=1, nodata=0)[0]
    if raw.dtype == torch.uint8 or bool(raw.nan_to_num(0).max() <= 255):
        raise BadSampleError(file, "is 8-bit, not 16-bit depth; unpack SUNRGBD.zip anew")
    bits = raw.nan_to_num(0).to(torch.int32)  # float32 holds 16 bits exactly
    metres = ((bits >> 3) | (bits << 13) & 0xFFFF).float() / 1000
    return metres.clamp(max=FARTHEST).masked_fill(raw.isnan(), torch.nan)


def read_intrinsics(file: Path) -> tuple[float, float, float, float]:
    """Read fx, fy, cx, cy in pixels of a 3 x 3 matrix, the first pixel being (0, 0).

    Raises:
        BadSampleError: naming the file, if it is missing or holds something else.
    """
    try:
        values = [float(word) for word in file.read_text().split()]
    except OSError as error:
        raise BadSampleError(
            file, "no such file; HHA needs intrinsics, which SUN RGB-D keeps here for each scene"
        ) from error
    except ValueError as error:
        raise BadSampleError(file, f"holds other than numbers ({error}); unpack it anew") from error
    if len(values) != 9 or min(values[0], values[4]) <= 0:
        raise BadSampleError(file, "must hold fx 0 cx 0 fy cy 0 0 1; unpack it anew")
    fx, _, cx, _, fy, cy, *_ = values
    return fx, fy, cx - 1, cy - 1  # the toolbox counts pixels from 1


def _scan(folder: Path, depth: str) -> dict[str, set[str]]:
    """Return `{scene: those of "image" and the depth folder that it has}`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_LAYOUT}")
    scenes: dict[str, set[str]] = {}
    for path, folders, _ in os.walk(folder, followlinks=True):
        if "image" in folders or "depth" in folders or "depth_bfx" in folders:
            if has := {"image", depth}.intersection(folders):
                scenes[Path(path).relative_to(folder).as_posix()] = has
            folders.clear()  # nothing below a scene is another
    if not scenes:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise DataError(f"{folder}: no scene in what is there ({there}); {_LAYOUT}")
    return scenes


def _split(toolbox: Path, split: str) -> list[str]:
    file = toolbox / "traintestSUNRGBD" / "allsplit.mat"
    name = f"all{split}"
    return [_scene(path) for path in np.atleast_1d(read_mat(file, [name], layout=_LAYOUT)[name])]


def _labels(toolbox: Path) -> tuple[dict[str, int], Mat73]:
    """Return `{scene: its row}`, and the file that has the rows."""
    layout = f"{_LAYOUT}; or set classes to null to read no labels"
    labels = Mat73(toolbox / "Metadata" / "SUNRGBD2Dseg.mat", [_SEGMENTATION], layout=layout)
    file = toolbox / "Metadata" / "SUNRGBDMeta.mat"
    meta: Any = np.atleast_1d(read_mat(file, ["SUNRGBDMeta"], layout=layout)["SUNRGBDMeta"])
    if len(meta) != labels.shape(_SEGMENTATION)[0]:
        raise DataError(
            f"{file}: lists {len(meta)} scenes, {labels.file.name} holds "
            f"{labels.shape(_SEGMENTATION)[0]}; unpack SUNRGBDtoolbox.zip anew"
        )
    try:  # rgbpath is <scene>/image/<name>.jpg
        return {_scene(one["rgbpath"], above=2): row for row, one in enumerate(meta)}, labels
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(f"{file}: its scenes have no `rgbpath`; {layout}") from error


def _scene(path: str, above: int = 0) -> str:
    """Return a scene's name from its path in Princeton; some paths have doubled slashes."""
    parts = [part for part in str(path).split("SUNRGBD/")[-1].split("/") if part]
    return "/".join(parts[: len(parts) - above])


def _group(scene: str) -> str:
    return scene.rpartition("/")[0] if "/sun3ddata/" in scene else scene


def _only_file(folder: Path) -> Path:
    try:
        files = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise BadSampleError(folder, f"cannot be listed ({error.strerror})") from error
    if len(files) == 1:
        return files[0]
    if not files:
        raise BadSampleError(folder, "is empty; unpack SUNRGBD.zip anew")
    both = " and ".join(file.name for file in files[:2])
    raise BadSampleError(folder, f"holds two pictures of one scene, {both}; keep one")
