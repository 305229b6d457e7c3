"""The small tables that lie beside a folder of pairs: labels.csv and splits.csv."""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from decur.data.listing import as_id
from decur.data.sample import Target
from decur.errors import DataError

log = logging.getLogger(__name__)

Kind = Literal["class", "multilabel", "scalar"]

MAX_COLUMNS = 10_000
MAX_INTEGER_CLASSES = 20  # more distinct whole numbers than this are a quantity
_LIST = re.compile(r"[;|]")
_UNKNOWN = frozenset({"nan", "NaN", "NA", "null"})  # as pandas, R and databases write no value
_UNNAMED = re.compile(r"(Unnamed: \d+)?")  # as pandas names a column without a name


def read_table(path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Read a CSV file with a column `id`.

    Blank rows and columns without a name are left out: spreadsheets add them.

    Returns:
        The other columns' names, and `{id: {column: cell}}` with cells stripped of blanks, empty
        where they say that nothing is known.

    Raises:
        DataError: if it cannot be read, lacks `id`, or names a column or an id twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8 CSV") from error
    header = rows[0] if rows else []
    columns = [column for column in header if not _UNNAMED.fullmatch(column)]
    if "id" not in columns:
        raise DataError(
            f"{path}: has no column 'id' (it has {', '.join(columns) or 'nothing'}); "
            "name the column of file stems 'id'"
        )
    _refuse_doubles(path, columns)
    table: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        if len(row) != len(header):
            raise DataError(
                f"{path}: line {line} has another number of cells than the header; correct it"
            )
        cells = dict(zip(header, row, strict=True))
        id_ = as_id(cells["id"])
        if id_ in table:
            raise DataError(f"{path}: id {id_!r} comes twice; keep one row of it")
        table[id_] = {
            column: "" if cells[column] in _UNKNOWN else cells[column]
            for column in columns
            if column != "id"
        }
    return [column for column in columns if column != "id"], table


def _refuse_doubles(path: Path, columns: list[str]) -> None:
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{path}: has {len(columns):,} columns, and {MAX_COLUMNS:,} are read; take some out"
        )
    name, count = Counter(column.partition(":")[0] for column in columns).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: two columns are named {name!r}; rename one")


def _report_strangers(path: Path, table: Mapping[str, object], known: set[str]) -> None:
    """Warn of ids that have no picture."""
    strangers = [id_ for id_ in table if id_ not in known]
    if strangers:
        example, reason = _example(strangers, known)
        log.warning(
            "%d of %d ids of %s have no picture, for example %r%s",
            len(strangers),
            len(table),
            path,
            example,
            reason,
        )


def _example(strangers: Iterable[str], known: set[str]) -> tuple[str, str]:
    """Return one of the ids without a picture, and what may have happened to it."""
    padded = {id_.lstrip("0"): id_ for id_ in known if id_.isdigit()}
    for id_ in strangers:
        if (bare := id_.lstrip("0")) in padded and id_.isdigit():
            return id_, (
                f"; the picture is {padded[bare]!r}: spreadsheets strip leading zeros, "
                "save the column as text"
            )
    return next(iter(strangers), ""), ""


def read_splits(
    path: Path, known: set[str], *, split: str | None
) -> tuple[set[str] | None, dict[str, str] | None]:
    """Read splits.csv: columns `id`, `split`, and one of `group` or `cluster`, if any.

    Args:
        path: of the file; need not exist if `split` is None.
        known: ids that have pictures.
        split: the one wanted; None for all.

    Returns:
        Ids of the split (None for all), and `{id: group}` (None without such a column).

    Raises:
        DataError: for an unknown split, naming those there are.
    """
    if not path.is_file():
        if split is None:
            return None, None
        raise DataError(f"{path}: no such file, but split {split!r} is asked for; leave split out")
    columns, table = read_table(path)
    _report_strangers(path, table, known)
    group = next((column for column in ("group", "cluster") if column in columns), None)
    groups = {id_: row[group] for id_, row in table.items() if row[group]} if group else None
    if split is None:
        return None, groups
    if "split" not in columns:
        raise DataError(f"{path}: has no column 'split'; add one or leave split out")
    wanted = {id_ for id_, row in table.items() if row["split"] == split}
    if not wanted:
        there = sorted({row["split"] for row in table.values() if row["split"]})
        raise DataError(f"{path}: no split {split!r}; choose from {', '.join(there) or 'none'}")
    if not wanted & known:
        example, reason = _example(sorted(wanted), known)
        raise DataError(
            f"{path}: none of the {len(wanted)} ids of split {split!r} has a picture, "
            f"for example {example!r}{reason}; ids are file names without extension"
        )
    return wanted, groups


class Labels:
    """The columns of labels.csv as targets.

    A column's kind is told by its name (`relief:scalar`, `cover:multilabel`, `kind:class`), or
    else by its cells: any with `;` or `|` makes it a multilabel (`a;b;c`); numbers of which one
    has a fraction, or whole numbers of more than 20 values, make it a scalar; anything else is a
    class. A column of names that hardly repeat (over half of more than 20 cells are distinct) is
    a remark and left out. A cell that is empty, nan, NaN, NA or null is unknown; a lone `;` is a
    multilabel with none set. Classes are those of the whole file, so that each split numbers them
    alike: in the order of numbers, or of the alphabet.

    Args:
        path: of the file.
        known: ids that have pictures.

    Attributes:
        targets: `{name: Target}`.
        rows: the cells that are known, `{id: {name: cell}}`.

    Raises:
        DataError: if the file cannot be read, none of its ids is known, or a cell is not of the
            kind its column names.
    """

    def __init__(self, path: Path, known: set[str]) -> None:
        columns, table = read_table(path)
        if not known & set(table):
            example, reason = _example(table, known)
            raise DataError(
                f"{path}: none of its {len(table)} ids has a picture, for example "
                f"{example!r} (a picture's id is {min(known, default='')!r}){reason}; "
                "ids are file names without extension"
            )
        _report_strangers(path, table, known)
        self.targets: dict[str, Target] = {}
        self.rows: dict[str, dict[str, str]] = {id_: {} for id_ in table}
        for column in columns:
            name, _, suffix = column.partition(":")
            cells = {id_: row[column] for id_, row in table.items() if row[column]}
            if suffix and suffix not in get_args(Kind):
                raise DataError(
                    f"{path}: column {column!r}: no kind {suffix!r}; "
                    f"choose from {', '.join(get_args(Kind))}"
                )
            kind = suffix or _guess_kind(list(cells.values()))
            if kind is None:
                log.info("%s: column %r is taken for a remark, not a label", path, column)
                continue
            self.targets[name] = _target(path, column, kind, list(cells.values()))
            for id_, cell in cells.items():
                self.rows[id_][name] = cell

    def __getitem__(self, id_: str) -> dict[str, Tensor]:
        """Return the labels of one sample; those not known are `Target.unknown`."""
        row = self.rows.get(id_, {})
        return {
            name: _value(row[name], target) if name in row else target.unknown()
            for name, target in self.targets.items()
        }


def _guess_kind(cells: list[str]) -> str | None:
    if any(_LIST.search(cell) for cell in cells):
        return "multilabel"
    numbers = [_number(cell) for cell in cells]
    distinct = len(set(cells))
    if cells and None not in numbers:
        whole = all(number == int(number) for number in numbers if number is not None)
        return "class" if whole and distinct <= MAX_INTEGER_CLASSES else "scalar"
    return None if not cells or (distinct > 20 and 2 * distinct > len(cells)) else "class"


def _target(path: Path, column: str, kind: str, cells: list[str]) -> Target:
    if kind == "scalar":
        wrong = next((cell for cell in cells if _number(cell) is None), None)
        if wrong is not None:
            raise DataError(f"{path}: column {column!r}: {wrong!r} is no number; correct the cell")
        return Target("scalar")
    names = set(cells)
    if kind == "multilabel":
        names = {part for cell in cells for part in _parts(cell)}
    numeric = all(_number(name) is not None for name in names)
    classes = sorted(names, key=lambda name: (_number(name) if numeric else 0, name))
    if not classes:
        raise DataError(f"{path}: column {column!r} names no class; fill it or take it out")
    return (
        Target("class", tuple(classes)) if kind == "class" else Target("multilabel", tuple(classes))
    )


def _value(cell: str, target: Target) -> Tensor:
    if target.kind == "scalar":
        return torch.tensor(float(cell), dtype=torch.float32)
    if target.kind == "class":
        return torch.tensor(target.classes.index(cell))
    parts = set(_parts(cell))
    return torch.tensor([float(name in parts) for name in target.classes])


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in _LIST.split(cell) if part.strip()]


def _number(cell: str) -> float | None:
    """Return the cell as a finite number; None for all else, nan and inf included."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
