"""Which windows of a scene are looked at for a map, and which cells it has."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from decur.data.grid import Bounds, Grid
from decur.errors import ConfigError
from decur.features import LAST_MAPS
from decur.predict.model import Predictor, Size
from decur.predict.pixels import map_layout, probability_layout
from decur.predict.raster_files import BLOCK
from decur.predict.settings import PredictSettings
from decur.predict.windows import Area, Axis, Plan, Tile

log = logging.getLogger(__name__)

_WINDOW = 256  # pixels, where it is not known what a model was trained on
_MOST = 2**39  # bytes of a map before compression
_HELD = 2**28  # bytes of the sums of a tile
_WITHIN = 1e-3  # pixels: a rounding error


@dataclass(frozen=True)
class MapPlan:
    """The cells of a map, and the windows that tell them.

    Args:
        grid: of the whole scene, in cells of the map.
        area: of it that is mapped.
        windows: in cells.
        window: height and width of a window in pixels.
        side: height and width of a tile in cells.
    """

    grid: Grid
    area: Area
    windows: Plan
    window: Size
    side: int

    @property
    def tiles(self) -> list[Tile]:
        """Return the tiles of the map."""
        return self.area.tiles(self.side)

    @property
    def mapped(self) -> Grid:
        """Return the grid of the map."""
        area = self.area
        return self.grid.window(area.row, area.column, area.height, area.width)

    def grid_of(self, tile: Tile) -> Grid:
        """Return the grid of a tile."""
        return self.grid.window(tile.row, tile.column, tile.height, tile.width)


def plan_map(predictor: Predictor, pixels: Grid, settings: PredictSettings) -> MapPlan:
    """Plan a map.

    Args:
        predictor: what predicts; its reference is set.
        pixels: the grid that the scene's rasters are read onto.
        settings: of the map.

    Raises:
        ConfigError: if the window, the bounds, the part or the resolution make none.
    """
    grid = pixels.coarser(predictor.cell)
    area = _area(grid, settings)
    beside = probability_layout(predictor, {}).bytes if settings.probabilities else 0
    _refuse_large(area, map_layout(predictor, {}).bytes + beside, settings)
    which, of = settings.number
    part = area.part(which, of, BLOCK)
    if part is None:
        raise ConfigError(
            f"part: the map has {area.height:,} rows, too few for {of} parts of {BLOCK} rows; "
            f"give at most {-(-area.height // BLOCK)}"
        )
    window = _window(predictor, pixels, settings)
    rows, columns = (
        Axis(length, side // predictor.cell, _step(side, predictor, settings), origin)
        for length, side, origin in zip(
            (grid.height, grid.width), window, _origins(grid), strict=True
        )
    )
    windows = Plan(rows, columns, settings.loader.batch_size)
    return MapPlan(grid, part, windows, window, _tile_side(predictor, settings))


def _tile_side(predictor: Predictor, settings: PredictSettings) -> int:
    """Return the side of a tile in cells, such that its sums fit into memory."""
    side = settings.tile // predictor.cell
    while side > 64 and len(predictor.bands) * side**2 * 4 > _HELD:
        side //= 2
    return max(1, side)


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
    """Return the cells from one window to the next.

    A network with strides tells slightly other edges of things where a window starts elsewhere
    within a step of its feature maps. So neighbours start half a step of the finest map apart that
    a head reads, and the average is over several such positions.
    """
    step = side * (1 - settings.overlap)
    if predictor.cell > 1:  # maps of features are averaged step by step
        return max(1, int(step) // predictor.cell)
    finest = max(encoder.strides[-LAST_MAPS:][0] for encoder in predictor.encoders.values())
    if step < finest or settings.overlap == 0:
        return max(1, round(step))
    return int(step // finest * finest - finest // 2)


def _origins(grid: Grid) -> tuple[int, int]:
    """Return the rows and columns of pixels from the origin of the CRS to a grid."""
    down, right = (
        math.floor(edge / pixel + _WITHIN)
        for edge, pixel in zip((-grid.north, grid.west), reversed(grid.resolution), strict=True)
    )
    return down, right


def _area(grid: Grid, settings: PredictSettings) -> Area:
    """Return what is mapped of the scene's grid.

    Raises:
        ConfigError: if the bounds lie beyond it.
    """
    if settings.bounds is None:
        return Area(0, 0, grid.height, grid.width)
    wanted = grid.covering(Bounds(*settings.bounds))
    row, column = grid.offset(wanted) or (0, 0)
    bottom, right = min(row + wanted.height, grid.height), min(column + wanted.width, grid.width)
    row, column = max(row, 0), max(column, 0)
    if row >= bottom or column >= right:
        edges = " ".join(f"{edge:.10g}" for edge in grid.bounds)
        raise ConfigError(
            f"bounds: lie beyond the scene, which covers {edges} ({grid.crs[:20]}); give them in "
            "units of that CRS: left, lower, right and upper edge"
        )
    if bottom - row < wanted.height or right - column < wanted.width:
        log.warning(
            "bounds: reach beyond the scene; mapped are %d x %d of %d x %d pixels",
            bottom - row,
            right - column,
            wanted.height,
            wanted.width,
        )
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
