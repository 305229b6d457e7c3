"""Pictures of how much sensors share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from decur.explain.base import Arrays
from decur.plotting import part_colour, part_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HATCH = {"unique": "///"}


def plot_shared(arrays: Arrays) -> Figure:
    """A row a pair: what the other sensor predicts of each part, and retrieval, with chance."""
    from decur.plotting import subplots

    pairs = arrays["pairs"].tolist()
    figure, axes = subplots(len(pairs), 3, width=2.95, height=2.9 if len(pairs) == 1 else 2.3)
    for row, pair in enumerate(pairs):
        parts = arrays[f"{pair}/parts"].tolist()
        for axis, key, title in (
            (axes[row, 0], "same", "from the same part"),
            (axes[row, 1], "features", "from the encoder"),
        ):
            bars = {part: arrays[f"{pair}/{key}/{part}"] for part in parts}
            chance = {part: arrays[f"{pair}/{key}-chance/{part}"].max(1) for part in parts}
            _bars(axis, arrays, pair, bars, chance)
            axis.set_ylim(min(-0.05, *(float(v.min()) for v in bars.values())), 1)
            if not row:
                axis.set_title(f"held-out R2 {title}", fontsize=9)
        names = [*parts, "all"] if len(parts) > 1 else parts
        n = arrays[f"{pair}/samples"][0]
        recall = {name: arrays[f"{pair}/recall/{name}"][:, 1] for name in names}
        _bars(axes[row, 2], arrays, pair, recall, dict.fromkeys(names, np.full(2, 5 / n)))
        top = max(float(values.max()) for values in recall.values())
        axes[row, 2].set_ylim(0, min(1, 1.6 * max(top, 5 / n)))
        if not row:
            axes[row, 2].set_title("partner among the 5 nearest", fontsize=9)
        axes[row, 2].legend(fontsize=8, loc="upper right", frameon=False)
    return figure


def plot_canonical(arrays: Arrays) -> Figure:
    """Canonical correlations of held-out samples by part, and the largest that chance gave."""
    from decur.plotting import plain, subplots

    pairs = arrays["pairs"].tolist()
    columns = min(3, len(pairs))
    width = 5.5 if columns == 1 else 8.8 / columns
    figure, axes = subplots(-(-len(pairs) // columns), columns, width=width, height=2.9)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        for part in arrays[f"{pair}/parts"].tolist():
            values = arrays[f"{pair}/canonical/{part}"]
            colour = part_colour(part)
            order = np.arange(1, len(values) + 1)
            axis.plot(order, values, part_line(part), color=colour, label=part)
            level = arrays[f"{pair}/canonical-chance/{part}"].max()
            axis.axhline(level, color=colour, linestyle=":", linewidth=1, label=f"{part}, chance")
        axis.set_title(plain(pair), fontsize=9)
        axis.set_ylim(top=1)
        axis.set_xlabel("component", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[:, 0]:
        axis.set_ylabel("correlation, held out", fontsize=9)
    return figure


def _bars(axis: Any, arrays: Arrays, pair: str, bars: dict[str, Any], chance: Any) -> None:
    from decur.plotting import plain

    a, b = map(plain, arrays[f"{pair}/sensors"].tolist())
    width = 0.8 / len(bars)
    for place, (name, values) in enumerate(bars.items()):
        x = np.arange(2) + (place - (len(bars) - 1) / 2) * width
        axis.bar(
            x,
            values,
            0.9 * width,
            color=part_colour(name),
            hatch=_HATCH.get(name),
            edgecolor="white",
            linewidth=0,
            label=name,
        )
        axis.hlines(chance[name], x - 0.45 * width, x + 0.45 * width, color="black", linewidth=1.5)
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set_xticks([0, 1], [f"{a}\nto {b}", f"{b}\nto {a}"], fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
