"""Windows of a scene: the rasters of its sensors on one grid, read in batches by processes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from decur.data.files import bands_taken
from decur.data.grid import Grid
from decur.data.loader import LoaderSettings
from decur.data.map_rasters import (
    Raster,
    read_raster_header,
    refuse_far,
    wanted_bands,
    warn_beyond,
    warn_palette,
    warn_untiled,
)
from decur.data.scene_layout import Nearby
from decur.data.scene_sensors import check_resolution
from decur.data.units import unit_warning
from decur.data.window_reader import WindowReader, read_squares
from decur.errors import BadSampleError, ConfigError, DataError, DecurError, did_you_mean
from decur.modality import Modality
from decur.predict.windows import Corner
from decur.signals import ignore_signals

log = logging.getLogger(__name__)

_UNITS = "give a raster in the units of the training"
_COVERED = 0.9  # share of a raster that another covers, from which on both show the same ground
_LOOKS = 9  # squares of a sensor whose units are looked at


def parse_scene(words: Sequence[str], known: Sequence[str]) -> dict[str, list[Path]]:
    """Return the rasters of each sensor that the words `SENSOR=FILE` name.

    Args:
        words: as they are given; a sensor that is named again gets another raster.
        known: the sensors of the model.

    Raises:
        ConfigError: for a word of another form, and for a sensor that the model does not know.
    """
    found: dict[str, list[Path]] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or not file:
            raise ConfigError(f"scene: give SENSOR=FILE, such as {known[0]}=FILE, not {word!r}")
        if name not in known:
            hint = did_you_mean(name, known, f"choose from {', '.join(known)}")
            raise ConfigError(f"scene: the model knows no sensor {name!r}; {hint}")
        found.setdefault(name, []).append(Path(file))
    return found


@dataclass(frozen=True)
class SceneFiles:
    """The rasters of a scene, and the grid that they are read onto.

    Args:
        grid: of the whole scene, that of the reference sensor.
        rasters: `{sensor: its rasters}`; the first sensor is the reference.
        readers: `{sensor: what reads its windows}`.
    """

    grid: Grid
    rasters: Mapping[str, Sequence[Raster]]
    readers: Mapping[str, WindowReader]

    @property
    def reference(self) -> str:
        """Return the sensor whose pixels the grid has."""
        return next(iter(self.rasters))


def open_scene(
    files: Mapping[str, Sequence[Path]],
    modalities: Mapping[str, Modality],
    resolution: float | None = None,
) -> SceneFiles:
    """Open the rasters of a scene.

    Args:
        files: `{sensor: its rasters}`; several of one sensor lie side by side.
        modalities: how each sensor's raw values are meant.
        resolution: of the grid in units of the reference sensor's CRS; None: its own.

    Raises:
        DataError: if a raster cannot be placed or has other bands, or two do not overlap.
    """
    rasters = {
        name: [read_raster_header(file) for file in of_sensor] for name, of_sensor in files.items()
    }
    reference, *others = rasters
    first = rasters[reference][0]
    bounds = first.grid.bounds
    for raster in rasters[reference][1:]:
        bounds = bounds.union(raster.grid.bounds_on(first.grid))
    grid = first.grid.covering(bounds)
    for name in others:
        if all(r.grid.bounds_on(grid).overlap(grid.bounds) <= 0 for r in rasters[name]):
            raise refuse_far((reference, name), first, rasters[name][0])
    check_resolution(rasters, resolution)
    grid = grid if resolution is None else grid.resampled(resolution)
    readers = {}
    for name, of_sensor in rasters.items():
        bands = [_model_bands(raster, modalities[name]) for raster in of_sensor]
        if len(set(bands)) > 1:
            raise DataError(f"sensor {name!r}: its rasters have different bands; give them alike")
        _tell_order(of_sensor, modalities[name])
        _tell_covered(name, of_sensor)
        readers[name] = WindowReader(
            grid, of_sensor, nodata=modalities[name].nodata, bands=bands[0]
        )
    return SceneFiles(grid, rasters, readers)


def _model_bands(raster: Raster, modality: Modality) -> tuple[int, ...] | None:
    """Return which bands of a raster the model reads; None for all of them.

    Raises:
        DataError: if it lacks some.
    """
    try:
        return wanted_bands(raster, modality)
    except DataError as error:
        names = f" ({', '.join(raster.names)})" if raster.names else ""
        taken = "".join(f" -b {number + 1}" for number in range(modality.channels))
        taken = f", such as by gdal_translate{taken} {quote(raster.path)} bands.tif"
        taken = taken if raster.bands > modality.channels else ""
        raise DataError(
            f"{raster.path}: has {raster.bands} bands{names}, and the model was trained on "
            f"{modality.channels} of {modality.name} ({', '.join(modality.bands)}); give a raster "
            f"with those{taken}"
        ) from error


def _tell_order(rasters: Sequence[Raster], modality: Modality) -> None:
    """Say where a raster's bands are taken in their order, for want of the model's names."""
    named = not all(re.fullmatch(r"band\d+", band) for band in modality.bands)
    if named and modality.channels > 1 and not all(raster.names for raster in rasters):
        log.info(
            "%s: its bands have no names, and are taken for %s in this order",
            next(raster.path for raster in rasters if not raster.names),
            ", ".join(modality.bands),
        )
    for raster in rasters:
        wanted = modality.picks or modality.bands
        if raster.names and bands_taken(raster.names, raster.bands, wanted) is None:
            log.warning(
                "%s: its bands are named %s and the model's %s; they are taken in this order, so "
                "reorder or rename them if that is wrong",
                raster.path,
                ", ".join(raster.names),
                ", ".join(modality.bands),
            )
            return


def _tell_covered(name: str, rasters: Sequence[Raster]) -> None:
    """Say where a raster shows the ground of one that is given before it, as dates do."""
    nearby = Nearby([raster.grid for raster in rasters])
    for row, raster in enumerate(rasters):
        for before in nearby.overlapping(raster.grid):
            shared = rasters[before].grid.bounds_on(raster.grid).overlap(raster.grid.bounds)
            if before < row and shared > _COVERED * raster.grid.bounds.area:
                log.warning(
                    "%s: lies over %s, so that of %s it is only read where that has no "
                    "measurement; map each date of a place by itself",
                    raster.path,
                    rasters[before].path,
                    name,
                )
                return


def warn_slow(scene: SceneFiles, window: int) -> None:
    """Say which rasters are slow or hard to read in windows, and how to mend that."""
    rasters = [raster for of_sensor in scene.rasters.values() for raster in of_sensor]
    for line in filter(
        None, (warn_untiled(rasters, window), warn_palette(rasters), warn_beyond(rasters))
    ):
        log.warning(line)


def warn_units(scene: SceneFiles, modalities: Mapping[str, Modality]) -> None:
    """Say which rasters look as if they were in other units than the model's training."""
    for name, rasters in scene.rasters.items():
        modality = modalities[name]
        if modality.scaling == "image":
            continue
        bands = scene.readers[name].bands
        squares = read_squares(rasters, _LOOKS, nodata=modality.nodata, bands=bands)
        try:
            pictures = [modality.convert(square).flatten(1).float() for square in squares]
        except BadSampleError:
            continue  # comes up again when it is read as a window
        if pictures and (line := unit_warning(rasters[0].path, pictures, modality, _UNITS)):
            log.warning("%s", line)


@dataclass(frozen=True)
class WindowBatch:
    """Windows that some sensor has seen, stacked.

    Args:
        corners: of each window.
        images: `{sensor: (B, C, H, W)}` in raw units, NaN where there is no measurement; zeros
            where the sensor is absent.
        present: `{sensor: (B,) bool}`.
        seen: (B, h, w) bool: the cells that some present sensor has measured.
    """

    corners: list[Corner]
    images: dict[str, Tensor]
    present: dict[str, Tensor]
    seen: Tensor

    def sent(self, device: str) -> dict[str, Tensor]:
        """Return the pictures on a device."""
        return {name: x.to(device, non_blocking=True) for name, x in self.images.items()}

    def pin_memory(self) -> WindowBatch:
        """Return the same in memory that a GPU copies from at once."""
        images = {name: x.contiguous().pin_memory() for name, x in self.images.items()}
        return WindowBatch(self.corners, images, self.present, self.seen)


class SceneWindows(Dataset[WindowBatch | DecurError]):
    """Batches of windows by their corners.

    Args:
        scene: the rasters.
        modalities: of all sensors of the model; those without a raster are absent everywhere.
        window: height and width in pixels.
        cell: pixels of a cell: corners count cells, and `seen` is of cells.
        min_valid: share that a sensor must have measured, see `PredictSettings`.
        needs_all: whether windows that lack a sensor are left out.
    """

    def __init__(
        self,
        scene: SceneFiles,
        modalities: Mapping[str, Modality],
        *,
        window: tuple[int, int],
        cell: int = 1,
        min_valid: float = 0.5,
        needs_all: bool = False,
    ) -> None:
        self.scene, self.modalities = scene, dict(modalities)
        self.window, self.cell, self.min_valid = window, cell, min_valid
        self.needs_all = needs_all

    def __getitem__(self, corners: list[Corner]) -> WindowBatch | DecurError:
        """Read windows; return what is wrong, since torch changes what a process raises."""
        try:
            return self._batch(corners)
        except DecurError as error:
            return error

    def _batch(self, corners: list[Corner]) -> WindowBatch:
        """Return windows; those that nothing has seen are left out."""
        kept: list[Corner] = []
        pictures: dict[str, list[Tensor | None]] = {name: [] for name in self.modalities}
        seen: list[Tensor] = []
        for corner in corners:
            read, measured = self._read(corner)
            if not read or (self.needs_all and len(read) < len(self.modalities)):
                continue
            kept.append(corner)
            seen.append(torch.stack([measured[name] for name in read]).any(dim=0))
            for name in pictures:
                pictures[name].append(read.get(name))
        present = {
            name: torch.tensor([picture is not None for picture in of_sensor], dtype=torch.bool)
            for name, of_sensor in pictures.items()
        }
        images = {name: self._stacked(name, of_sensor) for name, of_sensor in pictures.items()}
        return WindowBatch(kept, images, present, self._of_cells(seen))

    def _read(self, corner: Corner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the pictures of the sensors that are present, and the pixels they measured."""
        row, column = (at * self.cell for at in corner)
        height, width = self.window
        grid = self.scene.grid
        inside = min(height, grid.height - row) * min(width, grid.width - column)
        images, measured, shares = {}, {}, {}
        for name, reader in self.scene.readers.items():
            x = reader.read(row, column, height, width)  # (C, H, W)
            if x.shape[0] != self.modalities[name].channels:
                raise BadSampleError(
                    reader.rasters[0].path,
                    f"has {x.shape[0]} bands, {name} {self.modalities[name].channels}",
                )
            images[name] = x = self.modalities[name].convert(x)
            there = ~x.isnan().all(dim=0) if x.is_floating_point() else x.new_ones(x.shape[1:]) > 0
            measured[name] = there  # (H, W)
            shares[name] = float(there.sum()) / inside
        wanted = [name for name in images if shares[name] >= max(self.min_valid, 1e-9)]
        if not wanted or self.needs_all:
            wanted = [name for name in images if shares[name] > 0]
        return {name: images[name] for name in wanted}, measured

    def _stacked(self, name: str, pictures: Sequence[Tensor | None]) -> Tensor:
        """Return the pictures of a sensor, zeros where it is absent: (B, C, H, W)."""
        there = [picture for picture in pictures if picture is not None]
        shape = (self.modalities[name].channels, *self.window)
        if not there:
            return torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(len(pictures), *shape)
        kinds = {picture.dtype for picture in there}
        kind = kinds.pop() if len(kinds) == 1 else torch.float32
        none = torch.zeros(shape, dtype=kind)
        return torch.stack([none if p is None else p.to(kind) for p in pictures])

    def _of_cells(self, seen: Sequence[Tensor]) -> Tensor:
        """Return which cells hold a pixel that was seen: (B, h, w)."""
        height, width = (side // self.cell for side in self.window)
        if not seen:
            return torch.zeros(0, height, width, dtype=torch.bool)
        cells = torch.stack(list(seen)).unfold(1, self.cell, self.cell)
        return cells.unfold(2, self.cell, self.cell).any(dim=-1).any(dim=-1)


def read_windows(
    windows: SceneWindows, batches: Iterable[list[Corner]], settings: LoaderSettings
) -> Iterator[WindowBatch]:
    """Yield the batches of windows in their order, read by processes.

    Args:
        windows: of a scene.
        batches: which of them, in which order.
        settings: how many processes read.

    Raises:
        BadSampleError: naming the raster that cannot be read.
    """
    loader = DataLoader(
        windows,
        sampler=batches,
        batch_size=None,
        num_workers=settings.processes(),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, DecurError):
            raise batch
        yield batch
