"""From finished cells to tables: mean and spread over seeds, the best marked where it is sure.

Scores that the DeCUR paper prints stand beside measured ones; they are in `published.csv`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pandas as pd
import yaml

from decur.bounded_yaml import LOADER
from decur.compare.cells import Cell, is_done, read_floors, read_scores, read_warnings
from decur.compare.settings import TaskSettings
from decur.errors import ConfigError
from decur.verdicts import holm, paired_p

Training = Literal["frozen", "fine-tuned", "supervised"]

FEWEST_SEEDS = 3  # fewest seeds for a test that marks scores: two do not tell a spread
IN_UNITS = ("MAE",)  # metrics in the label's units; all others are shares
# What the paper calls a transfer, by whether its encoders are frozen.
_TRAININGS: dict[bool, tuple[Training, ...]] = {
    True: ("frozen",),
    False: ("fine-tuned", "supervised"),
}
# The paper's names of metrics; its mAP averages over all decisions (section 5.1).
_PRINTED = {"mAP_micro": "mAP", "mIoU": "mIoU", "overall_accuracy": "OA"}


@dataclass(frozen=True)
class Line:
    """A row of a table: a method with a backbone."""

    method: str
    backbone: str


@dataclass(frozen=True)
class Column:
    """A column of a table: how its scores were measured; metric None: the first of its task."""

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
        """Return the mean over seeds; NaN where there is none."""
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else float("nan")

    @property
    def spread(self) -> float:
        """Return the standard deviation over seeds (n - 1); NaN for fewer than two."""
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
        tests: how many comparisons the marks are corrected for; 0 where seeds are too few to mark.
        floors: what a constant guess gives in each column, the mean over seeds.
        transductive: whether some pretraining has seen the pictures that test.
        warnings: of single cells, each with the method, the labels and sensors, and the seed.
    """

    title: str
    metrics: dict[Column, str]
    columns: list[Column]
    lines: list[Line]
    cells: dict[tuple[Line, Column], Scores]
    published: list[tuple[str, list[float | None]]] = field(default_factory=list)
    against: str = ""
    tests: int = 0
    floors: dict[Column, float] = field(default_factory=dict)
    transductive: bool = False
    warnings: list[str] = field(default_factory=list)


def make_tables(
    cells: Sequence[Cell],
    failed: Mapping[Path, str],
    tasks: Mapping[str, TaskSettings],
    against: str | None = None,
) -> list[Table]:
    """Return all tables of a comparison, with the published rows that its tasks ask for.

    Args:
        cells: of a comparison.
        failed: why cells failed, by folder.
        tasks: of the comparison.
        against: a method; each table is followed by the differences from it. None: by nothing.
    """
    published = {
        name: pd.concat(list(map(published_table, task.published)))
        for name, task in tasks.items()
        if task.published
    }
    made = []
    for table in tabulate(cells, failed, tasks):
        add_published(table, cells, published)
        made.append(table)
        if against is not None and (gains := differences(table, against)) is not None:
            made.append(gains)
    return made


def transfers(
    cells: Iterable[Cell], failed: Mapping[Path, str], tasks: Mapping[str, TaskSettings]
) -> pd.DataFrame:
    """Return a frame with a row for each transfer and metric that its task shows.

    Returns:
        The columns `task`; `line` and `column`, where the score stands in a table; `seed`;
        `metric`, None while it is not known; `score`, NaN where there is none; `floor`, what a
        constant guess gives on the same test part, or NaN; `failed`, the reason why there is no
        score, or empty; `transductive`, whether its pretraining has seen the pictures that test;
        `warnings`, what is doubtful of it, in words.
    """
    found: list[dict[str, object]] = []
    for cell in cells:
        if cell.command != "transfer":
            continue
        there, floors, warnings = {}, {}, ""
        if is_done(cell):
            there, floors = read_scores(cell), read_floors(cell)
            warnings = "; ".join(read_warnings(cell))
        for wanted in tasks[cell.task].metrics:
            metric = wanted or next(iter(there), None)
            score, reason = there.get(metric or ""), failed.get(cell.folder, "")
            floor = floors.get(metric or "")
            if there and metric not in there:
                metric, reason = wanted, f"no metric {metric!r}; there are {', '.join(there)}"
            elif there:
                reason = "" if score is not None else f"{metric} is undefined on its test part"
                metric = metric if score is not None else wanted
            found.append(
                {
                    "task": cell.task,
                    "line": Line(cell.method, cell.backbone),
                    "column": Column(cell.task, cell.modalities, cell.label_fraction, wanted),
                    "seed": cell.seed,
                    "metric": metric,
                    "score": float("nan") if score is None else score,
                    "floor": float("nan") if floor is None else floor,
                    "failed": reason,
                    "transductive": cell.transductive,
                    "warnings": warnings and f"{cell.label}: {warnings}",
                }
            )
    columns = ["task", "line", "column", "seed", "metric", "score", "floor", "failed"]
    return pd.DataFrame(found, columns=[*columns, "transductive", "warnings"])


def tabulate(
    cells: Sequence[Cell], failed: Mapping[Path, str], tasks: Mapping[str, TaskSettings]
) -> list[Table]:
    """Return tables of all transfers, whether they have finished, failed, or not begun.

    Args:
        cells: of a comparison.
        failed: why cells failed, by folder.
        tasks: of the comparison.

    Returns:
        One table a task; tasks of one `table`, and those of a single column, stand side by side.
    """
    frame = transfers(cells, failed, tasks)
    order = list(dict.fromkeys(Line(cell.method, cell.backbone) for cell in cells))
    tables = []
    for name, group in _side_by_side(frame, tasks).items():
        own = pd.concat([frame[frame["task"] == task] for task in group])
        lines = sorted(own["line"].unique(), key=order.index)
        named = own[own["metric"].notna()]
        table = Table(
            title=name if len(group) > 1 and name else ", ".join(group),
            metrics=dict(zip(named["column"], named["metric"], strict=True)),
            columns=list(own["column"].unique()),
            lines=lines,
            cells={
                (part["line"].iloc[0], part["column"].iloc[0]): _scores(part)
                for _, part in own.groupby(["line", "column"], sort=False)
            },
            floors=_floors(own),
            transductive=bool(own["transductive"].any()),
            warnings=[text for text in own["warnings"].unique() if text],
        )
        table.tests = mark_columns(
            [
                [scores for key, scores in table.cells.items() if key[1] == column]
                for column in table.columns
            ],
            lower=[table.metrics.get(column) in IN_UNITS for column in table.columns],
        )
        tables.append(table)
    return tables


def _floors(frame: pd.DataFrame) -> dict[Column, float]:
    """Return the mean floor of each column that has any."""
    known = frame[frame["floor"].notna()]
    return {
        column: float(known.loc[known["column"] == column, "floor"].mean())
        for column in known["column"].unique()
    }


def _scores(part: pd.DataFrame) -> Scores:
    """Return the scores of a method in one column, from their rows."""
    scored, failed = part[part["score"].notna()], part[part["failed"] != ""]
    return Scores(
        by_seed=dict(zip(scored["seed"].tolist(), scored["score"].tolist(), strict=True)),
        failed=dict(zip(failed["seed"].tolist(), failed["failed"].tolist(), strict=True)),
    )


def _side_by_side(frame: pd.DataFrame, tasks: Mapping[str, TaskSettings]) -> dict[str, list[str]]:
    """Return the tasks of each table by its name, which is "" for tasks of a single column."""
    groups: dict[str, list[str]] = {}
    for name, task in tasks.items():  # in this order, whichever was run first
        columns = frame.loc[frame["task"] == name, "column"]
        if len(columns):
            single = len({(column.modalities, column.label_fraction) for column in columns}) == 1
            groups.setdefault(task.table or ("" if single else name), []).append(name)
    return groups


def mark_best(column: Sequence[Scores], lower: bool) -> None:
    """Mark the best of a single column; see `mark_columns`.

    Args:
        column: the scores of each method.
        lower: whether lower scores are better.
    """
    mark_columns([column], [lower])


def mark_columns(columns: Sequence[Sequence[Scores]], lower: Sequence[bool]) -> int:
    """Mark the best mean of each column where paired t-tests tell it from every other method.

    Seeds pair the methods: they share the fold, the labels drawn and the order of both. Tests are
    two-sided, as the best is picked by the scores that test it, and corrected together for the
    number of rivals and of columns (Holm). Fewer than `FEWEST_SEEDS` paired seeds mark nothing.

    Args:
        columns: the scores of each method, column by column.
        lower: for each column, whether lower scores are better.

    Returns:
        How many comparisons were made.
    """
    bests: list[Scores] = []
    of: list[int] = []  # of each comparison, the place of its best among `bests`
    p_values: list[float] = []
    for column, falls in zip(columns, lower, strict=True):
        if len(column) < 2 or not all(scores.by_seed for scores in column):
            continue  # nothing to be better than, or something of which nothing is known
        sign = -1 if falls else 1
        best = max(column, key=lambda scores: sign * scores.mean)
        gains = [[*paired(best, other).values()] for other in column if other is not best]
        if min(map(len, gains)) < FEWEST_SEEDS:
            continue
        p_values += [paired_p(x) if sign * np.mean(x) > 0 else 1.0 for x in gains]
        of += [len(bests)] * len(gains)
        bests.append(best)
    passed = holm(p_values)
    for number, best in enumerate(bests):
        best.sure = bool(passed[np.array(of) == number].all())
    return len(p_values)


def paired(one: Scores, other: Scores) -> dict[int, float]:
    """Return how far one is above another, for each seed that both have."""
    seeds = sorted(set(one.by_seed) & set(other.by_seed))
    return {seed: one.by_seed[seed] - other.by_seed[seed] for seed in seeds}


def differences(table: Table, against: str) -> Table | None:
    """Return how far the lines of a table are above those of one method, seed by seed.

    What seeds share (the fold, the labels drawn) cancels out: a spread over folds of unlike
    difficulty hides differences that hold in each of them.

    Args:
        table: of scores.
        against: the method that all others are held against, backbone by backbone.

    Returns:
        A table of the same columns, but those in which the method has no score; marked is what
        paired t-tests over seeds (two-sided, 5 % for all of them together, Holm) tell from
        nothing. None if nothing is left.
    """
    cells = {}
    for (line, column), scores in table.cells.items():
        other = table.cells.get((Line(against, line.backbone), column))
        if line.method != against and other is not None and (gains := paired(scores, other)):
            cells[line, column] = Scores(gains)
    if not cells:
        return None
    tested = [scores for scores in cells.values() if len(scores.by_seed) >= FEWEST_SEEDS]
    passed = holm([paired_p([*scores.by_seed.values()]) for scores in tested])
    for scores, sure in zip(tested, passed.tolist(), strict=True):
        scores.sure = sure
    columns = [column for column in table.columns if any(key[1] == column for key in cells)]
    return Table(
        title=f"{table.title}, against {against}",
        metrics={column: table.metrics[column] for column in columns},
        columns=columns,
        lines=[line for line in table.lines if any(key[0] == line for key in cells)],
        cells=cells,
        against=against,
        tests=len(tested),
    )


def add_published(
    table: Table, cells: Iterable[Cell], published: Mapping[str, pd.DataFrame]
) -> None:
    """Add the published rows that were measured as the columns of a table are.

    Args:
        table: that they stand below, changed in place.
        cells: of the comparison, which know whether encoders were frozen.
        published: `{task: published scores}`.
    """
    frozen: dict[str, set[bool]] = {}  # both, where methods differ in it
    for cell in cells:
        if cell.command == "transfer" and cell.task in published:
            frozen.setdefault(cell.task, set()).add(yaml.load(cell.config, LOADER)["freeze"])
    rows: dict[str, list[float | None]] = {}
    for number, column in enumerate(table.columns):
        if column.task not in published:
            continue
        found = find(
            published[column.task],
            training=[name for freeze in frozen[column.task] for name in _TRAININGS[freeze]],
            label_fraction=column.label_fraction,
            modalities=column.modalities or None,
            metric=_PRINTED.get(table.metrics.get(column, ""), "?"),
        )
        for score in found.to_dict("records"):
            if not column.modalities and "+" not in score["modalities"]:
                continue  # all sensors are at least two
            training = score["training"] if len(frozen[column.task]) > 1 else ""
            parts = (score["method"], score["backbone"], training)
            name = f"{', '.join(filter(None, parts))}, published"
            rows.setdefault(name, [None] * len(table.columns))[number] = score["value"]
    table.published = list(rows.items())


# -- scores that the paper prints ------------------------------------------------------------------

# What tells one measurement from another; a table may print one in two columns.
_MEASUREMENT = ["table", "method", "backbone", "modalities", "training", "label_fraction", "metric"]


def read_published(file: IO[str]) -> pd.DataFrame:
    """Read published scores, one a row, from CSV with the columns of `published.csv`.

    Args:
        file: open for reading.

    Returns:
        Numbers in `value` and `label_fraction`, NaN where there is none; all else as text.
    """
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    for column in ("value", "label_fraction"):
        frame[column] = pd.to_numeric(frame[column])
    return frame


@cache
def published_scores() -> pd.DataFrame:
    """Return all scores that ship with the package; do not change them.

    Wang, Albrecht, Braham, Liu, Xiong, Zhu: Decoupling Common and Unique Representations for
    Multimodal Self-supervised Learning, ECCV 2024. A row of `published.csv` is a printed number:
    `table` is the name by which comparisons ask for it ("table1-sar"), `source` and `section` say
    where it stands in the paper, `method`, `backbone` and `reference` which row it is in, `column`
    which column. `modalities`, `training`, `label_fraction` and `metric` say how it was measured,
    empty where the paper does not; `value` is empty where there is a dash. `note` holds what a
    reader of the table must know, at its first number, or what is particular about a number.
    """
    file = resources.files("decur") / "compare" / "published.csv"
    with file.open(encoding="utf-8") as text:
        return read_published(text)


def published_table(name: str) -> pd.DataFrame:
    """Return the scores of one table that ships with the package.

    Raises:
        ConfigError: if there is none of this name.
    """
    frame = published_scores()
    names = list(frame["table"].unique())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3) or names
        raise ConfigError(f"no published table {name!r}; there is {', '.join(close)}")
    return frame[frame["table"] == name]


def check_names(key: str, names: Sequence[str]) -> None:
    """Refuse names of tables that do not ship with the package.

    Args:
        key: of the configuration, where the names stand.
        names: of tables.

    Raises:
        ConfigError: naming the key and near names.
    """
    for name in names:
        try:
            published_table(name)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error


def find(
    frame: pd.DataFrame,
    *,
    training: Training | Collection[Training] | None = None,
    label_fraction: float | None = None,
    modalities: Collection[str] | None = None,
    metric: str | None = None,
) -> pd.DataFrame:
    """Return the scores that were measured in a given way, in the order of the table.

    One that is printed in several columns for one measurement is found once; what the table does
    not state is not found.

    Args:
        frame: published scores.
        training: of the encoders, one or several: ("fine-tuned", "supervised") also finds the
            row that was trained from scratch.
        label_fraction: share of the labels.
        modalities: the sensors, in any order.
        metric: as the paper names it; needed where a table has two.
    """
    chosen = frame["value"].notna()
    if training is not None:
        wanted = [training] if isinstance(training, str) else list(training)
        chosen &= frame["training"].isin(wanted)
    if label_fraction is not None:
        chosen &= (frame["label_fraction"] - label_fraction).abs() < 1e-9
    if modalities is not None:
        sensors = set(modalities)
        chosen &= frame["modalities"].map(lambda text: set(text.split("+")) == sensors).astype(bool)
    if metric is not None:
        chosen &= frame["metric"] == metric
    return frame[chosen].drop_duplicates(_MEASUREMENT)
