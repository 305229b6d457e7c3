"""What every picture has in common: its canvas, colours, markers and legends. Needs matplotlib.

Colours and markers mean the same in every picture, and the colour-blind can tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decur.modality import Modality

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# Blue and orange of Okabe and Ito (2008).
COMMON, UNIQUE, OTHER = "#0072B2", "#E69F00", "#555555"
ABSENT = "#C8C8C8"  # what is not labelled
# Teal, wine, black and grey: apart from each other, and from the parts, in hue and in lightness.
MODALITIES = ("#44AA99", "#882255", "#000000", "#888888")
MARKERS = ("o", "^", "s", "D")


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def subplots(rows: int, columns: int, width: float, height: float | None = None) -> Any:
    """A figure and its axes (rows, columns), without pyplot: no window and no global state.

    Args:
        rows: of panels.
        columns: of panels.
        width: of a panel, in inches.
        height: of a panel; None for square ones.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (width * columns, (height or width) * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def plain(name: str) -> str:
    """A name as a picture is to show it: matplotlib would read what stands between $ as formula."""
    return name.replace("$", r"\$")


def legend(where: Any, handles: Iterable[Any], names: Iterable[str], **how: Any) -> None:
    """A legend of these names, whatever they are; none where there are none.

    Given no names, matplotlib leaves out labels that begin with an underscore.

    Args:
        where: an axis or a figure.
        handles: what is named.
        names: of each.
        how: it looks, as `legend` of matplotlib takes it.
    """
    if names := [plain(name) for name in names]:
        where.legend(list(handles), names, **how)


def render(image: Tensor, modality: Modality) -> NDArray[np.float32]:
    """A picture of any sensor for the eye: true colour where there is one, else grey.

    Stretched from the 2nd to the 98th percentile of what is shown, all bands alike: colours stay.

    Args:
        image: (C, H, W) in [0, 1].
        modality: names its bands.

    Returns:
        (H, W, 3) in [0, 1].
    """
    names = [band.lower() for band in modality.bands]
    shown = [0, 0, 0]
    for colours in (("b4", "b3", "b2"), ("r", "g", "b"), ("red", "green", "blue")):
        if set(colours) <= set(names):
            shown = [names.index(colour) for colour in colours]
            break
    else:
        if modality.channels == 3:
            shown = [0, 1, 2]
    x = image[shown].float().cpu().numpy()  # (3, H, W)
    low, high = np.percentile(x, (2, 98))
    return np.moveaxis(np.clip((x - low) / max(high - low, 1e-6), 0, 1), 0, -1)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG and let go of the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def part_colour(name: str) -> str:
    """Of a part of the embedding."""
    return {"common": COMMON, "unique": UNIQUE}.get(name, OTHER)


def part_line(name: str) -> str:
    """Line style of a part of the embedding."""
    return {"common": "-", "unique": "--"}.get(name, ":")


def modality_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each modality, in order."""
    return {name: MODALITIES[i % len(MODALITIES)] for i, name in enumerate(names)}
