"""Charts as the dictionaries that plotly draws: what matplotlib has drawn, and maps of points.

Neither library is needed to write or read one: a report embeds a chart as JSON beside its picture,
and a script of the page draws it (`decur.report.scripts`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# "data" and "layout" as plotly takes them, "width" in pixels at most; of a map also "looks" and
# "points", which the script of the page reads: see `map_of`.
Chart = dict[str, Any]

MOST = 6000  # points that a browser draws at once without delay
_MARKED = 200  # points of a line, above which it has no markers
_INCH, _LEGEND, _DPI = 96, 40, 110  # pixels: of height, for names, of the width of a picture
_DASHES = {"--": "dash", ":": "dot", "-.": "dashdot"}
_SYMBOLS = {"^": "triangle-up", "s": "square", "D": "diamond", "x": "x", "|": "line-ns"}
_HEADING = {"showarrow": False, "yanchor": "bottom"}
_SCALES = {"linear", "log"}
_NOTHING = ("None", "none", " ", "", None)


def chart_of(figure: Figure) -> Chart | None:
    """Return the lines and bars of a figure of matplotlib.

    Returns:
        The chart, whose panels stand as in the figure; None where the figure has neither, has too
        many points, or shows anything else, too, such as pictures.
    """
    panels = [axis for axis in figure.axes if axis.has_data()]
    if not panels or any(_shows_more(panel) for panel in panels):
        return None
    named = any(panel.get_legend() for panel in panels) or bool(figure.legends)
    if (spec := panels[0].get_subplotspec()) is None:  # at a place of its own
        return None
    grid = spec.get_gridspec()
    rows = -(-len(panels) // grid.ncols)
    height = round(_INCH * figure.get_figheight() * rows / grid.nrows) + _LEGEND * named
    layout: dict[str, Any] = {"height": height, "barmode": "overlay", "annotations": []}
    layout["grid"] = {"rows": rows, "columns": grid.ncols, "pattern": "independent"}
    data: list[dict[str, Any]] = []
    told: set[str] = set()
    for number, panel in enumerate(panels, 1):
        place = "" if number == 1 else str(number)
        axes = {"xaxis": f"x{place}", "yaxis": f"y{place}"}
        ticks = {}
        for which in "xy":
            layout[f"{which}axis{place}"], ticks[which] = _axis(panel, which)
        if title := _words(panel.get_title()):
            at = {"xref": f"x{place} domain", "yref": f"y{place} domain", "x": 0.5, "y": 1}
            layout["annotations"].append({"text": title, **at} | _HEADING)
        for trace in (*_bars(panel, ticks), *_lines(panel, ticks)):
            shown = named and bool(trace["name"]) and trace["name"] not in told
            data.append({**trace, **axes, "legendgroup": trace["name"], "showlegend": shown})
            told |= {trace["name"]}
    over_epochs = all(panel.get_xlabel() == "epoch" for panel in panels)
    layout["hovermode"] = "x unified" if over_epochs else "closest"
    # How near the pointer must be to a point: anywhere over epochs, else within 20 pixels.
    layout["hoverdistance"] = -1 if over_epochs else 20
    few = sum(len(trace["x"]) for trace in data) <= MOST
    width = round(_DPI * figure.get_figwidth())
    return {"data": data, "layout": layout, "width": width} if data and few else None


def _shows_more(panel: Any) -> bool:
    """Return whether a panel of matplotlib shows anything but lines and bars on plain axes."""
    from matplotlib.container import BarContainer

    groups = [group for group in panel.containers if isinstance(group, BarContainer)]
    bars = [bar for group in groups for bar in group.patches]
    ours = {id(artist) for artist in (*bars, *_errors(panel), *_levels(panel))}
    others = [*panel.images, *panel.texts, *panel.tables, *panel.patches, *panel.collections]
    plain = panel.name == "rectilinear" and {panel.get_xscale(), panel.get_yscale()} <= _SCALES
    return not plain or any(id(artist) not in ours for artist in others)


def _errors(panel: Any) -> list[Any]:
    """Return the bars of errors of a panel."""
    from matplotlib.container import ErrorbarContainer

    groups = [group for group in panel.containers if isinstance(group, ErrorbarContainer)]
    return [lines for group in groups for lines in group.lines[2]]


def _levels(panel: Any) -> list[Any]:
    """Return the levels that a panel of bars marks, as `hlines` draws them."""
    from matplotlib.collections import LineCollection

    errors = set(map(id, _errors(panel)))
    found = [c for c in panel.collections if isinstance(c, LineCollection) and id(c) not in errors]
    return [lines for lines in found if all(np.ptp(s[:, 1]) == 0 for s in lines.get_segments())]


def _axis(panel: Any, which: str) -> tuple[dict[str, Any], dict[float, str]]:
    """Return an axis of a panel, and the names of its places where these are fixed."""
    from matplotlib.category import StrCategoryLocator
    from matplotlib.ticker import FixedLocator

    axis = getattr(panel, f"{which}axis")
    kind, limits = axis.get_scale(), getattr(panel, f"get_{which}lim")()
    made: dict[str, Any] = {"title": {"text": _words(axis.get_label_text())}, "type": kind}
    made["range"] = [math.log10(x) if kind == "log" else float(x) for x in limits]
    ticks: dict[float, str] = {}
    if isinstance(axis.get_major_locator(), FixedLocator | StrCategoryLocator):
        places = axis.get_majorticklocs()
        names = axis.get_major_formatter().format_ticks(places)
        ticks = {float(at): _words(name) for at, name in zip(places, names, strict=True)}
        made |= {"tickvals": list(ticks), "ticktext": list(ticks.values()), "zeroline": False}
    elif kind == "log":  # 0.1, 0.2, 0.5, 1; of several decades these alone
        low, high = min(made["range"]), max(made["range"])
        steps = (1, 2, 5) if high - low < 3 else (1,)
        decades = range(math.floor(low), math.ceil(high) + 1)
        marks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        made["tickvals"] = [mark for mark in marks if low <= math.log10(mark) <= high]
        made["ticktext"] = [f"{mark:g}" for mark in made["tickvals"]]
    elif axis.get_label_text() == "epoch" and abs(limits[1] - limits[0]) < 12:
        made["dtick"] = 1
    if which == "y" and not axis.get_tick_params().get("labelleft", True):
        made["showticklabels"] = False
    return made, ticks


def _lines(panel: Any, ticks: Mapping[str, Mapping[float, str]]) -> Iterator[dict[str, Any]]:
    """Yield a trace for each line of a panel, with its bars of errors where it has such."""
    from matplotlib.colors import to_hex
    from matplotlib.container import ErrorbarContainer

    errors = {}
    ends: set[int] = set()
    told = [f"%{{{which}:.4g}}" for which in "xy" if not ticks[which]]  # names stand on the axis
    template = ", ".join(told[panel.get_xlabel() == "epoch" :])
    for container in panel.containers:
        if isinstance(container, ErrorbarContainer) and container.lines[0] is not None:
            errors[id(container.lines[0])] = container
            ends |= {id(line) for line in container.lines[1]}
    for line in panel.lines:
        if id(line) in ends:
            continue
        x, y = (np.asarray(v, dtype=float) for v in line.get_data(orig=False))
        in_data = line.get_transform().contains_branch_seperately(panel.transData)
        # a line across the whole panel
        x = x if in_data[0] else np.asarray(panel.get_xlim())
        y = y if in_data[1] else np.asarray(panel.get_ylim())
        drawn = line.get_linestyle() not in _NOTHING and line.get_linewidth() > 0
        marked = line.get_marker() not in _NOTHING and (len(x) <= _MARKED or not drawn)
        colour, symbol = to_hex(line.get_color()), _SYMBOLS.get(line.get_marker(), "circle")
        size = {".": 5, "|": 14}.get(line.get_marker(), 7)
        about = errors.get(id(line), line)
        trace: dict[str, Any] = {
            "type": "scatter",
            "x": _numbers(x),
            "y": _numbers(y),
            "name": _name(about),
            "mode": "+".join(["lines"] * drawn + ["markers"] * marked) or "none",
            "line": {"color": colour, "dash": _DASHES.get(line.get_linestyle(), "solid")},
            "marker": {"color": colour, "symbol": symbol, "size": size, "line": {"width": 0}},
            "opacity": line.get_alpha() or 1,
            "hovertemplate": template or "%{y:.4g}",
        }
        if symbol == "line-ns":
            trace["marker"]["line"] = {"width": 2, "color": colour}
        if not trace["name"] and not marked:
            trace["hoverinfo"], trace["hovertemplate"] = "skip", ""
        if id(line) in errors and about.has_yerr:
            spans = [segment[:, 1] for segment in about.lines[2][0].get_segments()]
            if len(spans) == len(x):
                half = [(span[-1] - span[0]) / 2 if len(span) else 0.0 for span in spans]
                trace["error_y"] = {"array": _numbers(half), "thickness": 1, "width": 2}
        yield trace
    for levels in _levels(panel):
        gap = [[math.nan, math.nan]]  # after each level
        places = np.concatenate([part for s in levels.get_segments() for part in (s, gap)])
        yield {
            "type": "scatter",
            "mode": "lines",
            "x": _numbers(places[:, 0]),
            "y": _numbers(places[:, 1]),
            "name": _name(levels),
            "line": {"color": to_hex(levels.get_color()[0]), "width": 2},
            "hovertemplate": "%{y:.4g}",
        }


def _bars(panel: Any, ticks: Mapping[str, Mapping[float, str]]) -> Iterator[dict[str, Any]]:
    """Yield a trace for each group of bars of a panel."""
    from matplotlib.colors import to_hex
    from matplotlib.container import BarContainer

    for container in panel.containers:
        if not isinstance(container, BarContainer) or not container.patches:
            continue
        flat = container.orientation == "horizontal"
        along, value = ("y", "x") if flat else ("x", "y")
        boxes = [(b.get_x(), b.get_y(), b.get_width(), b.get_height()) for b in container.patches]
        x, y, width, height = (np.array(each, dtype=float) for each in zip(*boxes, strict=True))
        start, thick, base, long = (y, height, x, width) if flat else (x, width, y, height)
        middle = start + thick / 2
        names = ticks[along]
        nearest = [min(names, key=lambda at: abs(at - m), default=None) for m in middle]
        colours = [to_hex(bar.get_facecolor()) for bar in container.patches]
        hatch = (container.patches[0].get_hatch() or "")[:1]
        yield {
            "type": "bar",
            "orientation": "h" if flat else "v",
            along: _numbers(middle),
            value: _numbers(long),
            "base": _numbers(base),
            "width": _numbers(thick),
            "name": _name(container),
            "marker": {
                "color": colours if len(set(colours)) > 1 else colours[0],
                "pattern": {"shape": hatch, "fillmode": "overlay", "fgcolor": "#fff"},
            },
            "customdata": [
                f"{m:.4g}" if at is None else names[at].replace("\n", " ")
                for m, at in zip(middle, nearest, strict=True)
            ],
            "hovertemplate": f"%{{customdata}}: %{{{value}:.4g}}",
        }


# -- maps of points, which tell what each is ---------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Points of a map that have a look and a name in its legend.

    Args:
        name: in the legend.
        rows: (n,) which points.
        colour: as "#0072B2"; or (n,) numbers, which a scale of colours shows.
        marker: as matplotlib calls it: "o", "^", "s", "D" or "x".
    """

    name: str
    rows: NDArray[Any]
    colour: str | NDArray[Any]
    marker: str = "o"


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures of some points of a map.

    Args:
        sheets: `{sensor: sheet}`, as `report.sheet` makes them, all in one order.
        columns: pictures in a row of a sheet.
        count: pictures of a sheet.
        places: of each point of the map that in the sheets, -1 for none.
        absent: `{sensor: places}` of the pictures that there are not.
    """

    sheets: Mapping[str, str]
    columns: int
    count: int
    places: Sequence[int]
    absent: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Points:
    """What the points of a map are.

    Args:
        names: of each point, as a selection lists it.
        about: of each point, what is told under the pointer, perhaps in several lines.
        what: what a name names, in the plural, as "dimensions".
        thumbnails: what is shown under the pointer.
    """

    names: Sequence[str]
    about: Sequence[str]
    what: str
    thumbnails: Thumbnails | None = None


def map_of(xy: NDArray[Any], looks: Sequence[tuple[str, Sequence[Group]]], points: Points) -> Chart:
    """Return a map that may be coloured in several ways, one at a time.

    Of more than 6,000 points every n-th is on it.

    Args:
        xy: (P, 2) places.
        looks: what points are coloured by, and their groups; the first is shown.
        points: what they are.
    """
    step = -(-len(xy) // MOST)
    data: list[dict[str, Any]] = []
    traces: list[tuple[str, list[int]]] = []
    size = float(np.clip(150 / max(len(xy), 1) ** 0.5, 3.5, 9))
    for look, groups in looks:
        traces.append((look, list(range(len(data), len(data) + len(groups)))))
        for group in groups:
            kept = group.rows % step == 0
            rows = group.rows[kept]
            symbol = _SYMBOLS.get(group.marker, "circle")
            marker: dict[str, Any] = {"size": size, "symbol": symbol, "opacity": 0.75}
            if isinstance(group.colour, str):
                marker["color"] = group.colour
            else:
                marker |= {"color": _numbers(group.colour[kept]), "colorscale": "Viridis"}
                marker |= {"showscale": True, "colorbar": {"thickness": 12}}
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": _numbers(xy[rows, 0]),
                    "y": _numbers(xy[rows, 1]),
                    "customdata": (rows // step).tolist(),
                    "name": group.name,
                    "marker": marker,
                    "hoverinfo": "none",  # the script of the page tells
                    "visible": len(traces) == 1,
                    "showlegend": isinstance(group.colour, str),
                }
            )
    told: dict[str, Any] = {
        "names": list(points.names[::step]),
        "about": list(points.about[::step]),
    }
    told |= {"what": points.what, "left_out": ""}
    if step > 1:
        told["left_out"] = f"1 in {step} of the {len(xy):,} points is here"
    if pictures := points.thumbnails:
        told["thumbnails"] = {**vars(pictures), "places": list(pictures.places[::step])}
    layout = {"xaxis": {"visible": False}, "yaxis": {"visible": False, "scaleanchor": "x"}}
    return {"data": data, "layout": layout | {"height": 560}, "looks": traces, "points": told}


def _name(artist: Any) -> str:
    """Return the name of what a figure shows; "" where matplotlib has made one up."""
    label = _words(str(artist.get_label()))
    return "" if label.rstrip("0123456789") in ("_child", "_container", "_nolegend_") else label


def _words(text: str) -> str:
    """Return a text of matplotlib as it is read: `plotting.plain` has marked each $."""
    return text.replace(r"\$", "$")


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Return numbers with six digits, and None for those that are not finite: JSON has none."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in map(float, values)]
