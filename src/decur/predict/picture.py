"""The browse picture of a map: what a person looks at first, with a legend and a scale bar."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur import plotting
from decur.data.georeference import METRES_PER_DEGREE
from decur.data.rasters import import_rasterio
from decur.predict.raster_files import MapLayout

_SIDE = 1200  # pixels of the map along the longer side of a picture, at most
_INCHES = 7.0  # inches of the longer side
_PANELS = 6  # labels of a map that are drawn
_LEGEND = 24  # classes that a legend names
_BELOW = 14  # points from a map to its scale bar


def draw_map(source: Path, path: Path, layout: MapLayout, title: str) -> Path:
    """Draw a map that is small enough to look at.

    Args:
        source: the map.
        path: of the PNG.
        layout: of the map's pixels.
        title: what it shows.

    Returns:
        The path.

    Raises:
        WriteError: if it cannot be written.
    """
    pixels, metres = _read_small(source, _bands_drawn(layout))
    height, width = pixels.shape[1:]
    scale = _INCHES / max(height, width)
    panels = len(pixels) if _is_flags(layout) else 1
    columns = min(panels, 3)
    figure, axes = plotting.subplots(
        -(-panels // columns),
        columns,
        width=max(width * scale, 2.0) + (0 if _is_flags(layout) else 1.8),
        height=max(height * scale, 1.5) + 0.5,
    )
    for axis in axes.ravel():
        axis.axis("off")
    axes[0, 0].set_title(plotting.plain(title), fontsize=10, loc="left")
    if _is_flags(layout):
        for axis, flags, name in zip(axes.ravel(), pixels, layout.bands, strict=False):
            axis.imshow(_coloured(flags, layout, [(221, 221, 221), (0, 114, 178)]))
            axis.set_title(plotting.plain(name), fontsize=10)
    elif layout.classes:
        colours = plotting.class_colours(len(layout.classes))
        axes[0, 0].imshow(_coloured(pixels[0], layout, colours), interpolation="nearest")
        _draw_legend(figure, pixels[0], layout, colours)
    elif len(pixels) == 3:
        axes[0, 0].imshow(_stretched(pixels))
    else:
        shown = axes[0, 0].imshow(pixels[0], cmap="viridis")
        bar = figure.colorbar(shown, ax=axes[0, 0], shrink=0.7)
        bar.set_label(plotting.plain(layout.bands[0]))
    _draw_scale(axes.ravel()[0], width, height, metres)
    return plotting.save(figure, path)


def _is_flags(layout: MapLayout) -> bool:
    return layout.dtype == "uint8" and not layout.classes


def _bands_drawn(layout: MapLayout) -> list[int]:
    """Return the bands that are drawn, from 1: flags, three features as colours, or the first."""
    if _is_flags(layout):
        return list(range(1, min(len(layout.bands), _PANELS) + 1))
    return [1, 2, 3] if len(layout.bands) >= 3 else [1]


def _read_small(source: Path, bands: list[int]) -> tuple[NDArray[Any], float]:
    """Return pixels of some bands, from the overviews, and how many metres a pixel is wide."""
    rasterio = import_rasterio(".tif")
    with rasterio.open(source) as file:
        factor = max(1.0, max(file.height, file.width) / _SIDE)
        shape = (max(1, round(file.height / factor)), max(1, round(file.width / factor)))
        pixels = file.read(bands, out_shape=(len(bands), *shape))
        across = (file.bounds.right - file.bounds.left) / shape[1]
        if file.crs.is_geographic:
            latitude = math.radians((file.bounds.top + file.bounds.bottom) / 2)
            return pixels, across * METRES_PER_DEGREE * math.cos(latitude)
        return pixels, across * file.crs.linear_units_factor[1]


def _coloured(
    values: NDArray[Any], layout: MapLayout, colours: list[tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Return values as colours, white where nothing was seen: (H, W, 3)."""
    table = np.full((int(layout.nodata) + 1, 3), 255, dtype=np.uint8)
    table[: len(colours)] = colours
    return np.asarray(table[values])


def _stretched(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return three numbers as colours, each from its percentile 2 to 98: (H, W, 3)."""
    made = np.ones((*pixels.shape[1:], 3), dtype=np.float32)
    known = np.isfinite(pixels).all(axis=0)
    for band, values in enumerate(pixels):
        if known.any():
            low, high = np.percentile(values[known], (2, 98))
            made[known, band] = np.clip((values[known] - low) / max(high - low, 1e-9), 0, 1)
    return made


def _draw_legend(
    figure: plotting.Figure,
    values: NDArray[Any],
    layout: MapLayout,
    colours: list[tuple[int, int, int]],
) -> None:
    """Name the classes that are on the map, each with its share of what was seen."""
    counts = np.bincount(values.ravel(), minlength=int(layout.nodata) + 1)
    seen = max(1, counts[: len(layout.classes)].sum())
    there = [number for number in range(len(layout.classes)) if counts[number]]
    shown = sorted(sorted(there, key=lambda number: -counts[number])[:_LEGEND])
    of_classes = [colours[n] for n in shown]
    names = [f"{layout.classes[n]}  {100 * counts[n] / seen:.3g} %" for n in shown]
    if counts[int(layout.nodata)]:
        of_classes.append((255, 255, 255))
        names.append("nothing seen")
    # outside: the map makes room for it, however long the names are
    where = "outside right upper"
    plotting.class_legend(figure, names, of_classes, frameon=False, fontsize=9, loc=where)


def _draw_scale(axis: Any, width: int, height: int, metres: float) -> None:
    """Draw a bar of a round length below the map, at about a quarter of its width."""
    wanted = width * metres / 4
    power = 10.0 ** math.floor(math.log10(wanted))
    length = max(step * power for step in (1, 2, 5) if step * power <= wanted)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    place = plotting.below(axis, _BELOW)  # x in pixels of the map
    axis.plot(
        [-0.5, length / metres - 0.5],
        [0, 0],
        color="black",
        linewidth=3,
        solid_capstyle="butt",
        transform=place,
        clip_on=False,
    )
    axis.annotate(
        text,
        (length / metres - 0.5, 0),
        (6, 0),
        xycoords=place,
        textcoords="offset points",
        va="center",
        fontsize=9,
        annotation_clip=False,
    )
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
