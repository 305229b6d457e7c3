"""RGB-X folders: a photograph, a second picture X and a label, as CMX and its followers have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, change_modalities
from decur.data.files import (
    EXTENSIONS,
    Header,
    read_header,
    read_mask,
    read_sensor,
    resize,
    resize_mask,
)
from decur.data.folder import UNKNOWN_CLASS
from decur.data.listing import as_id, scan
from decur.data.masks import refuse_lossy
from decur.data.sample import Sample, Target
from decur.data.selection import evenly_spaced
from decur.errors import BadSampleError, ConfigError, DataError
from decur.modality import PRESETS, Modality, guess_augmentation

SPLITS = ("train", "test")

_LABEL = "Label"
_LABELS_READ = 200  # to tell how many classes there are, where it is not said
_LAYOUT = (
    "expected ROOT/RGB/<name>.jpg, ROOT/HHA/<name>.jpg (or another X), ROOT/Label/<name>.png, "
    "ROOT/train.txt and test.txt; packed sets are linked from "
    "https://github.com/huaaaliu/RGBX_Semantic_Segmentation"
)


@DATASETS.register("RGBX")
class RGBX(PairedDataset):
    """A set for RGB-X segmentation: photographs with depth as HHA, or another picture X.

    NYU-Depth v2, SUN RGB-D and others are passed on in this layout by CMX (Zhang et al., linked
    from https://github.com/huaaaliu/RGBX_Semantic_Segmentation) and who came after:

        ROOT/{RGB,HHA,Label}/<name>.{jpg,png}
        ROOT/train.txt, test.txt     (a line: `<name>`, or `RGB/<name>.jpg Label/<name>.png`)

    The label is the mask `label`. In most sets its 0 is no class but "not labelled": 1 becomes
    class 0, and 0 becomes 255. Pictures of another size than the first are resized to it. A name
    whose RGB or X is missing is kept and marked absent; a listed name without both is refused.

    Args:
        root: Folder of the data set.
        split: Split: "train" or "test"; None for the names of both files, or, where there are none,
            for all pictures.
        x: Folder of the second picture; its name, lower-case, is the modality's.
        classes: Names of the classes, or their number; None: as many as 200 labels show, which may
            miss rare ones.
        zero_is_void: Take 0 in a label as "not labelled"; false where it is class 0, as in MFNet.
        size: Height and width that all is resized to; None: pictures to those of the first, and a
            label keeps its own.
        modalities: Changes of the modalities, `{name: preset or fields}`.

    Raises:
        DataError: if the folder is not laid out like this, saying what was expected and found.
        ConfigError: for wrong options.

    Source: Zhang et al. 2023, "CMX: Cross-Modal Fusion for RGB-X Semantic Segmentation With
    Transformers".

    Examples:
        >>> data = RGBX("NYUDepthv2", split="train", classes=40)
        >>> data[0]["images"]["hha"].shape
        torch.Size([3, 480, 640])
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        x: str = "HHA",
        classes: list[str] | int | None = None,
        zero_is_void: bool = True,
        size: tuple[int, int] | None = None,
        modalities: dict[str, Any] | None = None,
    ) -> None:
        if split not in (*SPLITS, None):
            raise ConfigError(f"RGBX: split is {split!r}; choose from train, test, None")
        if isinstance(classes, int) and classes < 1:
            raise ConfigError(f"RGBX: classes is {classes}; there is at least one")
        if x.lower() == "rgb" or x == _LABEL:
            raise ConfigError(f"RGBX: x is {x!r}; name the folder of the second picture")
        self.root, self.zero_is_void = Path(root), zero_is_void
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; {_LAYOUT}")
        lines = {name: _lines(self.root / f"{name}.txt") for name in SPLITS}
        folders = {"rgb": self.root / "RGB", x.lower(): self.root / x}
        files = {name: _files(folder, lines.values()) for name, folder in folders.items()}
        pictured = set().union(*files.values())
        listed = {
            name: None
            if of_split is None
            else _names(self.root / f"{name}.txt", of_split, pictured)
            for name, of_split in lines.items()
        }
        self.ids = _wanted(self.root, split, listed, files)
        self._files = {name: [found.get(i) for i in self.ids] for name, found in files.items()}
        self.present = {
            name: np.array([file is not None for file in found])
            for name, found in self._files.items()
        }
        header = {name: _header(folders[name], found.values()) for name, found in files.items()}
        self._size = (size[0], size[1]) if size else None
        size = self._size or header["rgb"].size
        known = {name: _modality(name, header[name], size) for name in files}
        self.modalities = change_modalities(known, modalities)
        labels = _files(self.root / _LABEL, lines.values(), needed=False)
        self._labels = [labels.get(id_) for id_ in self.ids]
        self.targets = {}
        if labels:
            if classes is None:
                classes = _count(sorted(labels.values()), zero_is_void)
            if isinstance(classes, int):
                first = int(zero_is_void)
                classes = [str(index) for index in range(first, classes + first)]
            self.targets["label"] = Target("mask", tuple(classes))

    def read(self, index: int) -> Sample:
        """Read one sample; its target holds a mask only where there is a label.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        sample: Sample = {"id": self.ids[index], "images": {}}
        for name in self.sensors_of(index):
            modality, file = self.modalities[name], self._files[name][index]
            assert file is not None
            picture = read_sensor(file, modality)
            sample["images"][name] = resize(picture, modality.size)
        if self.targets:
            label = self._labels[index]
            sample["target"] = {} if label is None else {"label": self._read_label(label)}
        return sample

    def files(self, index: int) -> list[str]:
        """Return the pictures of a sample, and its label."""
        pictures = [self._files[name][index] for name in self.sensors_of(index)]
        files = [*pictures, self._labels[index] if self.targets else None]
        return [file for file in files if file is not None]

    def _read_label(self, file: str) -> Tensor:
        label = read_label(file, self.zero_is_void)
        classes = len(self.targets["label"].classes)
        unknown = (label >= classes) & (label != UNKNOWN_CLASS)
        if unknown.any():
            first = int(self.zero_is_void)
            raise BadSampleError(
                file,
                f"has value {int(label[unknown][0]) + first}, the {classes} classes are {first} to "
                f"{classes - 1 + first}; set `classes`",
            )
        return resize_mask(label, self._size)


def read_label(file: str | Path, zero_is_void: bool) -> Tensor:
    """Read a picture of class indices: (H, W) int64, 255 where it is not labelled."""
    refuse_lossy(file)
    label = read_mask(file)
    if zero_is_void:
        label = torch.where((label == 0) | (label == UNKNOWN_CLASS), UNKNOWN_CLASS + 1, label) - 1
    return label


def _lines(file: Path) -> list[list[str]] | None:
    """Return for each line of a split's file the names that it may mean, the likeliest first.

    A line is a name or a path, and a label's path behind a tab or a blank. Names may hold blanks.
    None where there is no such file.
    """
    if not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error}); {_LAYOUT}") from error
    found = []
    for line in map(str.strip, lines):
        if not line:
            continue
        words = [line.split("\t")[0]] if "\t" in line else _before_blanks(line)
        found.append([_name(file, word.strip()) for word in words])
    if not found:
        raise DataError(f"{file}: names no picture; {_LAYOUT}")
    return found


def _before_blanks(line: str) -> list[str]:
    """Return a line, and what stands before each of its blanks, from the last to the first."""
    blanks = [at for at, letter in enumerate(line) if letter == " "]
    return [line, *(line[:at] for at in reversed(blanks))]


def _names(file: Path, lines: list[list[str]], pictured: set[str]) -> list[str]:
    """Return the names in a split's file.

    Raises:
        DataError: if one has no picture or comes twice.
    """
    names = [next((name for name in line if name in pictured), None) for line in lines]
    unknown = [line[0] for line, name in zip(lines, names, strict=True) if name is None]
    if unknown:
        raise DataError(
            f"{file}: {len(unknown)} of its {len(lines)} names have no picture, for example "
            f"{unknown[0]!r}; correct the list, or restore the pictures; {_LAYOUT}"
        )
    known = [name for name in names if name is not None]
    if twice := [name for name, count in Counter(known).items() if count > 1]:
        raise DataError(f"{file}: {twice[0]!r} comes twice; keep one line of it")
    return known


def _name(file: Path, entry: str) -> str:
    path = PurePosixPath(entry)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{file}: {entry!r} leaves the folder; name pictures below RGB")
    if path.parts[:1] == ("RGB",):
        path = path.relative_to("RGB")
    path = path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path
    return str(path.parent / as_id(path.name))


def _files(
    folder: Path, lines: Iterable[list[list[str]] | None], needed: bool = True
) -> dict[str, str]:
    """Return `{name: file}` of the pictures in a folder, and in the sub-folders of the names."""
    if not folder.is_dir():
        if not needed:
            return {}
        there = ", ".join(sorted(e.name for e in folder.parent.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder}: no such folder (there is {there}); {_LAYOUT}")
    names = [name for of_split in lines for line in of_split or () for name in line]
    parents = {str(PurePosixPath(name).parent) for name in names} | {"."}
    files: dict[str, str] = {}
    for parent in sorted(parents):
        if (folder / parent).is_dir():
            for stem, file in scan(folder / parent).items():
                files[str(PurePosixPath(parent) / stem)] = file
    if needed and not files:
        raise DataError(f"{folder}: holds no pictures; {_LAYOUT}")
    return files


def _wanted(
    root: Path,
    split: str | None,
    listed: dict[str, list[str] | None],
    files: dict[str, dict[str, str]],
) -> list[str]:
    if split is not None:
        names = listed[split]
        if names is None:
            raise DataError(f"{root / f'{split}.txt'}: no such file; {_LAYOUT}")
        return names
    both = [name for of_split in listed.values() for name in of_split or ()]
    if len(set(both)) < len(both):
        twice = next(name for name in both if both.count(name) > 1)
        raise DataError(f"{root}: {twice!r} is in train.txt and in test.txt; take it out of one")
    return both or sorted(set().union(*files.values()))


def _header(folder: Path, files: Iterable[str]) -> Header:
    """Return the header of the first file that can be read."""
    error: BadSampleError | None = None
    for file in files:
        try:
            return read_header(file)
        except BadSampleError as bad:
            error = error or bad
    raise DataError(f"{folder}: no picture can be read, the first because: {error}") from error


def _modality(name: str, header: Header, size: tuple[int, int]) -> Modality:
    preset = PRESETS.get(name)
    if header.is_byte:
        bands = tuple(f"band{i + 1}" for i in range(header.bands))
        if preset is not None and preset.channels == header.bands:
            bands = preset.bands
        scaling: dict[str, Any] = {"scaling": "range"}
    else:  # of an unknown unit: each picture to its own range
        bands = tuple(f"band{i + 1}" for i in range(header.bands))
        scaling = {"scaling": "image", "cut": 2.0, "nodata": 0.0}
    return Modality(
        name=name, bands=bands, size=size, augmentation=guess_augmentation(name), **scaling
    )


def _count(labels: Sequence[str], zero_is_void: bool) -> int:
    """Return the number of classes that some labels show."""
    spaced = evenly_spaced(len(labels), _LABELS_READ)
    highest = 0
    for row in spaced:
        try:
            label = read_label(labels[row], zero_is_void)
        except BadSampleError:
            continue  # comes up again when it is read as a sample
        highest = max(highest, int(label.masked_fill(label == UNKNOWN_CLASS, 0).max()))
    return highest + 1
