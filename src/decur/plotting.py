"""What every figure has in common: its canvas, colours, markers and legends.

This module and `decur.charts`, which reads what is drawn, are the only ones that import matplotlib,
which is optional. Colours and markers mean the
same in every figure, and the colour-blind can tell them apart.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from colorsys import hsv_to_rgb
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decur.charts import chart_of
from decur.errors import install
from decur.modality import PRESETS, Modality, plain_band, preset_of
from decur.runs import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure
    from torch import Tensor

    from decur.data.sample import Batch
else:
    Figure = Any  # so that other modules can name the type where matplotlib is not installed

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # below it tells of names like numbers

MISSING = f"No pictures: {install('explain')} for matplotlib."  # in place of a figure in a report

# Blue and orange of Okabe and Ito (2008).
COMMON, UNIQUE, OTHER = "#0072B2", "#E69F00", "#555555"
BLOCKS = (COMMON, "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # colours of the same palette
ABSENT = "#C8C8C8"  # what is not labelled
# Teal, wine, black and grey: apart from each other, and from the parts, in hue and in lightness.
MODALITIES = ("#44AA99", "#882255", "#000000", "#888888")
INK = "#7C8593"  # colour of words around pictures, on white paper and on a dark page
POINTS = "decur-points"  # the name of a PNG's text that holds the points of its lines
CHART = "decur-chart"  # the name of that which holds its lines and bars (see `decur.charts`)
_DPI = 110
_TOLD = 200  # points of a line at most
MARKERS = ("o", "^", "s", "D")
_AREAS = "DDDDDD 77AADD EE8866 44BB99 EEDD88 FFAABB AAAA00 99DDFF BBCC33"


def available() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def subplots(
    rows: int, columns: int, width: float, height: float | None = None
) -> tuple[Figure, Any]:
    """Return a figure and its axes, without pyplot: no window and no global state.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
        width: width of a panel in inches.
        height: height of a panel in inches; None for square panels.

    Returns:
        The figure, and its axes as an array (rows, columns).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (width * columns, (height or width) * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def single(width: float, height: float) -> tuple[Figure, Any]:
    """Return a figure of one panel, and its axes.

    Args:
        width: width in inches.
        height: height in inches.
    """
    figure, axes = subplots(1, 1, width=width, height=height)
    return figure, axes[0, 0]


def below(axes: Any, points: float) -> Any:
    """Return the transform of a line below a panel, for artists that stand on it.

    Args:
        axes: the panel.
        points: how far below its lower edge the line is, in points of 1/72 inch.

    Returns:
        A transform whose x is that of the data; y is 0 on the line, and 1 the panel's height above.
    """
    from matplotlib.transforms import ScaledTranslation

    down = ScaledTranslation(0, -points / 72, axes.figure.dpi_scale_trans)
    return axes.get_xaxis_transform() + down


def plain(name: str) -> str:
    """Return a name such that matplotlib does not read what stands between $ as a formula."""
    return name.replace("$", r"\$")


def legend(where: Any, handles: Iterable[Any], names: Iterable[str], **how: Any) -> None:
    """Add a legend that shows every name as it is; no legend where there are no names.

    Without explicit names matplotlib would leave out labels that begin with an underscore.

    Args:
        where: axes or a figure.
        handles: lines, points or patches that the legend names.
        names: the name of each handle.
        how: keyword arguments of matplotlib's `legend`.
    """
    handles = list(handles)
    if names := [plain(name) for name in names]:
        for handle, name in zip(handles, names, strict=False):
            handle.set_label(name)  # which `save` keeps with the points of a line
        where.legend(handles, names, **how)


def class_legend(
    where: Any, names: Iterable[str], colours: Iterable[tuple[int, int, int]], **how: Any
) -> None:
    """Add a legend that names the colours of classes.

    Args:
        where: axes or a figure.
        names: of the classes.
        colours: of each, red, green and blue from 0 to 255.
        how: keyword arguments of matplotlib's `legend`.
    """
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=(r / 255, g / 255, b / 255), edgecolor=OTHER) for r, g, b in colours]
    legend(where, patches, names, **how)


def render(image: Tensor, modality: Modality) -> NDArray[np.float32]:
    """Return a picture of any sensor for the eye: true colour where there is one, else grey.

    Of 12 or 13 bands without names those are red, green and blue that they are of Sentinel-2.

    Values are stretched from the 2nd to the 98th percentile of the bands that are shown, all of
    them alike, so that colours stay.

    Args:
        image: (C, H, W) in [0, 1].
        modality: the sensor, which names the bands.

    Returns:
        (H, W, 3) in [0, 1].
    """
    preset = preset_of(modality.bands)
    bands = PRESETS[preset].bands if preset else modality.bands
    names = [plain_band(band) for band in bands]
    shown = [0, 0, 0]
    for colours in (("B4", "B3", "B2"), ("R", "G", "B"), ("RED", "GREEN", "BLUE")):
        if set(colours) <= set(names):
            shown = [names.index(colour) for colour in colours]
            break
    else:
        if modality.channels == 3:
            shown = [0, 1, 2]
    x = image[shown].float().cpu().numpy()  # (3, H, W)
    low, high = np.percentile(x, (2, 98))
    return np.moveaxis(np.clip((x - low) / max(high - low, 1e-6), 0, 1), 0, -1)


def small_pictures(images: Tensor, modality: Modality, side: int) -> NDArray[np.uint8]:
    """Return square pictures of some images, as they are shown.

    Args:
        images: (n, C, H, W), in raw units.
        modality: the sensor.
        side: of the pictures, in pixels; those of smaller images show the images' own pixels.

    Returns:
        (n, side, side, 3).
    """
    import torch
    from torch.nn.functional import interpolate

    shown = np.zeros((len(images), side, side, 3), np.uint8)
    for place, raw in zip(shown, images, strict=True):
        picture = torch.from_numpy(render(modality.scale(raw[None])[0], modality)).movedim(-1, 0)
        larger = picture.shape[-1] < side
        resized = interpolate(
            picture[None],
            (side, side),
            **({"mode": "nearest"} if larger else {"mode": "bilinear", "antialias": True}),
        )[0]
        place[:] = (255 * resized.clamp(0, 1)).round().byte().movedim(0, -1).numpy()
    return shown


def batch_pictures(
    batch: Batch, modalities: Mapping[str, Modality], side: int
) -> dict[str, NDArray[np.uint8]]:
    """Return square pictures of a batch as `small_pictures` makes them.

    Args:
        batch: raw samples.
        modalities: the sensors whose pictures are wanted.
        side: of the pictures, in pixels.

    Returns:
        `{sensor: (B, side, side, 3)}`, black where a sample lacks the sensor.
    """
    found = {}
    for name, modality in modalities.items():
        has = batch["present"][name]
        found[name] = np.zeros((len(has), side, side, 3), np.uint8)
        found[name][has.numpy()] = small_pictures(batch["images"][name][has], modality, side)
    return found


def save(figure: Figure, path: Path) -> Path:
    """Write a figure whole or not at all, as PNG or what its ending says; its folder is made.

    A PNG also holds the points of its lines, which a report tells where the pointer is, and lines
    and bars as a chart, which a report draws anew. That of pictures side by side has no paper, so
    that it suits a light and a dark page.

    Raises:
        WriteError: if it cannot be written.
    """
    kind = path.suffix.lstrip(".") or "png"
    _count_epochs(figure)
    about = None
    if kind == "png":
        chart = chart_of(figure)
        about = {POINTS: json.dumps(_points(figure)), CHART: json.dumps(chart)}
    if no_paper := kind == "png" and _shows_pictures_alone(figure):
        _write_in_grey(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format=kind, metadata=about, transparent=no_paper)
    return path


def _count_epochs(figure: Figure) -> None:
    """Mark whole epochs alone, also where there is a single one."""
    from matplotlib.ticker import MaxNLocator

    for axis in figure.axes:
        if axis.get_xlabel() == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _shows_pictures_alone(figure: Figure) -> bool:
    """Return whether no panel of a figure is a chart; bars of colours are none."""
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    charts = [axis for axis in panels if axis.has_data() and not axis.images]
    return not charts and any(axis.images for axis in panels)


def _write_in_grey(figure: Figure) -> None:
    """Give the words, frames and lines of a figure that are black a grey for any paper."""
    from matplotlib.colors import same_color
    from matplotlib.lines import Line2D
    from matplotlib.spines import Spine
    from matplotlib.text import Text

    for axis in figure.axes:
        axis.tick_params(colors=INK)
    artist: Any
    for artist in figure.findobj(lambda each: isinstance(each, Line2D | Spine | Text)):
        colour = artist.get_edgecolor() if isinstance(artist, Spine) else artist.get_color()
        if same_color(colour, "black"):
            artist.set_color(INK)


def is_drawn(path: Path) -> bool:
    """Return whether a PNG is a figure that `save` wrote."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return POINTS in picture.info
    except OSError:
        return False


def _points(figure: Figure) -> list[tuple[float, float, str]]:
    """Return place and meaning of each marked point of a figure's lines.

    Places are shares of the figure's width and height, from its upper left corner.
    """
    marked = [
        (axis, line)
        for axis in figure.axes
        for line in axis.lines
        if axis.get_xlabel()
        and line.get_marker() not in ("None", "", None)
        and not str(line.get_label()).startswith("_")
    ]
    if not marked:
        return []
    figure.set_dpi(_DPI)  # which the layout depends on
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out, and need not be once more when it is written
    found = []
    for axis, line in marked:
        name, what = str(line.get_label()).replace(r"\$", "$"), axis.get_xlabel()
        data = np.asarray(line.get_xydata())
        data = data[:: 1 + len(data) // _TOLD]
        places = figure.transFigure.inverted().transform(axis.transData.transform(data))
        drawn = np.isfinite(places).all(1)
        found += [
            (round(float(x), 4), round(1 - float(y), 4), f"{name}: {value:.4g} ({what} {at:g})")
            for (x, y), (at, value) in zip(places[drawn], data[drawn], strict=True)
        ]
    return found


def part_colour(name: str, parts: Sequence[str] = ()) -> str:
    """Return the colour of a part of the embedding, as "#0072B2".

    Args:
        name: of the part.
        parts: all parts; blocks such as "optical+sar" have their colours in this order.
    """
    blocks = [part for part in parts if "+" in part]
    if name in blocks:
        return BLOCKS[blocks.index(name) % len(BLOCKS)]
    return {"common": COMMON, "unique": UNIQUE}.get(name, OTHER)


def rgb(colour: str) -> NDArray[np.int64]:
    """Return red, green and blue of a colour such as "#0072B2": (3,) from 0 to 255."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Return a colour for each class of a map, red, green and blue from 0 to 255.

    The first nine are Tol's "light" palette, made for filling areas (Tol 2021, "Colour Schemes");
    further ones go around the circle of hues by the golden angle.
    """
    made = [(int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _AREAS.split()]
    for number in range(count - len(made)):
        r, g, b = hsv_to_rgb(number * 0.618034 % 1, 0.45 + 0.3 * (number % 2), 0.85)
        made.append((round(255 * r), round(255 * g), round(255 * b)))
    return made[:count]


def part_line(name: str) -> str:
    """Return the line style of a part of the embedding."""
    return {"common": "-", "unique": "--"}.get(name, "-" if "+" in name else ":")


def modality_colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each modality, in order."""
    return {name: MODALITIES[i % len(MODALITIES)] for i, name in enumerate(names)}
