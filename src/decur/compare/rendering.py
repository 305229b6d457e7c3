"""Tables as people see them: Markdown, LaTeX and CSV, and figures, which need matplotlib."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from decur.compare.cells import (
    Cell,
    is_done,
    read_floors,
    read_scores,
    read_warnings,
    seconds,
)
from decur.compare.settings import MethodAxis
from decur.compare.tables import FEWEST_SEEDS, IN_UNITS, Column, Line, Scores, Table
from decur.plotting import legend, plain, subplots
from decur.verdicts import LEVEL

if TYPE_CHECKING:
    from decur.plotting import Figure

FLOOR = "constant guess"  # the last row of a table's own: the floor of its scores
TRANSDUCTIVE = (
    "Pretraining has seen the pictures that test, though not their labels; on places that it has "
    "not seen, scores may be lower (unseen_test: true leaves out a fold, and pretrain.data.split "
    "takes one split alone)."
)


def header(table: Table) -> tuple[list[str], list[str]]:
    """Return the heads of a table, without what is the same in all its columns or lines.

    Returns:
        Of `["method", "backbone"]` those that vary, and one name a column.
    """
    varies = {
        "task": len({column.task for column in table.columns}) > 1,
        "sensors": len({column.modalities for column in table.columns}) > 1,
        "labels": len({column.label_fraction for column in table.columns}) > 1,
        "metric": len(set(table.metrics.values())) > 1,
    }
    names = []
    for column in table.columns:
        metric = table.metrics.get(column)
        parts = [
            column.task if varies["task"] else "",
            "+".join(column.modalities) or "all" if varies["sensors"] else "",
            f"{100 * column.label_fraction:g} %" if varies["labels"] else "",
            f"({metric})" if varies["metric"] and metric else "",
        ]
        names.append(" ".join(filter(None, parts)) or metric or "score")
    backbones = len({line.backbone for line in table.lines}) > 1
    return (["method", "backbone"] if backbones else ["method"]), names


def caption(table: Table, seeds: int) -> str:
    """Return sentences: what the numbers are, what pretraining has seen, and what is doubtful."""
    parts = [_what_numbers_are(table, seeds)]
    if table.transductive:
        parts.append(TRANSDUCTIVE)
    if warned := len(table.warnings):
        cells = "A cell has warnings" if warned == 1 else f"{warned} cells have warnings"
        parts.append(f"{cells} (all are in cells.csv), such as {table.warnings[0]}.")
    return " ".join(parts)


def _what_numbers_are(table: Table, seeds: int) -> str:
    metrics = sorted(set(table.metrics.values())) or ["score"]
    shares = [name for name in metrics if name not in IN_UNITS]
    what = ", ".join(metrics)
    if shares:
        unit = "points" if table.against else "percent"
        what += f" in {unit}" if shares == metrics else f" ({', '.join(shares)} in {unit})"
    if table.against:
        what += f" above {table.against}"
    if seeds < 2:
        return f"{what}, of one seed, which says nothing of the spread."
    of = " of the differences" if table.against else ""
    what += f": mean ± standard deviation{of} over {seeds} seeds."
    if not table.tests:
        few = f" Nothing is marked: a test needs {FEWEST_SEEDS} seeds that all lines have."
        return what + (few if len(table.lines) > 1 or table.against else "")
    claim = "not chance" if table.against else "better than every other"
    tests = f"{table.tests} comparisons" if table.tests > 1 else "one comparison"
    return (
        f"{what} Bold: {claim}, at the {100 * LEVEL:g} % level (two-sided paired t-test over "
        f"seeds, corrected for {tests} by Holm's method)."
    )


def score_text(scores: Scores | None, metric: str, seeds: int, sign: Literal["", "+"] = "") -> str:
    """Return scores as text: "61.2 ± 0.8", with the number of seeds where some are missing.

    Without any score it is "failed", "…" while there may still be one, or "–" where the line does
    not take part. With the sign "+", it is a difference: "+1.2 ± 0.3".
    """
    if scores is None:
        return "–"
    if not scores.by_seed:
        return "failed" if scores.failed else "…"
    scale, digits = (1, 3) if metric in IN_UNITS else (100, 1)
    text = f"{scale * scores.mean:{sign}z.{digits}f}"
    if len(scores.by_seed) > 1:
        text += f" ± {scale * scores.spread:.{digits}f}"
    return text + (f" ({len(scores.by_seed)} of {seeds})" if len(scores.by_seed) < seeds else "")


def as_text(
    table: Table, seeds: int, bold: Callable[[str], str] = lambda text: text
) -> pd.DataFrame:
    """Return the table as text: label columns and score columns, published rows at the end.

    Args:
        table: of scores or differences.
        seeds: how many there are to be.
        bold: what becomes of the text of a score that is surely the best.
    """
    labels, names = header(table)
    rows = []
    for line in table.lines:
        row = [line.method, line.backbone][: len(labels)]
        for column in table.columns:
            scores = table.cells.get((line, column))
            text = score_text(
                scores, table.metrics.get(column, ""), seeds, "+" if table.against else ""
            )
            row.append(bold(text) if scores is not None and scores.sure else text)
        rows.append(row)
    if table.floors:
        rows.append([FLOOR, *[""] * (len(labels) - 1), *_floors(table, table.columns)])
    for name, values in table.published:
        cells = ["–" if value is None else f"{value:.1f}" for value in values]
        rows.append([name, *[""] * (len(labels) - 1), *cells])
    return pd.DataFrame(rows, columns=[*labels, *names], dtype=object)


def _floors(table: Table, columns: Iterable[Column]) -> list[str]:
    """Return what a constant guess gives in some columns, as text."""
    return [
        score_text(Scores({0: table.floors[column]}), table.metrics.get(column, ""), 1)
        if column in table.floors
        else "–"
        for column in columns
    ]


def best_scores(tables: Iterable[Table], seeds: int) -> list[tuple[str, str, str]]:
    """Return of each column whose mean is the best: what it is, the score, and its floor.

    Args:
        tables: of scores; those of differences are left out.
        seeds: how many there are to be.
    """
    found = []
    for table in tables:
        for column, name in zip(table.columns, header(table)[1], strict=True):
            scores = {line: table.cells.get((line, column)) for line in table.lines}
            there = {line: each for line, each in scores.items() if each and each.by_seed}
            if table.against or not there:
                continue
            metric, (floor,) = table.metrics[column], _floors(table, [column])
            sign = -1 if metric in IN_UNITS else 1
            line, best = max(there.items(), key=lambda item: sign * item[1].mean)
            unit = "" if metric in IN_UNITS else " in percent"
            of = name if column.task in name else f"{column.task}, {name}"
            who = [line.method, line.backbone][: len(header(table)[0])]
            told = f"{', '.join(who)}, the best mean of {len(there)}"
            text = f"{told}; {floor} by a constant guess" if column in table.floors else told
            found.append((f"{of}{unit}", score_text(best, metric, seeds), text))
    return found


def failures(table: Table) -> list[str]:
    """Return one sentence for each method and reason of failing."""
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for (line, column), scores in table.cells.items():
        for seed, reason in scores.failed.items():
            reasons.setdefault((line.method, column.task, reason), []).append(seed)
    return [
        f"{method}, {task}, seed {', '.join(map(str, sorted(set(seeds))))}: {reason}"
        for (method, task, reason), seeds in reasons.items()
    ]


def markdown(tables: Sequence[Table], seeds: int) -> str:
    """Return all tables as GitHub Markdown."""
    parts = []
    for table in tables:
        labels, names = header(table)
        shown = as_text(table, seeds, bold=lambda text: f"**{text}**")
        ruler = ["---"] * len(labels) + ["--:"] * len(names)
        body = [list(shown.columns), ruler, *shown.to_numpy().tolist()]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
        notes = [f"- failed: {reason}" for reason in failures(table)]
        parts.append("\n".join([f"### {table.title}\n", *lines, "", caption(table, seeds), *notes]))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table], seeds: int) -> str:
    """Return all tables for LaTeX with the package booktabs."""
    return "\n\n".join(_latex_table(table, seeds) for table in tables) + "\n"


def _latex_table(table: Table, seeds: int) -> str:
    labels, names = header(table)
    shown = as_text(table, seeds, bold=lambda text: f"\\textbf{{{text}}}")
    rows = [[_guard(first), *map(_escape, rest)] for first, *rest in shown.to_numpy().tolist()]
    if table.published and table.lines:
        first_published = rows[len(table.lines) + bool(table.floors)]
        first_published[0] = f"\\midrule\n{first_published[0]}"
    heads = [_escape(name) for name in shown.columns]
    styler = pd.DataFrame(rows).style.hide(axis="index")  # columns by number: names may be the same
    text: str = styler.format_index(
        lambda number: heads[int(str(number))], axis="columns"
    ).to_latex(
        column_format="l" * len(labels) + "r" * len(names),
        position_float="centering",
        hrules=True,
        caption=_escape(f"{table.title}. {caption(table, seeds)}"),
    )
    return text.strip()


def _guard(text: str) -> str:
    """Escape a name so that LaTeX does not read it as an option of the line break before."""
    return f"{{}}{_escape(text)}" if text.startswith(("[", "*")) else _escape(text)


def _escape(text: str) -> str:
    """Escape what LaTeX would read as a command; our own bold stays."""
    inner = re.fullmatch(r"\\textbf\{(.*)\}", text)
    if inner:
        return rf"\textbf{{{_escape(inner[1])}}}"
    return text.translate(_TEX)


_TEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "…": r"\dots{}",
    }
)


def cells_csv(cells: Iterable[Cell]) -> str:
    """Return a CSV with a row for each finished transfer: all its metrics, their floors, warnings.

    The floor of `mIoU`, what a constant guess gives on the same test part, is `floor_mIoU`.
    """
    done = [cell for cell in cells if cell.command == "transfer" and is_done(cell)]
    if not done:
        return ""
    found = [
        {
            **_place(cell, cell),
            "seed": cell.seed,
            **_rounded(read_scores(cell)),
            "seconds": round(seconds(cell) or 0, 1),
            "folder": cell.folder.name,
        }
        for cell in done
    ]
    floors = pd.DataFrame([_rounded(read_floors(cell)) for cell in done]).dropna(axis=1, how="all")
    both = pd.concat([pd.DataFrame(found), floors.add_prefix("floor_")], axis=1)
    both["warnings"] = ["; ".join(read_warnings(cell)) for cell in done]
    return both.to_csv(index=False, lineterminator="\n")


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in values.items()}


def _place(line: Line | Cell, column: Column | Cell) -> dict[str, Any]:
    """Return the first columns of a CSV: whose score stands there, and on what."""
    return {
        "task": column.task,
        "method": line.method,
        "backbone": line.backbone,
        "modalities": "+".join(column.modalities) or "all",
        "label_fraction": column.label_fraction,
    }


def tables_csv(tables: Sequence[Table]) -> str:
    """Return all tables as one CSV: a row for each line in each column, with mean and spread.

    `floor` is what a constant guess gives there, the mean over seeds, empty where it is not known.
    Rows with a method in `against` are differences from it, "best" if they are surely not chance.
    """
    found = [
        {
            **_place(line, column),
            "metric": table.metrics.get(column, ""),
            "mean": f"{scores.mean:.6f}",
            "std": f"{scores.spread:.6f}",
            "seeds": len(scores.by_seed),
            "best": scores.sure,
            "failed": "; ".join(dict.fromkeys(scores.failed.values())),
            "against": table.against,
            "floor": f"{table.floors[column]:.6f}" if column in table.floors else "",
        }
        for table in tables
        for (line, column), scores in table.cells.items()
    ]
    columns = ["task", "method", "backbone", "modalities", "label_fraction", "metric"]
    columns += ["mean", "std", "seeds", "best", "failed", "against", "floor"]
    return pd.DataFrame(found, columns=columns).to_csv(index=False, lineterminator="\n")


# -- figures ---------------------------------------------------------------------------------------

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
