"""A folder of pairs: one sub-folder a modality, files of the same name belong together."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from decur.data.base import DATASETS, PairedDataset
from decur.data.files import (
    MAX_PIXELS,
    Header,
    check_bands,
    parts_of,
    read_header,
    read_sensor,
    resize,
)
from decur.data.listing import MASK, modality_files, scan
from decur.data.masks import MaskCodes, read_codes
from decur.data.sample import VOID, Sample
from decur.data.selection import evenly_spaced
from decur.data.stats import guess_augmentation, stats_of_files
from decur.data.tables import Labels, read_splits
from decur.errors import BadSampleError, DataError
from decur.modality import Modality, load_modalities

log = logging.getLogger(__name__)

UNKNOWN_CLASS = VOID  # in masks of up to 255 classes

_HEADERS = 50  # files of a modality whose headers tell its size
_STATS_FILES = 200  # files of a modality whose pixels tell its statistics, where none are given


@DATASETS.register("PairedFolder")
class PairedFolder(PairedDataset):
    """Pairs from `root/<modality>/<id>.<tif|jp2|png|jpg|npy|...>`, see `decur.data.files`.

    Pairing is by id, the file's name without extension, never by order. An id that lacks a
    modality is kept and marked absent. Images of another size than their modality's are resized
    (bilinear with antialiasing; a pixel stays measured where at least half of what makes it was).

    Beside the modalities there may be

    * `modalities.yaml`, as `decur stats` writes it, with bands, statistics and scaling;
    * `labels.csv`: `id` and a column for each label, see `decur.data.tables.Labels`;
    * `mask/<id>.png`: class indices, 255 unknown, of any size; `mask/classes.txt` may name the
      classes, one a line, and say which value or colour each has (`decur.data.masks`);
    * `splits.csv`: `id`, `split`, and `group` or `cluster`, of samples that belong together.

    Args:
        root: the folder.
        modalities: those to read, in order: a YAML file or a mapping as `load_modalities` takes.
            None: `root/modalities.yaml` where there is one; else every sub-folder with pictures
            but `mask`. Then 8-bit data is scaled by its range and other data by the statistics of
            up to 200 files, and the augmentation follows from the folder's name.
        split: which split of splits.csv; None for all samples.
        missing: "keep" samples that lack a modality, or "drop" them.
        max_pixels: height times width of a picture at most; a larger one makes a bad sample.
        mask_nodata: value or values in masks that mean "unknown"; None: 255.

    Raises:
        DataError: if there is no data set to be made of this, naming file and remedy.
        ConfigError: for wrong `modalities`.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: dict[str, Any] | str | Path | None = None,
        *,
        split: str | None = None,
        missing: Literal["keep", "drop"] = "keep",
        max_pixels: int = MAX_PIXELS,
        mask_nodata: int | list[int] | None = None,
    ) -> None:
        self.root, self.max_pixels = Path(root), max_pixels
        if modalities is None and (self.root / "modalities.yaml").is_file():
            modalities = self.root / "modalities.yaml"
        given = load_modalities(modalities)
        folders = modality_files(self.root, tuple(given) or None)
        samples = _pair(self.root, folders, missing)
        pictured = {id_ for files in folders.values() for id_ in files}
        wanted, groups = read_splits(self.root / "splits.csv", pictured, split=split)
        self.ids = [id_ for id_ in samples if wanted is None or id_ in wanted]
        if not self.ids:
            raise DataError(f"{self.root}: no complete sample in split {split!r}; missing='keep'?")
        self._files = {
            name: [files.get(id_) for id_ in self.ids] for name, files in folders.items()
        }
        self.present = {
            name: np.array([file is not None for file in files])
            for name, files in self._files.items()
        }
        self.groups = [groups.get(id_, id_) for id_ in self.ids] if groups is not None else None
        # From all files, not from the split's: each split must see the same modalities.
        self.modalities = {}
        self._is_byte: dict[str, bool | None] = {}
        for name, files in folders.items():
            self.modalities[name], self._is_byte[name] = _complete(
                name, list(files.values()), modality=given.get(name), max_pixels=max_pixels
            )
        self.targets = {}
        self._labels = None
        if (self.root / "labels.csv").is_file():
            self._labels = Labels(self.root / "labels.csv", pictured)
            self.labels = self._labels.rows
            self.targets |= self._labels.targets
        self._masks = scan(self.root / MASK) if (self.root / MASK).is_dir() else {}
        self._codes: MaskCodes | None = None
        if self._masks:
            if MASK in self.targets:
                raise DataError(
                    f"{self.root / 'labels.csv'}: column {MASK!r} and folder {MASK!r} clash; "
                    "rename the column"
                )
            self._codes = read_codes(self.root / MASK, list(self._masks.values()), mask_nodata)
            self._codes = replace(self._codes, max_pixels=max_pixels)
            self.targets[MASK] = self._codes.target

    def read(self, index: int) -> Sample:
        """Read one sample; its target holds a mask only where there is one.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        id_ = self.ids[index]
        images = {}
        for name in self.sensors_of(index):
            modality, file = self.modalities[name], self._files[name][index]
            assert file is not None
            picture = read_sensor(
                file, modality, is_byte=self._is_byte[name], max_pixels=self.max_pixels
            )
            images[name] = resize(picture, modality.size)
        sample: Sample = {"id": id_, "images": images}
        if self.targets:
            sample["target"] = self._labels[id_] if self._labels else {}
        if (mask := self._mask(id_)) and self._codes is not None:
            sample["target"][MASK] = self._codes.read(mask)
        return sample

    def files(self, index: int) -> list[str]:
        """Return the pictures of a sample and its mask, with what belongs to them."""
        pictures = [self._files[name][index] for name in self.sensors_of(index)]
        files = [*pictures, self._mask(self.ids[index])]
        return [str(part) for file in files if file is not None for part in parts_of(file)]

    def _mask(self, id_: str) -> str | None:
        """Return the mask of a sample, if it has one that is wanted."""
        return self._masks.get(id_) if MASK in self.targets else None

    def describe(self) -> str:
        """Return one line for the log: samples, sensors and how many samples lack them, labels."""
        line = super().describe()
        if self.targets:
            line += f", labels: {', '.join(self.targets)}"
        if self.groups is not None:
            line += f", {len(set(self.groups))} groups"
        return line


def _pair(root: Path, folders: dict[str, dict[str, str]], missing: str) -> list[str]:
    """Return the ids of the samples, sorted."""
    if missing not in ("keep", "drop"):
        raise DataError(f"missing is {missing!r}; choose 'keep' or 'drop'")
    counts = Counter(id_ for files in folders.values() for id_ in files)
    if len(folders) > 1 and max(counts.values()) == 1:
        examples = ", ".join(f"{name}/{next(iter(files))}" for name, files in folders.items())
        raise DataError(
            f"{root}: no id has two modalities (for example {examples}); "
            "give the files of one place the same name in each folder"
        )
    complete = sorted(id_ for id_, count in counts.items() if count == len(folders))
    if missing == "drop" and not complete:
        raise DataError(f"{root}: no id has all of {', '.join(folders)}; use missing='keep'")
    return complete if missing == "drop" else sorted(counts)


def _spaced(files: list[str], at_most: int) -> list[str]:
    """Return evenly spaced files, first and last among them."""
    return [files[i] for i in evenly_spaced(len(files), at_most)]


def _complete(
    name: str, files: list[str], *, modality: Modality | None, max_pixels: int
) -> tuple[Modality, bool | None]:
    """Return the modality with all fields set: guessed if not given, the size from headers.

    The second value says whether its pictures of whole numbers are 8-bit; None where any may be.
    """
    headers: list[Header] = []
    known = modality.channels if modality and not modality.picks else None
    variable = modality.variable if modality else None
    for file in _spaced(files, _HEADERS):
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
        sample = _spaced(files, _STATS_FILES)
        statistics = stats_of_files(sample, is_byte=is_byte, max_pixels=max_pixels, workers=2)
        modality = statistics.to_modality(name)
        source = f"statistics of {len(sample)} of {len(files)} files"
    log.info(
        "modality %r: scaling %r from %s, augmentation %r by its name; "
        "`decur stats ROOT` writes modalities.yaml from all files",
        name,
        modality.scaling,
        source,
        modality.augmentation,
    )
    return modality
