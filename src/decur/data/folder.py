"""A folder of pairs: one sub-folder a modality, files of the same name belong together."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset
from decur.data.files import (
    MAX_PIXELS,
    parts_of,
    read_with_position,
    resize,
)
from decur.data.folder_sensors import complete_modality, warn_of_turned
from decur.data.georeference import (
    Place,
    align,
    compare_pair,
    describe_places,
    place_at,
    read_place,
    refuse_apart,
)
from decur.data.grid import Grid
from decur.data.labels import Labels
from decur.data.listing import MASK
from decur.data.masks import MaskCodes, read_codes
from decur.data.pairing import Pairing, check_masks, check_pairs, pair_files
from decur.data.sample import VOID, Sample
from decur.data.selection import evenly_spaced
from decur.data.tables import find_table, read_splits, unread_tables
from decur.errors import DataError
from decur.modality import load_modalities

log = logging.getLogger(__name__)

UNKNOWN_CLASS = VOID  # in masks of up to 255 classes

_PLACES = 100  # samples whose place on the Earth is looked at: opening a GeoTIFF takes milliseconds
_FIRST_PLACES = 5  # the first of these samples, which tell whether any has a place


@DATASETS.register("PairedFolder")
class PairedFolder(PairedDataset):
    """Pairs from `root/<modality>/<id>.<tif|jp2|png|jpg|npy|...>`, see `decur.data.files`.

    Pairing is by id, the file's name without extension, never by order; `pattern` says otherwise.
    An id that lacks a modality is kept and marked absent. Images of another size than their
    modality's are resized (bilinear with antialiasing; a pixel stays measured where at least half
    of what makes it was). Pictures that say where they lie on the Earth must overlap.

    Beside the modalities there may be

    * `modalities.yaml`, as `decur stats` writes it, with bands, statistics and scaling;
    * `labels.csv`: `id` and a column for each label, see `decur.data.labels.Labels`;
    * `mask/<id>.png`: class indices, 255 unknown, of any size; `mask/classes.txt` may name the
      classes, one a line, and say which value or colour each has (`decur.data.masks`);
    * `splits.csv`: `id`, `split`, and `group` or `cluster`, of samples that belong together.

    The tables may also be `.tsv` and `.parquet`. docs/data.md shows each layout.

    Args:
        root: Folder of the pairs, one sub-folder for each sensor.
        modalities: Modalities to read, in order: a YAML file or a mapping as `load_modalities`
            takes. None: `root/modalities.yaml` where there is one; else every sub-folder with
            pictures but `mask` and what looks like labels. Then 8-bit data is scaled by its range
            and other data by the statistics of up to 200 files, and the augmentation follows from
            the folder's name.
        split: Split of splits.csv, or of the pattern; None for all samples.
        missing: Whether to "keep" samples that lack a modality, or "drop" them. None keeps them,
            but refuses data where fewer than 2 % of the samples have two modalities.
        max_pixels: Largest height times width of a picture; a larger one makes a bad sample.
        mask_nodata: Value or values in masks that mean "unknown"; None: 255.
        pattern: Names of the files, without extension, where they are not `<sensor>/<id>`:
            `{id}_S1Hand` in each sensor's folder, or a path below the root as
            `{split}/{sensor}/{id}`; `*` stands for anything, the parts of several `{id}` are
            joined. One for all sensors, or a mapping `{sensor: pattern}`, also of `mask`.
        align: Resample pictures that say where they lie onto the grid of the first modality that
            does, which has then the size of all.
        label_nodata: Number or numbers in labels that mean "unknown".

    Raises:
        DataError: if there is no data set to be made of this, naming file and remedy.
        ConfigError: for wrong `modalities` or a wrong `pattern`.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: dict[str, Any] | str | Path | None = None,
        *,
        split: str | None = None,
        missing: Literal["keep", "drop"] | None = None,
        max_pixels: int = MAX_PIXELS,
        mask_nodata: int | list[int] | None = None,
        pattern: str | dict[str, str] | None = None,
        align: bool = False,
        label_nodata: float | list[float] | None = None,
    ) -> None:
        self.root, self.max_pixels, self.align = Path(root), max_pixels, align
        if missing not in (None, "keep", "drop"):
            raise DataError(f"missing is {missing!r}; choose 'keep' or 'drop'")
        if modalities is None and (self.root / "modalities.yaml").is_file():
            modalities = self.root / "modalities.yaml"
        given = load_modalities(modalities)
        pairing = pair_files(self.root, tuple(given) or None, pattern)
        _report(self.root, pairing, keep=missing == "keep")
        folders = pairing.folders
        samples = _choose(self.root, pairing, missing)
        pictured = set(pairing.counts)
        splits = find_table(self.root, "splits")
        if splits is None and pairing.splits is not None:
            wanted, groups = _split_of(self.root, pairing.splits, split), None
        else:
            table = splits or self.root / "splits.csv"
            wanted, groups = read_splits(table, pictured, split=split)
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
            self.modalities[name], self._is_byte[name] = complete_modality(
                name, list(files.values()), modality=given.get(name), max_pixels=max_pixels
            )
        warn_of_turned(self.modalities)
        self._left_out = pairing.left_out + [f"{n} (not read)" for n in unread_tables(self.root)]
        self._set_labels(pictured, label_nodata)
        self._masks = pairing.masks
        self._codes: MaskCodes | None = None
        if self._masks:
            if few := check_masks(self.root, pairing):
                log.warning(few)
            self._set_masks(mask_nodata)
        if len(folders) + bool(self._masks) > 1:
            self._check_places()

    def _set_labels(self, pictured: set[str], nodata: float | list[float] | None) -> None:
        """Read the table of labels, if there is one."""
        self.targets = {}
        self._labels = None
        table = find_table(self.root, "labels")
        if table is not None:
            unknown = [] if nodata is None else nodata if isinstance(nodata, list) else [nodata]
            self._labels = Labels(table, pictured, unknown)
            self.labels = self._labels.rows
            self.targets |= self._labels.targets
            remarks = [f"column {name} (no label)" for name in self._labels.remarks]
            self._left_out += remarks

    def _set_masks(self, nodata: int | list[int] | None) -> None:
        """Tell what the masks mean."""
        if MASK in self.targets:
            raise DataError(
                f"{find_table(self.root, 'labels')}: column {MASK!r} and folder {MASK!r} clash; "
                "rename the column"
            )
        first = next(iter(self._masks.values()))
        self._codes = read_codes(
            Path(first).parent, list(self._masks.values()), nodata, max_pixels=self.max_pixels
        )
        self.targets[MASK] = self._codes.target

    def _pair(self, index: int) -> dict[str, str | None]:
        """Return the files of a sample by sensor, and its mask if that is wanted."""
        files = {name: self._files[name][index] for name in self.modalities}
        return {**files, MASK: self._mask(self.ids[index])}

    def _check_places(self) -> None:
        """Look at where pictures lie, and say what does not fit; of all samples, or of some."""
        rows = evenly_spaced(len(self), _PLACES)
        found = [compare_pair(self._pair(row)) for row in rows[:_FIRST_PLACES]]
        if not any(one for _, one in found):
            return  # nothing says where it lies
        found += [compare_pair(self._pair(row)) for row in rows[_FIRST_PLACES:]]
        disjoint, moved, offset = describe_places([one for _, one in found])
        looked = f"{len(rows)} samples" if len(rows) == len(self) else f"{len(rows)} samples seen"
        if disjoint:
            log.warning(
                "%s: in %d of %s pictures do not overlap, by their coordinates; these are bad "
                "samples",
                self.root,
                disjoint,
                looked,
            )
        if self.align:
            self._set_grid([reference for reference, _ in found if reference])
        elif moved:
            log.warning(
                "%s: in %d of %s pictures lie on other grids, up to %.3g m apart; "
                "--data.align true resamples them onto that of %s",
                self.root,
                moved,
                looked,
                offset,
                next(reference for reference, _ in found if reference),
            )

    def _set_grid(self, references: list[str]) -> None:
        """Give all modalities the size of the one whose grid they are resampled onto."""
        reference = Counter(references).most_common(1)[0][0]
        size = self.modalities[reference].size if reference in self.modalities else None
        self.modalities = {n: m.with_(size=size or m.size) for n, m in self.modalities.items()}

    def _grid(self, index: int) -> Place | None:
        """Return the grid that the pictures of a sample are resampled onto, if any."""
        if not self.align:
            return None
        files = (self._files[name][index] for name in self.modalities)
        return next((place for file in files if file and (place := read_place(file))), None)

    def read(self, index: int) -> Sample:
        """Read one sample; its target holds a mask only where there is one.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        id_ = self.ids[index]
        files, pictures, places = {}, {}, {}
        for name in self.sensors_of(index):
            files[name] = file = str(self._files[name][index])
            pictures[name], position = read_with_position(
                file,
                self.modalities[name],
                is_byte=self._is_byte[name],
                max_pixels=self.max_pixels,
            )
            if position is not None:
                places[name] = place_at(position)
        mask = self._mask(id_)
        if mask and places and (place := read_place(mask)):
            places[MASK] = place
        refuse_apart(
            {**files, MASK: mask}, places
        )  # before any picture is brought onto the grid of another
        grid = self._grid(index)
        images = {
            name: resize(_aligned(picture, files[name], grid), self.modalities[name].size)
            for name, picture in pictures.items()
        }
        sample: Sample = {"id": id_, "images": images}
        if self.targets:
            sample["target"] = self._labels[id_] if self._labels else {}
        if mask and self._codes is not None:
            classes = self._codes.read(mask)  # (H, W)
            if grid is not None:
                void = self._codes.target.void
                known = classes.double().masked_fill(classes == void, torch.nan)
                moved = _aligned(known[None], mask, grid, nearest=True)[0]
                classes = moved.nan_to_num(void).long()
            sample["target"][MASK] = classes
        return sample

    def place(self, index: int) -> Grid | None:
        """Return where a sample lies on a map, from the first of its files that says."""
        files = [self._files[name][index] for name in self.sensors_of(index)]
        place = next((place for file in files if file and (place := read_place(file))), None)
        return None if place is None else place.grid

    def files(self, index: int) -> list[str]:
        """Return the pictures of a sample and its mask, with what belongs to them."""
        pictures = [self._files[name][index] for name in self.sensors_of(index)]
        files = [*pictures, self._mask(self.ids[index])]
        return [str(part) for file in files if file is not None for part in parts_of(file)]

    def _mask(self, id_: str) -> str | None:
        """Return the mask of a sample, if it has one that is wanted."""
        return self._masks.get(id_) if MASK in self.targets else None

    def describe(self) -> str:
        """Return the line of every data set, and the folders and files that are left out."""
        line = super().describe()
        if self._left_out:
            line += f"; left out: {', '.join(self._left_out)}"
        return line


def _report(root: Path, pairing: Pairing, *, keep: bool) -> None:
    """Warn of folders that look like labels, and of few pairs; refuse data with hardly any."""
    for name, why in pairing.labels.items():
        log.warning(
            "%s: holds %s and is not trained on; name it in modalities to train on it, or make it "
            'the mask: rename it to %s, or --data.pattern \'{"%s": "%s/{id}"}\'',
            root / name,
            why,
            MASK,
            MASK,
            name,
        )
    for name, kinds in pairing.unread.items():
        log.warning(
            "%s: holds %s, which are not read, and is not trained on; convert them to .tif, .png "
            "or .npy",
            root / name,
            kinds,
        )
    if few := check_pairs(root, pairing, keep=keep):
        log.warning(few)


def _choose(root: Path, pairing: Pairing, missing: str | None) -> list[str]:
    """Return the ids of the samples, sorted."""
    counts, folders = pairing.counts, pairing.folders
    complete = sorted(id_ for id_, count in counts.items() if count == len(folders))
    if missing == "drop" and not complete:
        raise DataError(f"{root}: no id has all of {', '.join(folders)}; use missing='keep'")
    return complete if missing == "drop" else sorted(counts)


def _split_of(root: Path, splits: dict[str, str], split: str | None) -> set[str] | None:
    """Return the ids of a split that the pattern tells; None for all."""
    if split is None:
        return None
    wanted = {id_ for id_, of_id in splits.items() if of_id == split}
    if not wanted:
        there = ", ".join(sorted(set(splits.values())))
        raise DataError(f"{root}: no split {split!r}; choose from {there}")
    return wanted


def _aligned(image: Tensor, file: str, grid: Place | None, *, nearest: bool = False) -> Tensor:
    """Return a picture on a grid; as it is where there is none, or it does not say where it is."""
    place = read_place(file) if grid is not None else None
    if grid is None or place is None or place == grid:
        return image
    if nearest:  # a mask keeps its number of pixels
        grid = grid.divided(place.size)
    return align(image, place, grid, nearest=nearest)
