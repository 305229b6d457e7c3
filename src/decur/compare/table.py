"""Finished cells to tables: mean and spread over seeds, the best marked where it is sure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import ttest_1samp

from decur.compare.plan import Cell, TaskPlan
from decur.compare.workers import is_done

SURE = 0.05  # level of the test that marks the best
_RAW = ("MAE",)  # metrics in the label's units; all others are shares


@dataclass(frozen=True)
class Line:
    """What a row of a table is."""

    method: str
    backbone: str


@dataclass(frozen=True)
class Column:
    """What a column of a table is; its metric None: the first of its task."""

    task: str
    modalities: tuple[str, ...]
    label_fraction: float
    metric: str | None = None


@dataclass
class Scores:
    """A method's scores in one column.

    Args:
        by_seed: `{seed: score}` of the cells that have finished.
        failed: why others have not, by seed.
        sure: whether no other method comes near, seed for seed; of differences, whether they are
            surely not chance.
    """

    by_seed: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    sure: bool = False

    @property
    def mean(self) -> float:
        """Over seeds; NaN where there is none."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for fewer than two."""
        values = list(self.by_seed.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass
class Table:
    """Scores of lines in columns.

    Args:
        title: what it is of.
        metrics: what the scores of each column are.
        columns: in order.
        lines: in order.
        cells: scores; a line that does not take part in a column has none there.
        published: lines of published scores, printed below: name, then a value for each column.
        against: the method that these are the differences from; empty: scores themselves.
    """

    title: str
    metrics: dict[Column, str]
    columns: list[Column]
    lines: list[Line]
    cells: dict[tuple[Line, Column], Scores]
    published: list[tuple[str, list[float | None]]] = field(default_factory=list)
    against: str = ""


def read_scores(folder: Path) -> dict[str, float | None]:
    """All metrics of a finished transfer; None for one that its test part does not define."""
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    return {name: found["value"] for name, found in metrics.items()}


def tabulate(
    cells: Sequence[Cell], failed: Mapping[Path, str], tasks: Mapping[str, TaskPlan]
) -> list[Table]:
    """Tables of all transfers that have finished or failed.

    Args:
        cells: of a comparison.
        failed: why cells failed.
        tasks: of the comparison.

    Returns:
        One table a task; tasks of one `table`, and those of a single column, stand side by side.
    """
    found: dict[str, Table] = {}
    for cell in cells:
        if cell.command != "transfer":
            continue
        line = Line(cell.method, cell.backbone)
        table = found.setdefault(cell.task, Table(cell.task, {}, [], [], {}))
        if line not in table.lines:
            table.lines.append(line)
        there = read_scores(cell.folder) if is_done(cell) else {}
        for wanted in tasks[cell.task].metrics:
            column = Column(cell.task, cell.modalities, cell.label_fraction, wanted)
            if column not in table.columns:
                table.columns.append(column)
            if wanted:  # known before anything has finished
                table.metrics[column] = wanted
            scores = table.cells.setdefault((line, column), Scores())
            if there:
                metric = wanted or next(iter(there))
                value = there.get(metric)
                if value is not None:
                    scores.by_seed[cell.seed] = value
                    table.metrics[column] = metric
                elif metric in there:
                    scores.failed[cell.seed] = f"{metric} is undefined on its test part"
                else:
                    known = ", ".join(there)
                    scores.failed[cell.seed] = f"no metric {metric!r}; there are {known}"
            elif cell.folder in failed:
                scores.failed[cell.seed] = failed[cell.folder]
    tables = _side_by_side(found, tasks)
    order = list(dict.fromkeys(Line(cell.method, cell.backbone) for cell in cells))
    for table in tables:
        table.lines.sort(key=order.index)
        for column in table.columns:
            _mark_best(
                [table.cells[key] for key in table.cells if key[1] == column],
                lower=table.metrics.get(column) in _RAW,
            )
    return tables


def _side_by_side(found: Mapping[str, Table], tasks: Mapping[str, TaskPlan]) -> list[Table]:
    groups: dict[str, list[Table]] = {}
    for task, plan in tasks.items():  # in this order, whichever was run first
        if table := found.get(task):
            single = len({(c.modalities, c.label_fraction) for c in table.columns}) == 1
            alone = "" if single else task  # "": all that have a single column
            groups.setdefault(plan.table or alone, []).append(table)
    return [
        Table(
            name if len(group) > 1 and name else ", ".join(table.title for table in group),
            {column: metric for table in group for column, metric in table.metrics.items()},
            [column for table in group for column in table.columns],
            list(dict.fromkeys(line for table in group for line in table.lines)),
            {key: scores for table in group for key, scores in table.cells.items()},
        )
        for name, group in groups.items()
    ]


def _mark_best(column: Sequence[Scores], lower: bool) -> None:
    """Mark the best mean if a paired t-test over seeds tells it from each other (one-sided, 5 %).

    Seeds pair the methods: they share the fold, the labels drawn and the order of both.
    """
    if len(column) < 2 or not all(scores.by_seed for scores in column):
        return  # nothing to be better than, or something of which nothing is known
    sign = -1 if lower else 1
    best = max(column, key=lambda scores: sign * scores.mean)
    best.sure = all(_surely_above(best, other, sign) for other in column if other is not best)


def _surely_above(one: Scores, other: Scores, sign: int) -> bool:
    gains = [sign * gain for gain in paired(one, other).values()]
    return is_sure(gains, "greater")


def paired(one: Scores, other: Scores) -> dict[int, float]:
    """How far one is above another, for each seed that both have."""
    seeds = sorted(set(one.by_seed) & set(other.by_seed))
    return {seed: one.by_seed[seed] - other.by_seed[seed] for seed in seeds}


def is_sure(gains: Sequence[float], alternative: Literal["greater", "two-sided"]) -> bool:
    """Whether a t-test tells differences from chance."""
    if len(gains) < 2:
        return False
    if np.ptp(gains) < 1e-12:  # the same each time: the test would divide by zero
        return (gains[0] if alternative == "greater" else abs(gains[0])) > 1e-12
    return bool(ttest_1samp(gains, 0, alternative=alternative).pvalue < SURE)


# -- for people ------------------------------------------------------------------------------------


def header(table: Table) -> tuple[list[str], list[str]]:
    """Names of the label columns and of the score columns; what is the same throughout is left out.

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
    """What the numbers are, in a sentence."""
    metrics = sorted(set(table.metrics.values())) or ["score"]
    shares = [name for name in metrics if name not in _RAW]
    what = ", ".join(metrics)
    if shares:
        unit = "points" if table.against else "percent"
        what += f" in {unit}" if shares == metrics else f" ({', '.join(shares)} in {unit})"
    if table.against:
        what += f" above {table.against}"
    if seeds < 2:
        return f"{what}, of one seed, which says nothing of the spread."
    if table.against:
        return (
            f"{what}: mean ± standard deviation of the differences over {seeds} seeds. Bold: not "
            f"chance, at the {100 * SURE:g} % level (paired t-test over seeds)."
        )
    return (
        f"{what}: mean ± standard deviation over {seeds} seeds. Bold: better than every other at "
        f"the {100 * SURE:g} % level (paired t-test over seeds)."
    )


def show(scores: Scores | None, metric: str, seeds: int, sign: Literal["", "+"] = "") -> str:
    """A score for people: "61.2 ± 0.8", the seeds where some are missing, or "failed".

    With the sign "+", a difference: "+1.2 ± 0.3".
    """
    if scores is None:
        return "–"
    if not scores.by_seed:
        return "failed" if scores.failed else "…"
    scale, digits = (1, 3) if metric in _RAW else (100, 1)
    text = f"{scale * scores.mean:{sign}z.{digits}f}"
    if len(scores.by_seed) > 1:
        text += f" ± {scale * scores.spread:.{digits}f}"
    return text + (f" ({len(scores.by_seed)} of {seeds})" if len(scores.by_seed) < seeds else "")


def rows(
    table: Table, seeds: int, bold: Callable[[str], str] = lambda text: text
) -> list[list[str]]:
    """The table as text: lines of label cells and score cells."""
    labels, _ = header(table)
    made = []
    for line in table.lines:
        row = [line.method, line.backbone][: len(labels)]
        for column in table.columns:
            scores = table.cells.get((line, column))
            text = show(scores, table.metrics.get(column, ""), seeds, "+" if table.against else "")
            row.append(bold(text) if scores is not None and scores.sure else text)
        made.append(row)
    for name, values in table.published:
        cells = ["–" if value is None else f"{value:.1f}" for value in values]
        made.append([name, *[""] * (len(labels) - 1), *cells])
    return made


def failures(table: Table) -> list[str]:
    """One sentence for each method and reason of failing."""
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for (line, column), scores in table.cells.items():
        for seed, reason in scores.failed.items():
            reasons.setdefault((line.method, column.task, reason), []).append(seed)
    return [
        f"{method}, {task}, seed {', '.join(map(str, sorted(set(seeds))))}: {reason}"
        for (method, task, reason), seeds in reasons.items()
    ]
