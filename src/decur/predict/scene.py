"""`predict`: a scene of any size through a model, into a georeferenced map."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur.data.grid import Grid
from decur.data.loader import reporting_lost_workers
from decur.devices import choose_device
from decur.digest import digest, file_states
from decur.errors import ConfigError
from decur.layers import override
from decur.locks import holding
from decur.predict.blending import Blend
from decur.predict.model import Predictor, Size, open_predictor
from decur.predict.pixels import (
    map_layout,
    map_pixels,
    probability_layout,
    probability_pixels,
)
from decur.predict.raster_files import (
    BLOCK,
    Layout,
    publish,
    write_optimised,
    write_tile,
    write_virtual,
)
from decur.predict.reading import (
    SceneFiles,
    SceneWindows,
    open_scene,
    parse_scene,
    warn_slow,
    window_loader,
)
from decur.predict.settings import PredictSettings
from decur.predict.windows import Area, Axis, Batches, Plan, Tile
from decur.progress import progress_bar
from decur.runs import remove_leftovers, write_json, writing

log = logging.getLogger(__name__)

FORMAT = 1  # of unfinished work; raised when a map would come out otherwise
_WINDOW = 256  # pixels, where it is not known what a model was trained on
_MOST = 2**39  # bytes of a map before compression
_HELD = 2**28  # bytes of the sums of a tile
_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Mapped:
    """What `predict` leaves of a scene: the map, its grid, and what lies beside it."""

    path: Path
    grid: Grid
    probabilities: Path | None = None
    picture: Path | None = None
    joined: Path | None = None


def predict(
    model: str | Path,
    scene: Sequence[str] | Mapping[str, str | Path],
    *,
    settings: PredictSettings | None = None,
    **options: Any,
) -> Mapped:
    """Map a scene of any size, window by window.

    The map lies on the pixels of the first sensor; the others are warped onto them. Windows
    overlap, and are blended by weights that rise from a window's edge as a cosine does. What is
    done is kept beside the map until it is complete: the same call again goes on from there, and
    ends with the same bytes.

    Args:
        model: a folder of `decur transfer`.
        scene: rasters by sensor, `{"s1": FILE}` or `["s1=FILE"]`.
        settings: what to do; None for the defaults.
        **options: fields of `PredictSettings` by name, which override those of `settings`:
            `predict("runs/flood", {"s1": "scene.tif"}, out="map.tif")`.

    Returns:
        The map and what lies beside it.

    Raises:
        ConfigError: if the configuration cannot be run.
        DataError: if rasters and model do not fit together.
    """
    settings = override(settings or PredictSettings(), options, "predict")
    words = [f"{n}={f}" for n, f in scene.items()] if isinstance(scene, Mapping) else list(scene)
    predictor = open_predictor(model)
    files = parse_scene(words, list(predictor.modalities))
    out = _map_name(settings, [file for of_sensor in files.values() for file in of_sensor])
    _check_absent(predictor, files)
    opened = open_scene(files, predictor.modalities, settings.resolution)
    job = _Job.prepare(predictor, opened, settings, out)
    with reporting_lost_workers(), writing(out):
        return job.run(Console(soft_wrap=True, markup=False, emoji=False))


def _map_name(settings: PredictSettings, files: Iterable[Path]) -> Path:
    """Return the file of the map, or of the part that is made.

    Raises:
        ConfigError: for a name that is no GeoTIFF's, a folder, or one of the scene's own files.
    """
    out = Path(settings.out)
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--out {out}: a map is a GeoTIFF; name it .tif")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    if any(out.resolve() == file.resolve() for file in files):
        raise ConfigError(f"--out {out}: is a raster of the scene; choose another name")
    which, of = settings.number
    return out if of == 1 else part_name(out, which, of)


def part_name(out: Path, which: int, of: int) -> Path:
    """Return the name of one of several parts of a map."""
    return out.with_name(f"{out.stem}-{which}of{of}{out.suffix}")


def _check_absent(predictor: Predictor, files: Mapping[str, object]) -> None:
    """Refuse a scene without a sensor that the model needs; say where it never lacked it.

    Raises:
        ConfigError: naming the sensor.
    """
    absent = [name for name in predictor.modalities if name not in files]
    if absent and predictor.needs_all:
        raise ConfigError(
            f"scene: {absent[0]} is missing, and the model's head needs all of "
            f"{', '.join(predictor.modalities)}; give {absent[0]}=FILE, or a model with the head "
            "fcn"
        )
    if absent and predictor.seen_absent is False:
        log.warning(
            "the scene has no %s, which no sample of the training lacked; expect a worse map than "
            "the test part promised",
            " and no ".join(absent),
        )


@dataclass(frozen=True)
class _Job:
    """A map to make: what predicts what, on which grid, in which windows and tiles."""

    predictor: Predictor
    scene: SceneFiles
    settings: PredictSettings
    out: Path
    grid: Grid  # of the whole scene, in cells of the map
    area: Area  # of it that is mapped
    plan: Plan
    window: Size  # in pixels
    identity: str  # of the whole map, whatever its part

    @classmethod
    def prepare(
        cls, predictor: Predictor, scene: SceneFiles, settings: PredictSettings, out: Path
    ) -> _Job:
        """Plan a map.

        Raises:
            ConfigError: if the window, the bounds, the part or the resolution make none.
        """
        predictor.reference = scene.reference
        grid = scene.grid.coarser(predictor.cell)
        area = _area(grid, settings)
        layout = map_layout(predictor, {})
        beside = probability_layout(predictor, {}).bytes if settings.probabilities else 0
        _refuse_large(area, layout.bytes + beside, settings)
        which, of = settings.number
        part = area.part(which, of, BLOCK)
        if part is None:
            raise ConfigError(
                f"part: the map has {area.height:,} rows, too few for {of} parts of {BLOCK} rows; "
                f"give at most {-(-area.height // BLOCK)}"
            )
        window = _window(predictor, scene.grid, settings)
        rows, columns = (
            Axis(length, side // predictor.cell, _step(side, predictor, settings))
            for length, side in zip((grid.height, grid.width), window, strict=True)
        )
        files = [raster.path for of_sensor in scene.rasters.values() for raster in of_sensor]
        identity = digest(
            FORMAT,
            predictor.digest,
            {name: [r.path for r in of] for name, of in scene.rasters.items()},
            file_states(files),
            grid.to_dict(),
            (window, rows.step, columns.step, settings.min_valid, settings.loader.batch_size),
            (settings.probabilities, choose_device(settings.device), settings.tile),
        )
        plan = Plan(rows, columns, settings.loader.batch_size)
        return cls(predictor, scene, settings, out, grid, part, plan, window, identity)

    # -- making it ---------------------------------------------------------------------------------

    def run(self, console: Console) -> Mapped:
        """Make the map, or what is still missing of it."""
        work = self.out.with_name(f"{self.out.name}.unfinished")
        side = self._tile_side()
        tiles = self.area.tiles(side)
        warn_slow(self.scene, max(*self.window, side * self.predictor.cell))
        self._describe(console, tiles)
        with holding(work, "--out"):
            _begin(work, digest(self.identity, vars(self.area), side), console)
            self._make_tiles(work, tiles, console)
            found = self._finish(work, tiles)
        shutil.rmtree(work, ignore_errors=True)
        console.print(f"written   {found.path}", highlight=False)
        return found

    def _tile_side(self) -> int:
        """Return the side of a tile in cells, such that its sums fit into memory."""
        side = self.settings.tile // self.predictor.cell
        bands = len(self.predictor.bands)
        while side > 64 and bands * side**2 * 4 > _HELD:
            side //= 2
        return max(1, side)

    def _describe(self, console: Console, tiles: Sequence[Tile]) -> None:
        grid, rasters = self.scene.grid, self.scene.rasters
        sensors = ", ".join(f"{name} ({len(of)} files)" for name, of in rasters.items())
        console.print(
            f"scene     {grid.height:,} x {grid.width:,} at {grid.resolution[0]:g} "
            f"({grid.crs[:20]}), {sensors}",
            highlight=False,
        )
        overlap = 1 - self.plan.rows.step / self.plan.rows.window
        console.print(
            f"windows   {self.window[0]} x {self.window[1]}, overlap {100 * overlap:.0f} %, "
            f"{len(tiles)} tiles",
            highlight=False,
        )

    def _make_tiles(self, work: Path, tiles: Sequence[Tile], console: Console) -> None:
        """Predict the tiles that are not there yet, each from its own windows."""
        missing = [tile for tile in tiles if not _tile_file(work, tile).is_file()]
        if not missing:
            return
        if len(missing) < len(tiles):
            done = len(tiles) - len(missing)
            console.print(f"resuming  {done} of {len(tiles)} tiles are there", highlight=False)
        predictor, device = self.predictor, choose_device(self.settings.device)
        predictor.to(device)
        windows = SceneWindows(
            self.scene,
            predictor.modalities,
            window=self.window,
            cell=predictor.cell,
            min_valid=self.settings.min_valid,
        )
        loader = window_loader(windows, Batches(self.plan, missing), self.settings.loader)
        read = iter(loader)
        layout = map_layout(predictor, {})
        bar = progress_bar(console, "predicting", "tiles", TimeRemainingColumn())
        with bar:
            for tile in bar.track(missing):
                blend = Blend(self.plan, tile, len(predictor.bands), device)
                for _ in self.plan.batches(tile):
                    batch = next(read)
                    if not batch.corners:
                        continue
                    images = {n: x.to(device, non_blocking=True) for n, x in batch.images.items()}
                    output = predictor.predict(images, batch.present)
                    for corner, one, seen in zip(batch.corners, output, batch.seen, strict=True):
                        blend.add(corner, one, seen)
                mean, known = blend.mean()
                grid = self.grid.window(tile.row, tile.column, tile.height, tile.width)
                if self.settings.probabilities:
                    pixels = probability_pixels(mean, known)
                    of_classes = probability_layout(predictor, {})
                    write_tile(_tile_file(work, tile, "probabilities"), pixels, grid, of_classes)
                pixels = map_pixels(predictor, layout, mean, known)
                write_tile(_tile_file(work, tile), pixels, grid, layout)

    def _finish(self, work: Path, tiles: Sequence[Tile]) -> Mapped:
        """Join the tiles under the final names."""
        grid = self.grid.window(self.area.row, self.area.column, self.area.height, self.area.width)
        tags = {"DECUR_MAP": self.identity}
        layout = map_layout(self.predictor, tags)
        whole = self._join(work, "map", tiles, grid, layout)
        probabilities = None
        if self.settings.probabilities:
            probabilities = self.out.with_name(f"{self.out.stem}-probabilities{self.out.suffix}")
            of_classes = probability_layout(self.predictor, tags)
            joined = self._join(work, "probabilities", tiles, grid, of_classes)
            publish(joined, probabilities, of_classes)
        publish(whole, self.out, layout)
        return Mapped(self.out, grid, probabilities)

    def _join(
        self, work: Path, kind: str, tiles: Sequence[Tile], grid: Grid, layout: Layout
    ) -> Path:
        """Write the Cloud Optimized GeoTIFF of some tiles, not yet under its final name."""
        parts = [
            (
                _tile_file(work, tile, kind).name,
                self.grid.window(tile.row, tile.column, tile.height, tile.width),
            )
            for tile in tiles
        ]
        write_virtual(work / f"{kind}.vrt", grid, layout, parts)
        whole = work / f"{kind}-complete.tif"
        write_optimised(work / f"{kind}.vrt", whole, layout)
        return whole


def _tile_file(work: Path, tile: Tile, kind: str = "map") -> Path:
    return work / f"{kind}-{tile.number:06}.tif"


def _begin(work: Path, identity: str, console: Console) -> None:
    """Keep what an earlier call has left of the same map; delete what it has left of another."""
    about = work / "about.json"
    remove_leftovers(work)
    for old in work.glob("*-complete.tif*"):
        old.unlink()
    if about.is_file() and json.loads(about.read_text()).get("identity") == identity:
        return
    left = list(work.glob("*-*.tif"))
    if left:
        console.print(f"deleting  {len(left)} tiles of another map in {work}", highlight=False)
    for old in left:
        old.unlink()
    write_json(about, {"identity": identity})


def _window(predictor: Predictor, grid: Grid, settings: PredictSettings) -> Size:
    """Return height and width of windows in pixels; a scene that is smaller shortens them.

    Raises:
        ConfigError: if the model takes no windows of this size.
    """
    trained = predictor.pictures.get(predictor.reference) or (_WINDOW, _WINDOW)
    wanted = trained if settings.window is None else (settings.window, settings.window)
    unit = max(max(encoder.strides) for encoder in predictor.encoders.values())
    lengths = (grid.height, grid.width)
    cut = tuple(
        min(-(-side // predictor.cell) * predictor.cell, -(-length // unit) * unit)
        for side, length in zip(wanted, lengths, strict=True)
    )
    for window in ((cut[0], cut[1]), wanted):
        try:
            predictor.refuse_window(window)
        except ConfigError:
            if window == wanted:
                raise
        else:
            break
    return window


def _step(side: int, predictor: Predictor, settings: PredictSettings) -> int:
    """Return the cells from one window to the next: whole steps of the coarsest feature map."""
    unit = max(max(encoder.strides) for encoder in predictor.encoders.values())
    step = side * (1 - settings.overlap)
    step = step // unit * unit if step >= unit else step
    return max(1, round(step) // predictor.cell)


def _area(grid: Grid, settings: PredictSettings) -> Area:
    """Return what is mapped of the scene's grid.

    Raises:
        ConfigError: if the bounds lie beyond it.
    """
    if settings.bounds is None:
        return Area(0, 0, grid.height, grid.width)
    from decur.data.grid import Bounds

    wanted = grid.covering(Bounds(*settings.bounds))
    row, column = grid.offset(wanted) or (0, 0)
    bottom, right = min(row + wanted.height, grid.height), min(column + wanted.width, grid.width)
    row, column = max(row, 0), max(column, 0)
    if row >= bottom or column >= right:
        edges = " ".join(f"{edge:g}" for edge in grid.bounds)
        raise ConfigError(f"bounds: lie beyond the scene, which covers {edges} ({grid.crs[:20]})")
    return Area(row, column, bottom - row, right - column)


def _refuse_large(area: Area, pixel: int, settings: PredictSettings) -> None:
    """Refuse a map that no disk should hold.

    Raises:
        ConfigError: saying how large it would be.
    """
    size = area.height * area.width * pixel
    if size > _MOST:
        key = "probabilities" if settings.resolution is None else "resolution"
        raise ConfigError(
            f"{key}: the map would be {area.height:,} x {area.width:,} pixels, "
            f"{size / 1e12:.3g} TB; choose a coarser resolution, or --bounds"
        )
