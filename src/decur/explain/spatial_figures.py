"""Pictures of spatial saliency: histograms of the overlap, and samples to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decur.explain.base import Arrays, DoesNotApply
from decur.plotting import part_colour, part_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 20
SIDE_BY_SIDE = 2  # the sensors of a sample where there are two, else samples


def plot_overlap(arrays: Arrays) -> Figure:
    """Histograms of the overlap on common and on unique dimensions, a panel a pair (Fig. 6a)."""
    from decur.plotting import plain, subplots

    pairs, parts = arrays["pairs"].tolist(), arrays["parts"].tolist()
    if not pairs:
        raise DoesNotApply("Overlap compares sensors, and the run has one.")
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    width = 5.5 if columns == 1 else 8.6 / columns
    figure, axes = subplots(rows, columns, width=width, height=2.9 if rows == 1 else 2.3)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        for part in parts:
            known = arrays[f"{pair}/{part}/overlap"]
            known = known[np.isfinite(known)]
            if not len(known):
                continue
            counts, edges = np.histogram(known, BINS, (0, 1))
            colour, line = part_colour(part), part_line(part)
            axis.stairs(counts, edges, fill=True, alpha=0.3, color=colour)
            label = f"{part}: mean {known.mean():.2f}"
            other = arrays[f"{pair}/{part}/other"]
            if np.isfinite(other).any():
                label += f", of other scenes {np.nanmean(other):.2f}"
            axis.stairs(counts, edges, color=colour, linestyle=line, linewidth=1.5, label=label)
            axis.axvline(known.mean(), color=colour, linestyle=line, linewidth=1)
        axis.set_title(plain(pair), fontsize=9)
        axis.set_xlabel("overlap of the two maps", fontsize=9)
        axis.set_xlim(0, 1)
        axis.tick_params(labelsize=8)
        if axis.has_data():
            axis.legend(fontsize=8, frameon=False, loc="upper left")
    for axis in axes[:, 0]:
        axis.set_ylabel("samples", fontsize=9)
    return figure


def plot_examples(arrays: Arrays) -> Figure:
    """Each sensor's picture of some samples, then with the places of each part in its colour."""
    from decur.plotting import plain, subplots

    names = [name for name in arrays["modalities"].tolist() if f"{name}/pictures" in arrays]
    parts, ids = arrays["parts"].tolist(), arrays["examples"].tolist()
    if not names:
        raise DoesNotApply("None of the samples to be shown could be read.")
    beside = names if len(names) == SIDE_BY_SIDE else ids[:SIDE_BY_SIDE]  # what shares a line
    wide = 1 + len(parts)
    lines = len(ids) if beside is names else -(-len(ids) // len(beside)) * len(names)
    columns = wide * len(beside)
    figure, axes = subplots(lines, columns, width=min(2.0, 8.8 / columns))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, sample in enumerate(ids):
        for place, name in enumerate(names):
            if beside is names:
                line, block = row, place
            else:
                line, block = row // len(beside) * len(names) + place, row % len(beside)
            some = axes[line, block * wide : (block + 1) * wide]
            if block == 0 or beside is not names:
                some[0].set_ylabel(plain(_short(sample)), fontsize=8)
            titled = line == 0 or beside is not names
            if titled:
                some[0].set_title(plain(name), fontsize=9)
            _draw(some, arrays, name, parts, row, titled)
    return figure


def _draw(
    axes: NDArray[Any], arrays: Arrays, name: str, parts: list[str], row: int, titled: bool
) -> None:
    from matplotlib.colors import to_rgb

    if np.isnan(arrays[f"{name}/{parts[0]}/maps"][row]).any():
        axes[0].text(0.5, 0.5, "absent", ha="center", va="center", fontsize=8)
        return
    picture = arrays[f"{name}/pictures"][row]  # (h, w, 3)
    axes[0].imshow(picture, interpolation="nearest")
    grey = picture.mean(-1, keepdims=True).repeat(3, -1) / 255
    for axis, part in zip(axes[1:], parts, strict=True):
        saliency = arrays[f"{name}/{part}/maps"][row]  # (h, w)
        # faint at its least, so that the ground stays to be seen, and opaque enough at its most
        weight = 0.85 * saliency[..., None]
        axis.imshow(
            (1 - weight) * (0.25 + 0.75 * grey) + weight * np.array(to_rgb(part_colour(part)))
        )
        if saliency.max() <= 0:
            axis.text(0.5, 0.06, "nothing", transform=axis.transAxes, ha="center", fontsize=8)
        if titled:
            axis.set_title(part, fontsize=9, color=part_colour(part))


def _short(sample: str) -> str:
    return sample if len(sample) <= 14 else f"…{sample[-13:]}"
