"""The plan of a map: its cells, and the windows of the scene that the model sees."""

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

_WINDOW = 256  # pixels, at least, of convolutional networks, and where no size is known
_SHIFTS = 5  # grids of windows for masks of convolutional networks
_OVERLAP = (0.125, 0.5)  # overlap of windows on several grids, and on one
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
    shifts = _shifts(predictor, window, settings)
    rows, columns = (
        Axis(length, side // predictor.cell, step, origin)
        for length, side, step, origin in zip(
            (grid.height, grid.width),
            window,
            (_step(side, predictor, settings, len(shifts)) for side in window),
            _origins(grid),
            strict=True,
        )
    )
    windows = Plan(rows, columns, settings.loader.batch_size, shifts)
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
    sizes = [wanted]
    if settings.window is None and _is_dense(predictor):
        # the padding at a window's border reaches far into a small one
        sizes.insert(0, (max(_WINDOW, trained[0]), max(_WINDOW, trained[1])))
    tried = [size for one in sizes for size in (_cut(one, predictor.cell, unit, grid), one)]
    for window in tried:
        try:
            predictor.refuse_window(window)
        except ConfigError:
            if window == wanted:
                raise
        else:
            break
    return window


def _cut(size: Size, cell: int, unit: int, grid: Grid) -> Size:
    """Return windows in whole cells that are shortened to a scene's whole units."""
    height, width = (
        min(-(-side // cell) * cell, -(-length // unit) * unit)
        for side, length in zip(size, (grid.height, grid.width), strict=True)
    )
    return height, width


def _is_dense(predictor: Predictor) -> bool:
    """Return whether a model tells a class for each pixel, from what lies around it alone."""
    return predictor.dense and predictor.convolutional


def _stride(predictor: Predictor, window: Size) -> int:
    """Return the pixels of the map for each step of the coarsest feature map."""
    found = 1.0
    for name, encoder in predictor.encoders.items():
        seen = predictor.input_size(name, window) or window
        found = max(
            found, *(max(encoder.strides) * w / s for w, s in zip(window, seen, strict=True))
        )
    return round(found)


def _shifts(
    predictor: Predictor, window: Size, settings: PredictSettings
) -> tuple[tuple[int, int], ...]:
    """Return the rows and columns by which each grid of windows is shifted.

    A network with strides tells slightly other edges of things where a window starts elsewhere
    within a step of its feature maps. N shifts are a lattice within the coarsest step: i / N of it
    down and 2 i / N right. As N is odd they lie evenly within the steps of the finer maps, too,
    each of which is half of the next.

    Raises:
        ConfigError: if several are wanted of a map of features.
    """
    count = settings.shifts or (_SHIFTS if _is_dense(predictor) else 1)
    if count > 1 and predictor.cell > 1:
        raise ConfigError(
            "shifts: a map of features has one value for each step of the network; leave it out"
        )
    stride = _stride(predictor, window)
    shifts = [
        (round(i * stride / count), round(2 * i % count * stride / count)) for i in range(count)
    ]
    return tuple(dict.fromkeys(shifts))


def _step(side: int, predictor: Predictor, settings: PredictSettings, shifts: int) -> int:
    """Return the cells from one window to the next.

    The windows of each of several grids start at the same place within a step of the network. Of a
    single grid neighbours start half a step of the finest map apart that a head reads, so that the
    average is over several such places.
    """
    overlap = _OVERLAP[shifts == 1] if settings.overlap is None else settings.overlap
    step = side * (1 - overlap)
    if predictor.cell > 1:  # maps of features are averaged step by step
        return max(1, int(step) // predictor.cell)
    if shifts > 1:
        stride = _stride(predictor, (side, side))
        return max(1, round(step)) if step < stride else int(step // stride * stride)
    finest = max(encoder.strides[-LAST_MAPS:][0] for encoder in predictor.encoders.values())
    if step < finest or overlap == 0:
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
