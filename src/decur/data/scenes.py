"""Scenes larger than memory as a data set: windows on one grid, read when they are needed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decur.data import rasters as gdal_rasters
from decur.data.base import DATASETS, PairedDataset, check_choices
from decur.data.files import parts_of
from decur.data.grid import (
    RASTERS,
    Grid,
    Raster,
    WindowReader,
    read_raster_header,
    refuse_far,
    wanted_bands,
    warn_untiled,
)
from decur.data.listing import MASK, subfolders
from decur.data.sample import Sample
from decur.data.scene_labels import find_labels
from decur.data.scene_layout import Scene, Windows, block_names, find_scenes, find_windows
from decur.data.selection import evenly_spaced
from decur.data.stats import BandStatistics, guess_augmentation
from decur.errors import BadSampleError, ConfigError, DataError
from decur.modality import Modality, load_modalities

log = logging.getLogger(__name__)

_STATS_WINDOWS = 64  # whose pixels tell the statistics of a sensor, where none are given
_TEST_SHARE = 0.2  # of the blocks
_BLOCKS = 10  # that labelled data should have at least, for its folds
_BLOCK = 8  # windows along the side of a block, where that leaves enough of them
_LAYOUT = "expected ROOT/<sensor>/<any name>.tif|jp2"

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
    class column. Labelled windows come in spatial blocks: windows that reach into two of them are
    left out, so that windows of two groups never touch.

    Args:
        root: the folder.
        modalities: those to read, in order; the first is the reference. None:
            `root/modalities.yaml`, else every sub-folder with rasters but `mask`, scaled by the
            statistics of 64 windows.
        window: height and width in pixels.
        stride: pixels from one window to the next; None: the window, so that none overlap.
        resolution: of the grid in units of its CRS (metres); None: the reference sensor's own.
        extent: "intersection": windows that all sensors see; "union": also those that some do.
        dates: of a place, "drawn": a window is as many samples as there are dates, each sensor's
            in an order that is drawn for the window, so that dates of two sensors are paired at
            random; "same": the dates in their order; "first": one sample, the first dates.
        min_valid: share of a window that a sensor must have measured to count as present.
        labels: shapes or a folder of label rasters that lie elsewhere.
        column: of the shapes' class.
        split: "train" or "test": a fifth of the blocks is for testing. None: all windows.
        block: windows along the side of a block; None: 8, or fewer where that leaves less than 10
            blocks; without labels and split there are none.

    Raises:
        DataError: if no samples can be made of this, naming file and remedy.
        ConfigError: for wrong options.
    """

    def __init__(
        self,
        root: str | Path,
        modalities: dict[str, Any] | str | Path | None = None,
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
        self.root, self.window, self.stride = Path(root), window, stride or window
        _check_options(extent, dates, split, window=window, stride=self.stride, block=block)
        if resolution is not None and not resolution > 0:
            raise ConfigError(f"resolution: must be above 0, is {resolution:g}")
        if not 0 <= min_valid <= 1:
            raise ConfigError(f"min_valid: is a share in [0, 1], not {min_valid:g}")
        if modalities is None and (self.root / "modalities.yaml").is_file():
            modalities = self.root / "modalities.yaml"
        given = load_modalities(modalities)
        rasters = _rasters(self.root, list(given), window)
        union = extent == "union"
        self._scenes, rest = find_scenes(rasters, union=union, resolution=resolution)
        _report_rest(rasters, self._scenes, rest)
        windows = [find_windows(scene, window, self.stride) for scene in self._scenes]
        self._labels = find_labels(self.root, labels, column)
        self.targets = {MASK: self._labels.target} if self._labels is not None else {}
        usable = [
            _usable(scene, of_scene, list(rasters), union=union, min_valid=min_valid)
            for scene, of_scene in zip(self._scenes, windows, strict=True)
        ]
        if not any(one.any() for one in usable):
            raise _no_window(self._scenes, windows, window, min_valid)
        blocks = None
        if split is not None or block is not None or self.targets:
            blocks, usable = _blocks(self._scenes, windows, usable, window, block)
        self._make_samples(windows, usable, dates=dates, min_valid=min_valid)
        if blocks is not None:
            self._set_groups(blocks, split)
        self._bands: dict[str, tuple[int, ...] | None] = {}
        self.modalities = {}
        for name, of_sensor in rasters.items():
            self._set_modality(name, of_sensor, given.get(name))

    # -- samples -----------------------------------------------------------------------------------

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
        self.ids = []
        scene_names = _unique([scene.name for scene in self._scenes])
        for number, (of_scene, wanted) in enumerate(zip(windows, usable, strict=True)):
            for at in np.flatnonzero(wanted):
                row, column = int(of_scene.rows[at]), int(of_scene.columns[at])
                there = {
                    name: np.flatnonzero(shares[at] >= max(min_valid, 1e-9))
                    for name, shares in of_scene.measured.items()
                }
                id_ = f"{scene_names[number]}_r{row}_c{column}"
                count = 1 if dates == "first" else max(map(len, there.values()))
                if dates == "drawn":
                    there = {n: _drawn(found, f"{id_} {n}") for n, found in there.items()}
                for date in range(count):
                    self.ids.append(id_ if count == 1 else f"{id_}_d{date}")
                    places.append((number, row, column, int(at)))
                    for name in names:
                        found = there.get(name, ())
                        layers[name].append(int(found[date % len(found)]) if len(found) else -1)
        self._places = np.array(places, dtype=np.int64)  # (N, 4)
        self._layers = {name: np.array(of, dtype=np.int16) for name, of in layers.items()}
        self.present = {name: of >= 0 for name, of in self._layers.items()}

    def _set_groups(self, blocks: Sequence[Sequence[str | None]], split: Split | None) -> None:
        """Name the block of each sample; keep those of a split."""
        groups = [str(blocks[scene][at]) for scene, at in self._places[:, [0, 3]].tolist()]
        if split is not None:
            order = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).digest())
            if len(order) < 2:
                raise DataError(
                    f"{self.root}: one block of windows cannot be split; set --data.block lower"
                )
            tested = set(order[: max(1, round(_TEST_SHARE * len(order)))])
            kept = [i for i, name in enumerate(groups) if (name in tested) == (split == "test")]
            self.ids = [self.ids[i] for i in kept]
            groups = [groups[i] for i in kept]
            self._places = self._places[kept]
            self._layers = {name: of[kept] for name, of in self._layers.items()}
            self.present = {name: has[kept] for name, has in self.present.items()}
        self.groups = groups

    def _set_modality(self, name: str, rasters: Sequence[Raster], known: Modality | None) -> None:
        """Set what a sensor is: given, or told by its files and 64 of its windows."""
        first = rasters[0]
        bands = known.channels if known is not None else first.bands
        if known is None and len({raster.bands for raster in rasters}) > 1:
            other = next(raster for raster in rasters if raster.bands != first.bands)
            raise DataError(
                f"sensor {name!r}: {first.path} has {first.bands} bands, {other.path} "
                f"{other.bands}; give all the same, or name `bands` in modalities.yaml"
            )
        self._bands[name] = None
        if known is not None:
            self._bands[name] = wanted_bands(first, known)
        else:
            named = first.names or tuple(f"band{i + 1}" for i in range(bands))
            # until there are statistics it only says how many bands are read
            raw = Modality(name=name, bands=named, scaling="range")
            self.modalities[name] = raw.with_(size=(self.window, self.window))
            byte = all(raster.is_byte for raster in rasters)
            known = raw.with_(augmentation=guess_augmentation(name))
            if not byte:
                known = self._statistics(name).to_modality(name).with_(bands=named)
            log.info(
                "modality %r: scaling %r from %s, augmentation %r by its name",
                name,
                known.scaling,
                "8-bit rasters" if byte else f"statistics of up to {_STATS_WINDOWS} windows",
                known.augmentation,
            )
        self.modalities[name] = known.with_(size=(self.window, self.window))

    def _statistics(self, name: str) -> BandStatistics:
        rows = np.flatnonzero(self.present[name])
        total: BandStatistics | None = None
        for row in rows[evenly_spaced(len(rows), _STATS_WINDOWS)]:
            image = self._read_sensor(int(row), name).numpy()
            one = BandStatistics.of_image(image, seed=int(row), is_byte=False)
            total = one if total is None else total.merge(one)
        if total is None:
            raise DataError(f"sensor {name!r}: sees none of the windows; leave it out")
        return total

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
            scene, row, column, _ = self._places[index].tolist()
            grid = self._scenes[scene].grid
            mask = self._labels.read(grid, row, column, self.window)  # (H, W)
            if mask is not None:
                sample["target"][MASK] = mask
        return sample

    def _read_sensor(self, index: int, name: str) -> Any:
        scene, row, column, _ = self._places[index].tolist()
        layer = self._scenes[scene].layers[name][int(self._layers[name][index])]
        modality = self.modalities[name]
        reader = WindowReader(
            self._scenes[scene].grid,
            layer,
            nodata=modality.nodata,
            bands=self._bands.get(name),
        )
        image = reader.read(row, column, self.window, self.window)
        if image.is_floating_point() and image.isnan().all():
            raise BadSampleError(
                layer[0].path, f"has no measured pixel in {self.ids[index]}; raise min_valid"
            )
        if image.shape[0] != modality.channels:
            raise BadSampleError(
                layer[0].path, f"has {image.shape[0]} bands, {name} {modality.channels}"
            )
        return image

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
        if self.targets:
            found += self._labels.files(scene.grid)
        return [str(part) for file in found for part in parts_of(file)]

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return None: a window has no bytes of its own."""
        return None

    def describe(self) -> str:
        """Return one line for the log: windows, sensors, scenes, grids, blocks."""
        grids = sorted({f"{s.grid.resolution[0]:g} ({s.grid.crs[:20]})" for s in self._scenes})
        line = f"{super().describe()}, {len(self._scenes)} scenes at {', '.join(grids[:3])}"
        if len(grids) > 3:
            line += f" and {len(grids) - 3} more"
        if self.targets:
            line += f", labels {', '.join(self.targets[MASK].classes)}"
        if self.groups is not None:
            line += f", {len(set(self.groups))} blocks that do not touch"
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


def _rasters(root: Path, names: Sequence[str], window: int) -> dict[str, list[Raster]]:
    """Return the rasters of each sensor, by the names of their files."""
    found: dict[str, list[Raster]] = {}
    for name in names or subfolders(root):
        folder = root / name
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {_LAYOUT}")
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in RASTERS)
        if files:
            gdal_rasters.import_rasterio(".tif")
            found[name] = [read_raster_header(file) for file in files]
            if line := warn_untiled(found[name], window):
                log.warning(line)
        elif names:
            raise DataError(f"{folder}: holds no rasters; {_LAYOUT}")
    if not found:
        raise DataError(f"{root}: holds no folder with rasters; {_LAYOUT}")
    return found


def _report_rest(
    rasters: dict[str, list[Raster]], scenes: Sequence[Scene], rest: Sequence[Raster]
) -> None:
    """Say which rasters are of no scene; refuse sensors that never meet.

    Raises:
        DataError: naming two rasters and where they lie.
    """
    reference, *others = rasters
    for name in others:
        if not any(name in scene.layers for scene in scenes):
            raise refuse_far((reference, name), rasters[reference][0], rasters[name][0])
    together = any(len(scene.layers) > 1 for scene in scenes)
    if others and not together:
        raise refuse_far((reference, others[0]), rasters[reference][0], rasters[others[0]][0])
    if rest:
        log.warning(
            "%d rasters overlap none of %s and are left out, such as %s; --data.extent union "
            "takes them",
            len(rest),
            reference,
            rest[0].path,
        )


def _usable(
    scene: Scene, windows: Windows, names: Sequence[str], *, union: bool, min_valid: float
) -> NDArray[np.bool_]:
    """Return which windows are samples: seen by all sensors, or by one."""
    seen = [
        (windows.measured[name] >= max(min_valid, 1e-9)).any(axis=1)
        if name in windows.measured
        else np.zeros(len(windows.rows), dtype=bool)
        for name in names
    ]
    joined = np.logical_or if union else np.logical_and
    return np.asarray(joined.reduce(seen))


def _no_window(
    scenes: Sequence[Scene], windows: Sequence[Windows], window: int, min_valid: float
) -> DataError:
    if not any(len(of_scene.rows) for of_scene in windows):
        largest = max((scene.grid for scene in scenes), key=lambda g: min(g.height, g.width))
        return DataError(
            f"window: {window} px fit into none of {len(scenes)} scenes; the largest is "
            f"{largest.height} x {largest.width}; set --data.window lower, or a finer resolution"
        )
    return DataError(
        f"no window is measured to {100 * min_valid:g} % by all sensors; set --data.min_valid "
        "lower, or --data.extent union"
    )


def _blocks(
    scenes: Sequence[Scene],
    windows: Sequence[Windows],
    usable: Sequence[NDArray[np.bool_]],
    window: int,
    block: int | None,
) -> tuple[list[list[str | None]], list[NDArray[np.bool_]]]:
    """Return the block of each window, and which windows lie in one."""
    sides = range(_BLOCK, 0, -1) if block is None else (block,)
    for side in sides:
        names = block_names(scenes, windows, window, side + 1)
        inside = [
            wanted & np.array([name is not None for name in of_scene], dtype=bool)
            for wanted, of_scene in zip(usable, names, strict=True)
        ]
        used = {
            of_scene[at]
            for wanted, of_scene in zip(inside, names, strict=True)
            for at in np.flatnonzero(wanted)
        }
        if len(used) >= _BLOCKS:
            break
    if not used:
        raise DataError(f"block: no window lies within a block of {side}; set --data.block higher")
    left = int(sum(one.sum() for one in usable) - sum(one.sum() for one in inside))
    log.info(
        "%d spatial blocks of up to %d x %d windows; %d windows between blocks are left out, so "
        "that windows of two blocks do not touch",
        len(used),
        side,
        side,
        left,
    )
    return names, inside


def _drawn(found: NDArray[np.int64], key: str) -> NDArray[np.int64]:
    """Return dates in an order that is drawn for a window and a sensor."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).permutation(found)


def _unique(names: Sequence[str]) -> list[str]:
    """Return names that differ: a second scene of a name gets a number."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return made
