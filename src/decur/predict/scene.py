"""`predict`: a scene of any size through a model, into a georeferenced map."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur import plotting
from decur.data.grid import Grid
from decur.data.loader import reporting_lost_workers
from decur.data.map_rasters import Raster, read_raster_header
from decur.data.selection import evenly_spaced
from decur.devices import choose_device
from decur.digest import digest, file_states
from decur.errors import ConfigError
from decur.layers import override
from decur.locks import holding
from decur.predict.components import fit_components
from decur.predict.features import FeaturePredictor, open_model
from decur.predict.model import Predictor
from decur.predict.picture import draw_map
from decur.predict.pixels import (
    map_layout,
    map_pixels,
    probability_layout,
    probability_pixels,
)
from decur.predict.planning import MapPlan, plan_map
from decur.predict.raster_files import (
    Layout,
    is_virtual_map,
    publish,
    refuse_full,
    tag_of,
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

FORMAT = 1  # of unfinished work; raised when a map would come out otherwise
MAP, PROBABILITIES = "map", "probabilities"  # kinds of files that a tile has
_SUFFIXES = (".tif", ".tiff")
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
    predictor = open_model(model, settings.features, [word.partition("=")[0] for word in words])
    if settings.probabilities and not predictor.classes:
        raise ConfigError("probabilities: a map of numbers or features has none; leave it out")
    files = parse_scene(words, list(predictor.modalities))
    out = _map_name(settings, [file for of_sensor in files.values() for file in of_sensor])
    _check_absent(predictor, files)
    opened = open_scene(files, predictor.modalities, settings.resolution)
    predictor.reference = opened.reference
    job = _Job(predictor, opened, settings, out, plan_map(predictor, opened.grid, settings))
    with reporting_lost_workers(), writing(out):
        return job.run(Console(soft_wrap=True, markup=False, emoji=False))


def _map_name(settings: PredictSettings, files: Iterable[Path]) -> Path:
    """Return the file of the map, or of the part that is made.

    Raises:
        ConfigError: for a name that is no GeoTIFF's, a folder, or one of the scene's own files.
    """
    out = whole_name(settings)
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"--out {out}: a map is a GeoTIFF; name it .tif")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file")
    which, of = settings.number
    made = out if of == 1 else part_name(out, which, of)
    scene = {file.resolve() for file in files}
    rasters = [made] if of == 1 else [made, out, out.with_suffix(".vrt")]
    if settings.probabilities:
        rasters += [beside(raster, PROBABILITIES) for raster in rasters]
    for name in (*rasters, made.with_suffix(".png"), made.with_name(f"{made.name}.aux.xml")):
        if name.resolve() in scene:
            raise ConfigError(
                f"--out {out}: would write {name}, a raster of the scene; choose another name"
            )
    return made


def whole_name(settings: PredictSettings) -> Path:
    """Return the name of the map, whichever part of it is made."""
    return Path(settings.out or "map.tif")


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
    """A map to make: what predicts what, in which windows and tiles, and into which file."""

    predictor: Predictor
    scene: SceneFiles
    settings: PredictSettings
    out: Path
    plan: MapPlan

    def run(self, console: Console) -> Mapped:
        """Make the map, or what is still missing of it."""
        work = self.out.with_name(f"{self.out.name}.unfinished")
        widest = max(*self.plan.window, self.plan.side * self.predictor.cell)
        warn_slow(self.scene, widest)
        warn_units(self.scene, self.predictor.modalities)
        self._describe(console)
        with holding(work, "--out"):
            self._tell_replaced(console)
            _begin(work, self._identity(), console)
            self._make_tiles(work, console)
            found = self._finish(work, console)
        shutil.rmtree(work, ignore_errors=True)
        for path in (found.path, found.probabilities, found.picture, found.joined):
            if path is not None:
                tell_result("written   ", path)
        return found

    def _tell_replaced(self, console: Console) -> None:
        """Say that another map is replaced.

        Raises:
            ConfigError: if what has one of the names that are written is not of decur.
        """
        own: dict[Path, Callable[[Path], object]] = {self.out: tag_of}
        if self.settings.probabilities:
            own[beside(self.out, PROBABILITIES)] = tag_of
        if self.settings.number[1] > 1:
            own |= dict.fromkeys(self._joined(), is_virtual_map)
        if plotting.available():
            own[self.out.with_suffix(".png")] = plotting.is_drawn
        for path, is_own in own.items():
            if path.exists() and not is_own(path):
                raise ConfigError(
                    f"--out {path}: is there and is no map of decur; choose another name, or "
                    "delete it"
                )
        if not self.out.exists() or tag_of(self.out) == self.content:
            return
        console.print(f"replacing {self.out}, a map of something else", highlight=False)

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
        console.print(
            f"windows   {plan.window[0]} x {plan.window[1]}, overlap {100 * overlap:.0f} %, "
            f"{len(plan.tiles)} tiles",
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
                    "%s: nothing is measured where the map is, so that %s is absent from it; look "
                    "at its nodata",
                    rasters[0].path,
                    name,
                )
        if not seen:
            log.warning("%s: no pixel was seen, so all of the map is nodata", self.out)

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
        layout = map_layout(self.predictor, tags)
        whole = self._join(work, MAP, layout)
        complete = [(whole, self.out, layout)]
        probabilities = picture = None
        if self.settings.probabilities:
            probabilities = beside(self.out, PROBABILITIES)
            of_classes = probability_layout(self.predictor, tags)
            complete.insert(
                0, (self._join(work, PROBABILITIES, of_classes), probabilities, of_classes)
            )
        if plotting.available():
            drawn = draw_map(whole, work / "map.png", layout, self.out.stem)
            picture = self.out.with_suffix(".png")
            put_in_place(drawn, picture)
        else:
            console.print(plotting.MISSING, highlight=False)
        for made, name, pixels in complete:
            publish(made, name, pixels)
        return Mapped(self.out, self.plan.mapped, probabilities, picture, self._join_parts(layout))

    def _join(self, work: Path, kind: str, layout: Layout) -> Path:
        """Write the Cloud Optimized GeoTIFF of all tiles, not yet under its final name."""
        parts = [
            (_tile_file(work, tile, kind).name, self.plan.grid_of(tile)) for tile in self.plan.tiles
        ]
        write_virtual(work / f"{kind}.vrt", self.plan.mapped, layout, parts)
        whole = work / f"{kind}-complete.tif"
        refuse_full(whole, [work / name for name, _ in parts])
        write_optimised(work / f"{kind}.vrt", whole, layout)
        return whole

    def _joined(self) -> list[Path]:
        """Return the names of the virtual rasters that join all parts of a map."""
        joined = whole_name(self.settings).with_suffix(".vrt")
        return [joined, beside(joined, PROBABILITIES)] if self.settings.probabilities else [joined]

    def _join_parts(self, layout: Layout) -> Path | None:
        """Write the virtual raster over all parts of a map, once the last of them is there."""
        _, of = self.settings.number
        names = [part_name(whole_name(self.settings), which, of) for which in range(1, of + 1)]
        if of == 1:
            return None
        joined = self._joined()[0]
        if not all(tag_of(name) == self.content for name in names):
            for old in self._joined():  # it would join parts of two maps
                old.unlink(missing_ok=True)
            return None
        parts = [(name.name, read_raster_header(name).grid) for name in names]
        grid = parts[0][1]
        height = sum(part.height for _, part in parts)
        whole = grid.window(0, 0, height, grid.width)
        write_virtual(joined, whole, layout, parts)
        if self.settings.probabilities:
            of_classes = probability_layout(self.predictor, dict(layout.tags))
            files = [beside(name, PROBABILITIES).name for name in names]
            parts = [(file, part) for file, (_, part) in zip(files, parts, strict=True)]
            write_virtual(beside(joined, PROBABILITIES), whole, of_classes, parts)
        return joined


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


def beside(out: Path, kind: str) -> Path:
    """Return the name of what lies beside a map, such as its probabilities."""
    return out.with_name(f"{out.stem}-{kind}{out.suffix}")


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


def _identity_of(about: Path) -> str | None:
    """Return which map unfinished work is of; None where there is none, or it is damaged."""
    try:
        return str(json.loads(about.read_text())["identity"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
