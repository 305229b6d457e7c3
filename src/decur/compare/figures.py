"""The figures of a comparison. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from decur.compare.settings import MethodAxis
from decur.compare.table_text import header
from decur.compare.tables import Column, Line, Scores, Table
from decur.plotting import legend, plain, subplots

if TYPE_CHECKING:
    from decur.plotting import Figure

# An axis is logarithmic where its largest number is at least this many times its smallest.
WIDE = 8


def draw_table(table: Table, axis: MethodAxis | None = None) -> Figure:
    """Draw a table.

    Args:
        table: of scores.
        axis: scores are drawn along it where several methods stand on it; else over the shares of
            the labels where there are several; else as dots.
    """
    if axis is not None and sum(line.method in axis.at for line in table.lines) > 1:
        return along(table, axis)
    fractions = {column.label_fraction for column in table.columns}
    tasks = {column.task for column in table.columns}
    return over_fractions(table) if len(fractions) > 1 and len(tasks) == 1 else dots(table)


def along(table: Table, axis: MethodAxis) -> Figure:
    """Draw scores along a number in which methods differ: a line a backbone, a panel a column.

    Methods without the number are drawn as horizontal lines across the panel.
    """
    _, names = header(table)
    there = sorted(
        (line for line in table.lines if line.method in axis.at), key=lambda x: axis.at[x.method]
    )
    places = list(dict.fromkeys(axis.at[line.method] for line in there))
    backbones = dict.fromkeys(line.backbone for line in table.lines)
    levels = [line for line in table.lines if line.method not in axis.at]
    figure, panels = _panels(len(table.columns), 2.8, 2.6)
    shown = {}  # of all panels: a method may take part in some of them only
    for panel, column, name in zip(panels, table.columns, names, strict=True):
        measured = [line for line in there if _measured(table, line, column)]
        for number, backbone in enumerate(backbones):
            if lines := [line for line in measured if line.backbone == backbone]:
                shown[backbone] = _line(
                    panel,
                    [axis.at[line.method] for line in lines],
                    [table.cells[line, column] for line in lines],
                    label=backbone,
                    color=f"C{number % 10}",
                )
        for number, line in enumerate(levels, len(backbones)):
            if _measured(table, line, column):
                shown[_name(table, line)] = panel.axhline(
                    table.cells[line, column].mean,
                    label=_name(table, line),
                    color=f"C{number % 10}",
                    linestyle="--",
                )
        if places[0] > 0 and places[-1] >= WIDE * places[0]:
            panel.set_xscale("log")
        panel.set_xticks(places, [f"{place:g}" for place in places], rotation=45)
        panel.minorticks_off()
        panel.tick_params(labelsize=8)
        panel.set_title(plain(name), fontsize=9)
        panel.set_xlabel(plain(axis.name), fontsize=9)
        panel.set_ylabel(table.metrics.get(column, "score"), fontsize=9)
        panel.grid(alpha=0.3)
    if len(shown) > 1:
        legend(figure, shown.values(), shown, fontsize=8, loc="outside right center")
    return figure


def over_fractions(table: Table) -> Figure:
    """Draw scores over the share of the labels, with bars of one standard deviation.

    Each method is a line, each set of sensors a panel, each metric a row of panels.
    """
    subsets = list(dict.fromkeys(column.modalities for column in table.columns))
    metrics = list(dict.fromkeys(column.metric for column in table.columns))
    figure: Figure
    figure, axes = subplots(len(metrics), len(subsets), width=3.4, height=3.2)
    shown = {}
    for axis, (metric, subset) in zip(axes.flat, product(metrics, subsets), strict=True):
        columns = sorted(
            (c for c in table.columns if (c.metric, c.modalities) == (metric, subset)),
            key=lambda column: column.label_fraction,
        )
        for number, line in enumerate(table.lines):
            aside = 1.02 ** (number - (len(table.lines) - 1) / 2)  # so that no bar hides another
            there = [(c, table.cells[line, c]) for c in columns if _measured(table, line, c)]
            if there:
                shown[_name(table, line)] = _line(
                    axis,
                    [100 * column.label_fraction * aside for column, _ in there],
                    [scores for _, scores in there],
                    label=_name(table, line),
                    **_style(table, line),
                )
        shares = sorted({100 * column.label_fraction for column in columns})
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:g}" for share in shares])
        axis.minorticks_off()
        axis.set(title=plain("+".join(subset)) or "all sensors", xlabel="labels (%)")
        axis.grid(alpha=0.3)
    for row, metric in zip(axes, metrics, strict=True):
        low, high = (pick(axis.get_ylim()[i] for axis in row) for i, pick in enumerate((min, max)))
        for axis in row:
            axis.set_ylim(low, high)
        first = next(column for column in table.columns if column.metric == metric)
        row[0].set_ylabel(table.metrics.get(first, "score"))
    where = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    legend(axes[0, -1], shown.values(), shown, fontsize=8, **where)
    return figure


def dots(table: Table) -> Figure:
    """Draw each seed as a dot and each mean as a bar: a panel a column, a row a method."""
    _, names = header(table)
    height = 0.9 + 0.28 * len(table.lines)
    figure, panels = _panels(len(table.columns), 2.6, height)
    if len(set(table.metrics.values())) == 1:  # then the panels can be compared with each other
        for axis in panels[1:]:
            axis.sharex(panels[0])
    places = np.arange(len(table.lines))[::-1]  # the first line on top
    for number, (axis, column) in enumerate(zip(panels, table.columns, strict=True)):
        for place, line in zip(places, table.lines, strict=True):
            if not _measured(table, line, column):
                axis.text(0.5, place, "–", transform=axis.get_yaxis_transform(), va="center")
                continue
            scores = table.cells[line, column]
            style = _style(table, line)
            values = list(scores.by_seed.values())
            axis.plot(values, [place] * len(values), "o", markersize=4, alpha=0.6, **style)
            axis.plot([scores.mean], [place], "|", markersize=14, markeredgewidth=2, **style)
        axis.set_yticks(places, [plain(_name(table, line)) for line in table.lines])
        axis.set_ylim(-0.6, len(table.lines) - 0.4)
        if not axis.get_subplotspec().is_first_col():
            axis.tick_params(labelleft=False)
        axis.set_title(plain(names[number]), fontsize=9)
        axis.grid(alpha=0.3)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure with `count` panels in rows of 3 or 4, each of a size in inches."""
    columns = count if count <= 4 else 3 if count % 3 == 0 else 4
    figure: Figure
    figure, axes = subplots(-(-count // columns), columns, width=width, height=height)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def _line(axis: Any, places: Sequence[float], scores: Sequence[Scores], **style: Any) -> Any:
    """Draw means as a line, with bars of one standard deviation."""
    return axis.errorbar(
        places,
        [score.mean for score in scores],
        [np.nan_to_num(score.spread) for score in scores],
        marker="o",
        markersize=4,
        capsize=2,
        **style,
    )


def _measured(table: Table, line: Line, column: Column) -> bool:
    return bool(table.cells.get((line, column), Scores()).by_seed)


def _name(table: Table, line: Line) -> str:
    several = len({other.backbone for other in table.lines}) > 1
    return f"{line.method}, {line.backbone}" if several else line.method


def _style(table: Table, line: Line) -> dict[str, Any]:
    """Return a colour for the method and a kind of line for the backbone."""
    methods = list(dict.fromkeys(other.method for other in table.lines))
    backbones = list(dict.fromkeys(other.backbone for other in table.lines))
    return {
        "color": f"C{methods.index(line.method) % 10}",
        "linestyle": ("-", "--", ":", "-.")[backbones.index(line.backbone) % 4],
    }
