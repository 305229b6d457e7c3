"""Scenes larger than memory as a data set: windows on one grid, read when they are needed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset, check_choices
from decur.data.files import parts_of
from decur.data.grid import Grid
from decur.data.listing import MASK
from decur.data.sample import Sample
from decur.data.scene_labels import find_labels
from decur.data.scene_layout import find_scenes
from decur.data.scene_sensors import (
    check_resolution,
    describe_sensor,
    find_rasters,
    report_scenes,
)
from decur.data.scene_windows import (
    Windows,
    find_windows,
    refuse_no_window,
    spatial_blocks,
    usable_windows,
)
from decur.data.window_reader import WindowReader, nodata_values
from decur.errors import BadSampleError, ConfigError, DataError, listed
from decur.modality import Modality, load_modalities

_TEST_SHARE = 0.2  # share of the blocks that is for testing
_BETWEEN = "between"  # the group of windows that lie in no block, and have no label

Extent = Literal["intersection", "union"]
Dates = Literal["drawn", "same", "first"]
Split = Literal["train", "test"]


@DATASETS.register("PairedScenes")
class PairedScenes(PairedDataset):
    """Windows of rasters of any size, number, CRS and resolution: `root/<sensor>/<name>.tif`.

    A raster of the first sensor makes a scene; rasters that show the same rectangle are its dates,
    told by a date in their names where there is one. The other sensors' rasters are found by where
    they lie and read onto the scene's grid through GDAL (`WarpedVRT`), so that names do not matter.
    A sample is named after scene, row and column of its window, and carries the window's grid.

    Beside the sensors there may be `modalities.yaml`, a folder `mask` of label rasters (class
    indices; `mask/classes.txt` names them), or `labels.geojson` or `labels.gpkg`: shapes with a
    class column. Labelled windows come in spatial blocks: windows that reach into two of them have
    no label, so that labelled windows of two groups never touch.

    Args:
        root: Folder of the scenes.
        modalities: Modalities to read, in order; the first is the reference. Names alone as `[s2,
            s1]`, or a YAML file or mapping of what they are. None: `root/modalities.yaml`, else
            every sub-folder with rasters but those of labels. What nothing is said of is scaled by
            the statistics of 64 squares of its rasters, or by its range if it is 8-bit.
        window: Height and width of a window in pixels.
        stride: Number of pixels from one window to the next; None: the window, so that none
            overlap.
        resolution: Size of a pixel of the grid, in units of its CRS (metres); None: the reference
            sensor's own.
        extent: Which windows there are: "intersection": those that all sensors see; "union": also
            those that some do.
        dates: How the dates of a place are paired: "drawn": a window is as many samples as there
            are dates, each sensor's in an order that is drawn for the window, so that dates of two
            sensors are paired at random, and by `--pairing group` otherwise in each epoch; "same":
            the dates in their order; "first": one sample, the first dates.
        min_valid: Share of a window that a sensor must have measured to count as present.
        labels: File of shapes, or folder of label rasters, where they lie elsewhere.
        column: Column of the shapes' class.
        split: Split: "train" or "test": a fifth of the blocks is for testing. None: all windows.
        block: Number of windows along the side of a block; None: 8, or fewer where that leaves less
            than 10 blocks; without labels and split there are none.

    Raises:
        DataError: if no samples can be made of this, naming file and remedy.
        ConfigError: for wrong options.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: dict[str, Any] | list[str] | str | Path | None = None,
        *,
        window: int = 256,
        stride: int | None = None,
        resolution: float | None = None,
        extent: Extent = "intersection",
        dates: Dates = "drawn",
        min_valid: float = 0.5,
        labels: str | Path | None = None,
        column: str | None = None,
        split: Split | None = None,
        block: int | None = None,
    ) -> None:
        self.root, self.window = Path(root), window
        self.stride = window if stride is None else stride
        self._readers: dict[tuple[int, str, int], WindowReader] = {}
        _check_options(extent, dates, split, window=window, stride=self.stride, block=block)
        if not 0 <= min_valid <= 1:
            raise ConfigError(f"min_valid: is a share in [0, 1], not {min_valid:g}")
        names, given = _named(self.root, modalities)
        rasters = find_rasters(self.root, names, window)
        check_resolution(rasters, resolution)
        union = extent == "union"
        self._scenes, rest = find_scenes(rasters, union=union, resolution=resolution)
        report_scenes(rasters, self._scenes, rest)
        nodata = {name: nodata_values(modality.nodata) for name, modality in given.items()}
        windows = find_windows(self._scenes, window, self.stride, nodata)
        usable = [
            usable_windows(of_scene, list(rasters), union=union, min_valid=min_valid)
            for of_scene in windows
        ]
        if not any(one.any() for one in usable):
            raise refuse_no_window(self._scenes, windows, window, min_valid)
        self._labels = find_labels(self.root, labels, column)
        self.targets = {MASK: self._labels.target} if self._labels is not None else {}
        labelled = self._find_labelled(windows, usable)
        blocks: list[list[str | None]] | None = None
        if split is not None or block is not None or self.targets:
            counted = labelled if self.targets else usable
            blocks = spatial_blocks(self._scenes, windows, counted, window, block)
        self._make_samples(windows, usable, dates=dates, min_valid=min_valid)
        self._set_groups(blocks, labelled, split)
        self.modalities, self._bands = {}, {}
        for name, of_sensor in rasters.items():
            modality, self._bands[name] = describe_sensor(name, of_sensor, given.get(name))
            self.modalities[name] = modality.with_(size=(window, window))

    # -- samples -----------------------------------------------------------------------------------

    def _find_labelled(
        self, windows: Sequence[Windows], usable: Sequence[NDArray[np.bool_]]
    ) -> list[NDArray[np.bool_]]:
        """Return which windows of each scene are samples that labels reach into.

        Raises:
            DataError: if labels are of another place.
        """
        if self._labels is None:
            return [np.zeros(len(wanted), dtype=bool) for wanted in usable]
        labelled = []
        for scene, of_scene, wanted in zip(self._scenes, windows, usable, strict=True):
            right, down = scene.grid.resolution
            west = scene.grid.west + of_scene.columns * right
            north = scene.grid.north - of_scene.rows * down
            south, east = north - self.window * down, west + self.window * right
            boxes = np.stack([west, south, east, north], axis=1)  # (N, 4)
            labelled.append(wanted & self._labels.covered(scene.grid, boxes))
        if not any(one.any() for one in labelled):
            places = (self._labels.corner, self._scenes[0].grid.footprint()[0])
            first, own = (", ".join(f"{degrees:.10g}" for degrees in place) for place in places)
            raise DataError(
                f"{self._labels.path}: no label lies within a window: the first is at {first}, and "
                f"{self._scenes[0].name} at {own} (longitude, latitude); correct its CRS, or take "
                "it out"
            )
        self._labels.warn_over()
        return labelled

    def _make_samples(
        self,
        windows: Sequence[Windows],
        usable: Sequence[NDArray[np.bool_]],
        *,
        dates: Dates,
        min_valid: float,
    ) -> None:
        """Make a sample, or one for each date, of each window that is of use."""
        names = list(dict.fromkeys(name for scene in self._scenes for name in scene.layers))
        places: list[tuple[int, int, int, int]] = []  # scene, row, column, window of the scene
        layers: dict[str, list[int]] = {name: [] for name in names}
        self.ids, self._shown = [], []
        scene_names = _unique([scene.name for scene in self._scenes])
        for number, (of_scene, wanted) in enumerate(zip(windows, usable, strict=True)):
            seen = {name: of_scene.seen(name, min_valid) for name in of_scene.measured}
            for at in np.flatnonzero(wanted):
                row, column = int(of_scene.rows[at]), int(of_scene.columns[at])
                there = {name: np.flatnonzero(of_sensor[at]) for name, of_sensor in seen.items()}
                id_ = f"{scene_names[number]}_r{row}_c{column}"
                count = 1 if dates == "first" else max(map(len, there.values()))
                if dates == "drawn" and count > 1:
                    there = {n: _drawn(found, f"{id_} {n}") for n, found in there.items()}
                for date in range(count):
                    self.ids.append(id_ if count == 1 else f"{id_}_d{date}")
                    self._shown.append(id_)
                    places.append((number, row, column, int(at)))
                    for name in names:
                        found = there.get(name, ())
                        layers[name].append(int(found[date % len(found)]) if len(found) else -1)
        self._places = np.array(places, dtype=np.int64)  # (N, 4)
        self._layers = {name: np.array(of, dtype=np.int16) for name, of in layers.items()}
        self.present = {name: of >= 0 for name, of in self._layers.items()}

    def _set_groups(
        self,
        blocks: Sequence[Sequence[str | None]] | None,
        labelled: Sequence[NDArray[np.bool_]],
        split: Split | None,
    ) -> None:
        """Name the block of each sample; keep those of a split; else the dates of a window."""
        at = self._places[:, [0, 3]].tolist()
        self._labelled = np.array([labelled[scene][window] for scene, window in at], dtype=bool)
        if blocks is None:
            self.groups = self._shown if len(set(self._shown)) < len(self.ids) else None
            return
        groups = [blocks[scene][window] or _BETWEEN for scene, window in at]
        self._labelled &= np.array([name != _BETWEEN for name in groups], dtype=bool)
        if split is not None:
            order = sorted(
                set(groups) - {_BETWEEN},
                key=lambda name: hashlib.sha256(name.encode()).digest(),
            )
            if len(order) < 2:
                raise DataError(
                    f"{self.root}: one block of windows cannot be split; set --data.block lower"
                )
            tested = set(order[: max(1, round(_TEST_SHARE * len(order)))])
            wanted = tested if split == "test" else set(order) - tested
            kept = [i for i, name in enumerate(groups) if name in wanted]
            self.ids = [self.ids[i] for i in kept]
            groups, self._shown = [groups[i] for i in kept], [self._shown[i] for i in kept]
            self._places, self._labelled = self._places[kept], self._labelled[kept]
            self._layers = {name: of[kept] for name, of in self._layers.items()}
            self.present = {name: has[kept] for name, has in self.present.items()}
        self.groups = groups

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """See `PairedDataset.only`; without labels, groups are the dates of a window."""
        made = super().only(names, targets)
        if not made.targets:
            made.groups = made._shown if len(set(made._shown)) < len(made.ids) else None
        return made

    # -- reading -----------------------------------------------------------------------------------

    def read(self, index: int) -> Sample:
        """Read one window; its target holds a mask only where there are labels.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """
        images = {name: self._read_sensor(index, name) for name in self.sensors_of(index)}
        sample: Sample = {"id": self.ids[index], "images": images, "place": self.place(index)}
        if self.targets:
            sample["target"] = {}
            if self._labelled[index]:
                scene, row, column, _ = self._places[index].tolist()
                mask = self._labels.read(self._scenes[scene].grid, row, column, self.window)
                if mask is not None:
                    sample["target"][MASK] = mask  # (H, W)
        return sample

    def _read_sensor(self, index: int, name: str) -> Tensor:
        scene, row, column, _ = self._places[index].tolist()
        reader = self._reader(scene, name, int(self._layers[name][index]))
        image = reader.read(row, column, self.window, self.window)
        file = reader.rasters[0].path
        if image.is_floating_point() and image.isnan().all():
            raise BadSampleError(
                file, f"has no measured pixel in {self.ids[index]}; raise min_valid"
            )
        if image.shape[0] != self.modalities[name].channels:
            raise BadSampleError(
                file, f"has {image.shape[0]} bands, {name} {self.modalities[name].channels}"
            )
        return image

    def _reader(self, scene: int, name: str, date: int) -> WindowReader:
        """Return the reader of a sensor's rasters of a date, which is kept for the next window."""
        key = (scene, name, date)
        if key not in self._readers:
            self._readers[key] = WindowReader(
                self._scenes[scene].grid,
                self._scenes[scene].layers[name][date],
                nodata=self.modalities[name].nodata,
                bands=self._bands[name],
            )
        return self._readers[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def place(self, index: int) -> Grid:
        """Return the grid of a window."""
        scene, row, column, _ = self._places[index].tolist()
        grid: Grid = self._scenes[scene].grid
        return grid.window(row, column, self.window, self.window)

    def files(self, index: int) -> list[str]:
        """Return the rasters that a window is read from, and its labels."""
        scene = self._scenes[int(self._places[index][0])]
        found = [
            raster.path
            for name in self.sensors_of(index)
            for raster in scene.layers[name][int(self._layers[name][index])]
        ]
        if self.targets and self._labelled[index]:
            found += self._labels.files(scene.grid)
        return [str(part) for file in found for part in parts_of(file)]

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return None: a window has no bytes of its own."""
        return None

    def describe(self) -> str:
        """Return one line for the log: windows, sensors, scenes, grids, blocks."""
        grids = sorted({scene.grid.pixel for scene in self._scenes})
        line = f"{super().describe()}, {len(self._scenes)} scenes at {', '.join(grids[:3])}"
        if len(grids) > 3:
            line += f" and {len(grids) - 3} more"
        line += f", on the grid of {next(iter(self.modalities))}"
        if self.targets:
            classes = listed(self.targets[MASK].classes)
            line += f", {int(self._labelled.sum())} labelled ({classes})"
        return line


def _check_options(extent: str, dates: str, split: str | None, **numbers: int | None) -> None:
    check_choices(
        "PairedScenes",
        extent=(extent, ("intersection", "union")),
        dates=(dates, ("drawn", "same", "first")),
        split=(split, (None, "train", "test")),
    )
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}: must be 1 or more, is {value}")


def _named(
    root: Path, modalities: dict[str, Any] | list[str] | str | Path | None
) -> tuple[list[str], dict[str, Modality]]:
    """Return the sensors that are named, and what is known of them."""
    beside = root / "modalities.yaml"
    known = load_modalities(beside) if beside.is_file() else {}
    if modalities is None:
        return list(known), known
    if isinstance(modalities, list):
        return modalities, {name: known[name] for name in modalities if name in known}
    given = load_modalities(modalities)
    return list(given), given


def _drawn(found: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """Return dates in an order that is drawn for a window and a sensor."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).permutation(found)


def _unique(names: Sequence[str]) -> list[str]:
    """Return names that differ: a second scene of a name gets the next number that is free."""
    taken = set(names)  # a scene that is named so by itself keeps its name
    made: list[str] = []
    seen: set[str] = set()
    for name in names:
        own = name
        if name in seen:
            own = next(n for i in itertools.count(2) if (n := f"{name}-{i}") not in taken)
        seen.add(name)
        taken.add(own)
        made.append(own)
    return made
