"""`predict`: a scene of any size through a model, into a georeferenced map."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur import plotting
from decur.data.base import PairedDataset
from decur.data.grid import Grid
from decur.data.loader import reporting_lost_workers
from decur.data.map_rasters import Raster
from decur.data.selection import evenly_spaced
from decur.devices import choose_device
from decur.digest import digest, file_states
from decur.errors import ConfigError
from decur.layers import override
from decur.locks import LOCK, holding
from decur.predict.components import fit_components
from decur.predict.features import FeaturePredictor, open_model
from decur.predict.map_files import (
    MAP,
    PROBABILITIES,
    MapFiles,
    beside,
    join_parts,
    name_files,
    remove_stale,
    tell_replaced,
)
from decur.predict.model import Predictor, warn_absent
from decur.predict.picture import draw_map
from decur.predict.pixels import (
    map_layout,
    map_pixels,
    probability_layout,
    probability_pixels,
)
from decur.predict.planning import MapPlan, plan_map
from decur.predict.raster_files import (
    MapLayout,
    publish,
    refuse_crs,
    refuse_full,
    write_optimised,
    write_tile,
    write_virtual,
)
from decur.predict.reading import (
    SceneFiles,
    SceneWindows,
    open_scene,
    parse_scene,
    read_windows,
    warn_slow,
    warn_units,
)
from decur.predict.settings import PredictSettings
from decur.predict.windows import Batches, Blend, Tile
from decur.runs import put_in_place, remove_leftovers, write_json, writing
from decur.terminal import progress_bar, tell_result

log = logging.getLogger(__name__)

FORMAT = 1  # format of unfinished work; raised when a map would come out otherwise
_SAMPLES, _SAMPLE = 64, 4096  # places of a raster that are looked at, and bytes of each


@dataclass(frozen=True)
class Mapped:
    """What `predict` leaves of a scene: the map, its grid, and what lies beside it."""

    path: Path
    grid: Grid
    probabilities: Path | None = None
    picture: Path | None = None
    joined: Path | None = None


def predict(
    model: str | os.PathLike[str],
    scene: Sequence[str] | Mapping[str, str | Path],
    *,
    settings: PredictSettings | None = None,
    **options: Any,
) -> Mapped:
    """Map a scene of any size, window by window.

    The map lies on the pixels of the first sensor; the others are warped onto them. Windows
    overlap, and are blended by weights that rise from a window's edge as a cosine does. Masks of
    networks without attention are averaged over grids of windows that are shifted by parts of the
    network's stride, so that a map hardly depends on where windows begin. What is done is kept
    beside the map until it is complete: the same call again goes on from there, and ends with the
    same bytes.

    Args:
        model: a folder of `decur transfer`, or what `decur.transfer` has returned.
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
    if isinstance(scene, PairedDataset):
        raise ConfigError("predict: scene is a data set; decur.predict.predict_data takes those")
    settings = override(settings or PredictSettings(), options, "predict")
    words = [f"{n}={f}" for n, f in scene.items()] if isinstance(scene, Mapping) else list(scene)
    predictor = open_model(
        model, settings.features, sensors=[word.partition("=")[0] for word in words]
    )
    if settings.probabilities and not predictor.classes:
        raise ConfigError("probabilities: a map of numbers or features has none; leave it out")
    files = parse_scene(words, list(predictor.modalities))
    out = name_files(settings, [file for of_sensor in files.values() for file in of_sensor])
    _check_absent(predictor, files)
    opened = open_scene(files, predictor.modalities, settings.resolution)
    predictor.reference = opened.reference
    refuse_crs(opened.grid, opened.rasters[opened.reference][0].path)
    job = _Job(predictor, opened, settings, out, plan_map(predictor, opened.grid, settings))
    with reporting_lost_workers(), writing(out.made):
        return job.run(Console(soft_wrap=True, markup=False, emoji=False))


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
    warn_absent(predictor, absent, "the scene")


@dataclass(frozen=True)
class _Job:
    """A map to make: what predicts what, in which windows and tiles, and into which file."""

    predictor: Predictor
    scene: SceneFiles
    settings: PredictSettings
    files: MapFiles
    plan: MapPlan

    def run(self, console: Console) -> Mapped:
        """Make the map, or what is still missing of it."""
        work = self.files.work
        widest = max(*self.plan.window, self.plan.side * self.predictor.cell)
        warn_slow(self.scene, widest)
        warn_units(self.scene, self.predictor.modalities)
        self._describe(console)
        with holding(work, "--out"):
            tell_replaced(self.files, self.content, console)
            _begin(work, self._identity(), console)
            self._make_tiles(work, console)
            found = self._finish(work, console)
            _empty(work)  # while nobody else may write there
        with suppress(OSError):  # another call has begun with the next map
            work.rmdir()
        for path in (found.path, found.probabilities, found.picture, found.joined):
            if path is not None:
                tell_result("written   ", path)
        return found

    @cached_property
    def content(self) -> str:
        """Return what tells this map from others, whichever part of it is made and where."""
        windows = self.plan.windows
        return digest(
            FORMAT,
            self.predictor.digest,
            {name: list(map(_sampled, of)) for name, of in self.scene.rasters.items()},
            self.plan.grid.to_dict(),
            (self.settings.bounds, self.plan.window, windows.rows.step, windows.columns.step),
            windows.shifts,
            (self.settings.min_valid, self.settings.probabilities),
        )

    def _identity(self) -> str:
        """Return what tells the tiles of this call from those of others, to the bit."""
        files = [raster.path for of in self.scene.rasters.values() for raster in of]
        settings = self.settings
        return digest(
            self.content,
            files,
            file_states(files),
            vars(self.plan.area),
            (self.plan.side, settings.loader.batch_size, choose_device(settings.device)),
        )

    def _describe(self, console: Console) -> None:
        grid, plan = self.scene.grid, self.plan
        sensors = ", ".join(
            name if len(of) == 1 else f"{name} ({len(of)} files)"
            for name, of in self.scene.rasters.items()
        )
        console.print(
            f"scene     {sensors}, {grid.height:,} x {grid.width:,} pixels of {grid.pixel}",
            highlight=False,
        )
        overlap = 1 - plan.windows.rows.step / plan.windows.rows.window
        grids = len(plan.windows.shifts)
        shifted = f"{grids} shifted grids, " if grids > 1 else ""
        console.print(
            f"windows   {plan.window[0]} x {plan.window[1]}, overlap {100 * overlap:.0f} %, "
            f"{shifted}{len(plan.tiles)} tiles",
            highlight=False,
        )

    def _windows(self) -> SceneWindows:
        return SceneWindows(
            self.scene,
            self.predictor.modalities,
            window=self.plan.window,
            cell=self.predictor.cell,
            min_valid=self.settings.min_valid,
            needs_all=self.predictor.needs_all,
        )

    def _make_tiles(self, work: Path, console: Console) -> None:
        """Predict the tiles that are not there yet, each from its own windows."""
        tiles = self.plan.tiles
        missing = [tile for tile in tiles if not _tile_file(work, tile).is_file()]
        if not missing:
            return
        if len(missing) < len(tiles):
            done = len(tiles) - len(missing)
            console.print(f"resuming  {done} of {len(tiles)} tiles are there", highlight=False)
        predictor, device = self.predictor, choose_device(self.settings.device)
        predictor.to(device)
        if isinstance(predictor, FeaturePredictor) and predictor.mode == "pca":
            fit_components(predictor, self._windows(), self.plan, self.settings.loader, device)
        batches = Batches(self.plan.windows, missing)
        read = read_windows(self._windows(), batches, self.settings.loader)
        sensors: set[str] = set()
        with progress_bar(console, "predicting", "tiles", TimeRemainingColumn()) as bar:
            for tile in bar.track(missing):
                blend = Blend(self.plan.windows, tile, len(predictor.bands), device)
                for _ in self.plan.windows.batches(tile):
                    batch = next(read)
                    if not batch.corners:
                        continue
                    sensors.update(name for name, of in batch.present.items() if of.any())
                    output = predictor.predict(batch.sent(device), batch.present)
                    for corner, one, seen in zip(batch.corners, output, batch.seen, strict=True):
                        blend.add(corner, one, seen)
                self._write(work, tile, blend)
        if len(missing) == len(tiles):
            self._tell_unseen(sensors)

    def _tell_unseen(self, seen: Collection[str]) -> None:
        """Say which sensors had no measurement in any window, and that a map is empty."""
        for name, rasters in self.scene.rasters.items():
            if name not in seen:
                log.warning(
                    "%s: nothing is measured where the map is, or less than min_valid of each "
                    "window, so that %s is absent from it; look at its nodata",
                    rasters[0].path,
                    name,
                )
        if not seen:
            log.warning("%s: no pixel was seen, so all of the map is nodata", self.files.made)

    def _write(self, work: Path, tile: Tile, blend: Blend) -> None:
        """Write the files of a tile; that of the map last, since it says that all are there."""
        mean, known = blend.mean()
        grid, layout = self.plan.grid_of(tile), map_layout(self.predictor, {})
        if self.settings.probabilities:
            of_classes = probability_layout(self.predictor, {})
            pixels = probability_pixels(mean, known)
            write_tile(_tile_file(work, tile, PROBABILITIES), pixels, grid, of_classes)
        write_tile(
            _tile_file(work, tile), map_pixels(self.predictor, layout, mean, known), grid, layout
        )

    def _finish(self, work: Path, console: Console) -> Mapped:
        """Join the tiles, draw the map, and give all of it the final names."""
        tags = {"DECUR_MAP": self.content}
        layout, of_classes = map_layout(self.predictor, tags), None
        out = self.files.made
        whole = self._join(work, MAP, layout)
        complete = [(whole, out, layout)]
        probabilities = picture = None
        if self.settings.probabilities:
            probabilities = beside(out, PROBABILITIES)
            of_classes = probability_layout(self.predictor, tags)
            complete.insert(
                0, (self._join(work, PROBABILITIES, of_classes), probabilities, of_classes)
            )
        if plotting.available():
            drawn = draw_map(whole, work / "map.png", layout, out.stem)
            picture = self.files.picture
            put_in_place(drawn, picture)
        else:
            console.print(plotting.MISSING, highlight=False)
        remove_stale(self.files, self.content, console)
        for made, name, pixels in complete:
            publish(made, name, pixels)
        joined = join_parts(self.files, self.content, layout, of_classes)
        return Mapped(out, self.plan.mapped, probabilities, picture, joined)

    def _join(self, work: Path, kind: str, layout: MapLayout) -> Path:
        """Write the Cloud Optimized GeoTIFF of all tiles, not yet under its final name."""
        parts = [
            (_tile_file(work, tile, kind).name, self.plan.grid_of(tile)) for tile in self.plan.tiles
        ]
        write_virtual(work / f"{kind}.vrt", self.plan.mapped, layout, parts)
        whole = work / f"{kind}-complete.tif"
        refuse_full(whole, [work / name for name, _ in parts])
        write_optimised(work / f"{kind}.vrt", whole, layout)
        return whole


def _sampled(raster: Raster) -> str:
    """Return what tells a raster from others on every machine that has a copy of it.

    That is its header, its size, and bytes at some places: reading a whole scene takes minutes.
    """
    file = Path(raster.path)
    size, found = file.stat().st_size, []
    with file.open("rb") as opened:
        for place in evenly_spaced(max(1, size - _SAMPLE), min(_SAMPLES, size)):
            opened.seek(int(place))
            found.append(opened.read(_SAMPLE))
    return digest(replace(raster, path=""), size, found)


def _tile_file(work: Path, tile: Tile, kind: str = MAP) -> Path:
    return work / f"{kind}-{tile.number:06}.tif"


def _begin(work: Path, identity: str, console: Console) -> None:
    """Keep what an earlier call has left of the same map; delete what it has left of another."""
    about = work / "about.json"
    remove_leftovers(work)
    for old in work.glob("*-complete.tif*"):
        old.unlink()
    if _identity_of(about) == identity:
        return
    left = list(work.glob("*-*.tif"))
    if left:
        console.print(f"deleting  {len(left)} tiles of another map in {work}", highlight=False)
    for old in left:
        old.unlink()
    write_json(about, {"identity": identity})


def _empty(work: Path) -> None:
    """Delete what is in a folder of unfinished work, but for the file that says whose it is."""
    for path in work.iterdir():
        if path.name != LOCK:
            path.unlink(missing_ok=True)


def _identity_of(about: Path) -> str | None:
    """Return which map unfinished work is of; None where there is none, or it is damaged."""
    try:
        return str(json.loads(about.read_text())["identity"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
