"""The small tables that lie beside a folder of pairs, as CSV or Parquet; and that of splits."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from decur.data.listing import as_id
from decur.errors import DataError, needing

log = logging.getLogger(__name__)

MAX_COLUMNS = 10_000
TABLES = (".csv", ".tsv", ".parquet")

_TABLE_NAMES = {"label", "labels", "split", "splits", "classes", "annotations", "targets"}
_SEPARATORS = ",;\t"
_DECIMAL_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+")  # 1,5 and 1.234,5
# What pandas reads as no value (pandas.read_csv, na_values).
_UNKNOWN = frozenset(
    ("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>")
    + ("N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null")
)
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
        The other columns' names, and `{id: {column: cell}}` with cells stripped of blanks. A list
        is written as JSON.

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
        table[id_] = {column: cells[column] for column in columns if column != "id"}
    return [column for column in columns if column != "id"], table


def is_known(cell: str) -> bool:
    """Return whether a cell says anything."""
    return cell != "" and cell not in _UNKNOWN


def decimal_point(cell: str) -> str:
    """Return a number with a decimal comma with a point, any other cell as it is."""
    return cell.replace(".", "").replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def _csv_rows(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file, its separator told by which of them its header has most."""
    try:
        raw = path.read_bytes()
        utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
        lines = list(StringIO(text, newline=""))  # not split at what else Unicode calls a line
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
    return [list(map(decimal_point, row)) for row in rows]


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
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return str(value).strip()


def _refuse_doubles(path: Path, columns: list[str]) -> None:
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"{path}: has {len(columns):,} columns, and {MAX_COLUMNS:,} are read; take some out"
        )
    name, count = Counter(column.partition(":")[0] for column in columns).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: two columns are named {name!r}; rename one")


def report_strangers(path: Path, table: Mapping[str, object], known: set[str]) -> None:
    """Warn of ids that have no picture."""
    strangers = [id_ for id_ in table if id_ not in known]
    if strangers:
        example, reason = example_of(strangers, known)
        log.warning(
            "%d of %d ids of %s have no picture, for example %r%s",
            len(strangers),
            len(table),
            path,
            example,
            reason,
        )


def example_of(strangers: Iterable[str], known: set[str]) -> tuple[str, str]:
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
    report_strangers(path, table, known)
    group = next((column for column in ("group", "cluster") if column in columns), None)
    groups = (
        {id_: row[group] for id_, row in table.items() if is_known(row[group])} if group else None
    )
    if split is None:
        return None, groups
    if "split" not in columns:
        raise DataError(f"{path}: has no column 'split'; add one or leave split out")
    wanted = {id_ for id_, row in table.items() if row["split"] == split}
    if not wanted:
        there = sorted({row["split"] for row in table.values() if is_known(row["split"])})
        raise DataError(f"{path}: no split {split!r}; choose from {', '.join(there) or 'none'}")
    if not wanted & known:
        example, reason = example_of(sorted(wanted), known)
        raise DataError(
            f"{path}: none of the {len(wanted)} ids of split {split!r} has a picture, "
            f"for example {example!r}{reason}; ids are file names without extension"
        )
    return wanted, groups
