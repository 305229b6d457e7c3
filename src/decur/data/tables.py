"""The small tables that lie beside a folder of pairs: labels and splits, as CSV or Parquet."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from decur.data.listing import as_id
from decur.data.sample import Target
from decur.errors import DataError, needing

log = logging.getLogger(__name__)

Kind = Literal["class", "multilabel", "scalar"]

MAX_COLUMNS = 10_000
MAX_INTEGER_CLASSES = 20  # more distinct whole numbers than this are a quantity
TABLES = (".csv", ".tsv", ".parquet")

_TABLE_NAMES = {"label", "labels", "split", "splits", "classes", "annotations", "targets"}
_KINDS: dict[str, Kind] = {
    "class": "class",
    "multilabel": "multilabel",
    "number": "scalar",
    "scalar": "scalar",  # as version 0.1 has it
}
_SEPARATORS = ",;\t"
_LIST = re.compile(r"[;|]")
_BRACKETS = re.compile(r"\[.*\]|\(.*\)|\{.*\}", re.S)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_WHOLE = re.compile(r"([-+]?\d+)\.0*")  # as pandas writes whole numbers beside empty cells
# What pandas reads as no value (pandas.read_csv, na_values).
_UNKNOWN = frozenset(
    ("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>")
    + ("N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null")
)
# Numbers that often stand for no value; a column that holds one is told of.
_FILLS = frozenset((-9999, -99999, -999, -32768, 9999, 99999, 65535))
_UNNAMED = re.compile(r"(Unnamed: \d+|__index_level_\d+__)?")  # as pandas names what has no name


def find_table(root: Path, name: str) -> Path | None:
    """Return the table of a name in a folder, `labels.csv` as an example; None without.

    Capitals do not matter.

    Raises:
        DataError: if there are two.
    """
    wanted = {f"{name}{ending}" for ending in TABLES}
    found = sorted(file for file in root.iterdir() if file.name.lower() in wanted)
    if len(found) > 1:
        raise DataError(f"{found[0]}: there is {found[1].name}, too; keep one")
    return found[0] if found else None


def unread_tables(root: Path) -> list[str]:
    """Return the files of a folder that are named as a table is, and are none that is read."""
    read = {f"{name}{ending}" for name in ("labels", "splits") for ending in TABLES}
    return sorted(
        file.name
        for file in root.iterdir()
        if file.stem.lower() in _TABLE_NAMES and file.suffix and file.name.lower() not in read
    )


def read_table(path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Read a table with a column `id`: CSV, with , ; or tabs between its cells, or Parquet.

    Blank rows and columns without a name are left out: spreadsheets add them.

    Returns:
        The other columns' names, and `{id: {column: cell}}` with cells stripped of blanks, empty
        where they say that nothing is known. A list is written as JSON.

    Raises:
        DataError: if it cannot be read, lacks `id`, or names a column or an id twice.
    """
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
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


def _csv_rows(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file, its separator told by which of them its header has most."""
    try:
        raw = path.read_bytes()
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
        lines = raw.decode("utf-16" if utf16 else "utf-8-sig").splitlines(keepends=True)
        stated = re.fullmatch(r"sep=(.)", lines[0].strip()) if lines else None
        lines = lines[1:] if stated else lines  # Excel's own line
        head = lines[0] if lines else ""
        separator = stated[1] if stated else max(_SEPARATORS, key=head.count)
        reader = csv.reader(lines, strict=True, delimiter=separator)
        rows = [[cell.strip() for cell in row] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8 CSV") from error
    if separator == ",":
        return rows
    # Where , does not separate cells it is the decimal sign of half the world.
    return [
        [cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for cell in row]
        for row in rows
    ]


def _parquet_rows(path: Path) -> list[list[str]]:
    """Return the cells of a Parquet file as texts."""
    with needing(f"reading {path}", "eo", DataError):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason}); write it anew") from error
    columns = [[_as_text(value) for value in column.to_pylist()] for column in table.columns]
    return [list(table.column_names), *map(list, zip(*columns, strict=True))]


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, list | tuple):
        return json.dumps([str(part) for part in value], ensure_ascii=False)
    return str(value).strip()


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
    path: Path | None, known: set[str], *, split: str | None
) -> tuple[set[str] | None, dict[str, str] | None]:
    """Read a table of splits: columns `id`, `split`, and one of `group` or `cluster`, if any.

    Args:
        path: of the file; None if there is none, where `split` must be None.
        known: ids that have pictures.
        split: the one wanted; None for all.

    Returns:
        Ids of the split (None for all), and `{id: group}` (None without such a column).

    Raises:
        DataError: for an unknown split, naming those there are.
    """
    if path is None or not path.is_file():
        if split is None:
            return None, None
        file = path or "splits.csv"
        raise DataError(f"{file}: no such file, but split {split!r} is asked for; leave split out")
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
    """The columns of a table of labels as targets.

    A column's kind is told by its name (`relief:number`, `cover:multilabel`, `kind:class`), or
    else by its cells. Several in a cell make it a multilabel: `a;b`, `a|b`, lists as Python, NumPy
    and JSON write them (`['a', 'b']`), and `a,b` where a part comes in other cells, too. Numbers
    of which one has a fraction, or whole numbers of more than 20 values, make it a number, kind
    "scalar"; anything else is a class. A column of names that hardly repeat (over half of more
    than 20 cells are distinct) is a remark and left out. A cell is unknown where it is empty, NaN,
    NA, N/A, null and the like (those of pandas), or one of `nodata`; a lone `;` or `[]` is a
    multilabel with none set. Classes are those of the whole file, so that each split numbers them
    alike: in the order of numbers, or of the alphabet.

    Args:
        path: of the file.
        known: ids that have pictures.
        nodata: numbers that mean "unknown".

    Attributes:
        targets: `{name: Target}`.
        rows: the cells that are known, `{id: {name: cell}}`.
        remarks: names of the columns that are left out.

    Raises:
        DataError: if the file cannot be read, none of its ids is known, or a cell is not of the
            kind its column names.
    """

    def __init__(self, path: Path, known: set[str], nodata: Sequence[float] = ()) -> None:
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
        self.remarks: list[str] = []
        self._commas: set[str] = set()  # columns whose lists have commas
        for column in columns:
            name, _, suffix = column.partition(":")
            cells = {
                id_: row[column]
                for id_, row in table.items()
                if row[column] and _number(row[column]) not in nodata
            }
            if suffix and suffix not in _KINDS:
                raise DataError(
                    f"{path}: column {column!r}: no kind {suffix!r}; "
                    f"choose from class, number, multilabel"
                )
            texts = list(cells.values())
            kind = _KINDS[suffix] if suffix else _guess_kind(texts)
            if kind is None:
                self.remarks.append(name)
                continue
            if kind == "multilabel" and not any(_is_list(cell) for cell in texts):
                self._commas.add(name)
            self.targets[name] = _target(path, column, kind, texts, name in self._commas)
            for id_, cell in cells.items():
                self.rows[id_][name] = cell
            if kind == "scalar" and texts:
                _report_fills(path, column, texts)

    def __getitem__(self, id_: str) -> dict[str, Tensor]:
        """Return the labels of one sample; those not known are `Target.unknown`."""
        row = self.rows.get(id_, {})
        return {
            name: _value(row[name], target, name in self._commas)
            if name in row
            else target.unknown()
            for name, target in self.targets.items()
        }


def describe_target(name: str, target: Target) -> str:
    """Return what a label is taken for, as `cover: 7 classes`, `biomass: number`."""
    several = f"{len(target.classes)} {'class' if len(target.classes) == 1 else 'classes'}"
    kinds = {
        "class": several,
        "multilabel": f"{several}, several at a time",
        "scalar": "number",
        "mask": f"{several} by pixel",
    }
    return f"{name}: {kinds.get(target.kind, target.kind)}"


def _guess_kind(cells: list[str]) -> Kind | None:
    if any(_is_list(cell) for cell in cells) or _has_comma_lists(cells):
        return "multilabel"
    numbers = [_number(cell) for cell in cells]
    distinct = len(set(cells))
    if cells and None not in numbers:
        whole = all(number == int(number) for number in numbers if number is not None)
        return "class" if whole and len(set(numbers)) <= MAX_INTEGER_CLASSES else "scalar"
    return None if not cells or (distinct > 20 and 2 * distinct > len(cells)) else "class"


def _is_list(cell: str) -> bool:
    return _LIST.search(cell) is not None or _BRACKETS.fullmatch(cell) is not None


def _has_comma_lists(cells: list[str]) -> bool:
    """Tell whether commas separate labels: then a part of one cell comes in another, too."""
    distinct = {frozenset(_parts(cell, commas=True)) for cell in cells}
    if not any(len(parts) > 1 for parts in distinct):
        return False
    counts = Counter(part for parts in distinct for part in parts)
    return any(counts[part] > 1 for parts in distinct if len(parts) > 1 for part in parts)


def _target(path: Path, column: str, kind: Kind, cells: list[str], commas: bool) -> Target:
    if kind == "scalar":
        wrong = next((cell for cell in cells if _number(cell) is None), None)
        if wrong is not None:
            raise DataError(f"{path}: column {column!r}: {wrong!r} is no number; correct the cell")
        return Target("scalar")
    names = {_plain(cell) for cell in cells}
    if kind == "multilabel":
        names = {part for cell in cells for part in _parts(cell, commas)}
    numeric = all(_number(name) is not None for name in names)
    classes = sorted(names, key=lambda name: (_number(name) if numeric else 0, name))
    if not classes:
        raise DataError(f"{path}: column {column!r} names no class; fill it or take it out")
    return Target(kind, tuple(classes))


def _report_fills(path: Path, column: str, cells: list[str]) -> None:
    """Warn of numbers in a column that look like "no value"."""
    numbers = Counter(float(cell) for cell in cells)
    for value in sorted(_FILLS & {min(numbers), max(numbers)}):
        log.warning(
            "%s: column %r holds %g in %d rows, which looks like no value; if so, give "
            "--data.label_nodata %g",
            path,
            column,
            value,
            numbers[value],
            value,
        )


def _value(cell: str, target: Target, commas: bool) -> Tensor:
    if target.kind == "scalar":
        return torch.tensor(float(cell), dtype=torch.float32)
    if target.kind == "class":
        return torch.tensor(target.classes.index(_plain(cell)))
    parts = set(_parts(cell, commas))
    return torch.tensor([float(name in parts) for name in target.classes])


def _parts(cell: str, commas: bool = False) -> list[str]:
    """Return the labels in a cell."""
    if _BRACKETS.fullmatch(cell):
        inside = cell[1:-1].strip()
        quoted = [single or double for single, double in _QUOTED.findall(inside)]
        parts = quoted or re.split(r"\s*,\s*" if "," in inside else r"\s+", inside)
        unescaped = [re.sub(r"\\(.)", r"\1", part) for part in parts]
        return [_plain(part.strip()) for part in unescaped if part.strip()]
    pattern = re.compile(r"[;|,]") if commas else _LIST
    return [_plain(part.strip()) for part in pattern.split(cell) if part.strip()]


def _plain(cell: str) -> str:
    """Return a class's name; 3.0 is 3, as pandas writes whole numbers beside empty cells."""
    whole = _WHOLE.fullmatch(cell)
    return whole[1] if whole else cell


def _number(cell: str) -> float | None:
    """Return the cell as a finite number; None for all else, nan and inf included."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
