"""The columns of a table of labels, and what each is taken for: class, number, several classes."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from decur.data.sample import Target
from decur.data.tables import (
    decimal_point,
    example_of,
    is_known,
    read_table,
    report_strangers,
)
from decur.errors import DataError

log = logging.getLogger(__name__)

Kind = Literal["class", "multilabel", "scalar"]

LARGEST = 1e15  # largest number of a label, whose square float32 can add up
MAX_INTEGER_CLASSES = 20  # more distinct whole numbers than this are a quantity

_KINDS: dict[str, Kind] = {
    "class": "class",
    "multilabel": "multilabel",
    "number": "scalar",
    "scalar": "scalar",  # as version 0.1 has it
}
_LIST = re.compile(r"[;|]")
_BRACKETS = re.compile(r"\[.*\]|\(.*\)|\{.*\}|set\(\)", re.S)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_WHOLE = re.compile(r"([-+]?\d+)\.0*")  # as pandas writes whole numbers beside empty cells
# A number as people write it, which Python does not read: with a unit, or commas for thousands.
_ALMOST = re.compile(
    r"[-+]?(\d+|\d{1,3}([.,' ]\d{3})+)(?P<fraction>[.,]\d+)?\s*(?P<unit>[^\d\s]{0,8})|[-+]?inf"
)
# Numbers that often stand for no value; a column that holds one is told of.
_FILLS = frozenset((-9999, -99999, -999, -32768, 9999, 99999, 65535))
_CLASS_FILLS = _FILLS | {-1, 255}
_WORDS = {"NA", "None", "NULL", "null", "nan"}  # taken for unknown, and may be names of classes


class Labels:
    """The columns of a table of labels as targets.

    A column's kind is told by its name (`relief:number`, `cover:multilabel`, `kind:class`), or
    else by its cells. Several in a cell make it a multilabel: `a;b`, `a|b`, lists as Python, NumPy
    and JSON write them (`['a', 'b']`), and `a,b` where a part comes in other cells, too; lists of
    one length of 0 and 1 say of each class. Numbers of which one has a fraction, or whole numbers
    of more than 20 values, make it a number, kind "scalar"; numbers with units are left out, and
    anything else is a class. A column of names that hardly repeat (over half of more
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
            example, reason = example_of(table, known)
            raise DataError(
                f"{path}: none of its {len(table)} ids has a picture, for example "
                f"{example!r} (a picture's id is {min(known, default='')!r}){reason}; "
                "ids are file names without extension"
            )
        report_strangers(path, table, known)
        self.targets: dict[str, Target] = {}
        self.rows: dict[str, dict[str, str]] = {id_: {} for id_ in table}
        self.remarks: list[str] = []
        self._commas: set[str] = set()  # columns whose lists have commas
        for column in columns:
            name, _, suffix = column.partition(":")
            cells = {
                id_: row[column]
                for id_, row in table.items()
                if is_known(row[column]) and _number(row[column]) not in nodata
            }
            if suffix and suffix not in _KINDS:
                raise DataError(
                    f"{path}: column {column!r}: no kind {suffix!r}; "
                    f"choose from class, number, multilabel"
                )
            kind = _KINDS[suffix] if suffix else _guess_kind(path, name, list(cells.values()))
            if kind is None and not cells and table:
                log.warning(
                    "%s: column %r: no cell says anything, so that it is no label; fill it",
                    path,
                    column,
                )
            if kind is None:
                self.remarks.append(name)
                continue
            self._tell_words(path, column, kind, {row[column] for row in table.values()})
            self._add(path, column, kind, cells)

    def _tell_words(self, path: Path, column: str, kind: Kind, cells: set[str]) -> None:
        """Say which words are taken for unknown that may name a class."""
        if kind != "scalar" and (words := sorted(cells & _WORDS)):
            log.info(
                "%s: column %r: %s means unknown; if it is a class, write it otherwise",
                path,
                column,
                " and ".join(map(repr, words)),
            )

    def _add(self, path: Path, column: str, kind: Kind, cells: dict[str, str]) -> None:
        """Add a column as a target, with its cells, `{id: cell}`."""
        name = column.partition(":")[0]
        places = 0
        if kind == "scalar":
            cells = {id_: decimal_point(cell) for id_, cell in cells.items()}
        elif kind == "multilabel" and (places := _places(list(cells.values()))):
            log.info("%s: column %r: a list has 0 or 1 for each class", path, column)
            cells = {id_: _places_of(cell) for id_, cell in cells.items()}
        texts = list(cells.values())
        if kind == "multilabel" and not any(_is_list(cell) for cell in texts):
            self._commas.add(name)
        target = _target(path, column, kind, texts, name in self._commas)
        classes = tuple(map(str, range(places)))  # of lists also those that none of them has
        self.targets[name] = Target("multilabel", classes) if places else target
        for id_, cell in cells.items():
            self.rows[id_][name] = cell
        _report_fills(path, column, texts, kind)

    def __getitem__(self, id_: str) -> dict[str, Tensor]:
        """Return the labels of one sample; those not known are `Target.unknown`."""
        row = self.rows.get(id_, {})
        return {
            name: _value(row[name], target, name in self._commas)
            if name in row
            else target.unknown()
            for name, target in self.targets.items()
        }


def _guess_kind(path: Path, column: str, cells: list[str]) -> Kind | None:
    """Return what cells are taken for; None for a remark, or numbers that are not written as such.

    Raises:
        DataError: for cells that are numbers with a decimal comma, or lists of two.
    """
    if any(_is_list(cell) for cell in cells):
        return "multilabel"
    if odd := _odd_number(cells):
        log.warning(
            "%s: column %r: most cells are numbers and %r is none, so that it is left out; correct "
            "the cell, or write %s:class in the header",
            path,
            column,
            odd,
            column,
        )
        return None
    if _has_comma_lists(cells):
        if all(_number(decimal_point(cell)) is not None for cell in cells):
            example = next(cell for cell in cells if "," in cell)
            raise DataError(
                f"{path}: column {column!r}: {example!r} is a number with a decimal comma, or two "
                f"classes; write {column}:number or {column}:multilabel in the header"
            )
        return "multilabel"
    numbers = [_number(cell) for cell in cells]
    distinct = len(set(cells))
    if cells and None not in numbers:
        whole = all(number == int(number) for number in numbers if number is not None)
        return "class" if whole and len(set(numbers)) <= MAX_INTEGER_CLASSES else "scalar"
    if distinct > 20 and 2 * distinct > len(cells):
        log.info(
            "%s: column %r: %d of %d cells differ, so that it is a remark and no label; if it is "
            "one, write %s:class in the header",
            path,
            column,
            distinct,
            len(cells),
            column,
        )
        return None
    return "class" if cells else None


def _odd_number(cells: list[str]) -> str | None:
    """Return a cell that is no number where most are, some with a fraction, at most with a unit."""
    almost = [found for cell in cells if (found := _ALMOST.fullmatch(cell))]
    units = {found["unit"] for found in almost} - {None, ""}
    told = any(found["fraction"] for found in almost) or units == {"%"}
    if 2 * len(almost) <= len(cells) or not told or len(units) > 1:
        return None
    return next((cell for cell in cells if _number(decimal_point(cell)) is None), None)


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
        largest = max(cells, key=lambda cell: abs(float(cell)), default="0")
        if abs(float(largest)) > LARGEST:
            raise DataError(
                f"{path}: column {column!r}: {largest} is larger than any quantity ({LARGEST:g}); "
                f"give another unit, or --data.label_nodata {float(largest):g} if it is no value"
            )
        return Target("scalar")
    names = {_plain(cell) for cell in cells}
    if kind == "multilabel":
        names = {part for cell in cells for part in _parts(cell, commas)}
    numeric = all(_number(name) is not None for name in names)
    classes = sorted(names, key=lambda name: (_number(name) if numeric else 0, name))
    if not classes:
        raise DataError(f"{path}: column {column!r} names no class; fill it or take it out")
    warn_alike(path, column, {n: str(_number(n)) if numeric else n.casefold() for n in classes})
    return Target(kind, tuple(classes))


def warn_alike(path: Path, column: str, spellings: Mapping[str, str]) -> None:
    """Warn of classes that are most likely one.

    Args:
        path: of the table.
        column: of the classes.
        spellings: `{class: what those that are alike have in common}`.
    """
    counts = Counter(spellings.values())
    if alike := [name for name, spelling in spellings.items() if counts[spelling] > 1]:
        log.warning(
            "%s: column %r: %s are different classes; write them alike if they are one",
            path,
            column,
            ", ".join(map(repr, alike[:4])),
        )


def _report_fills(path: Path, column: str, cells: list[str], kind: Kind) -> None:
    """Warn of numbers in a column that look like "no value"."""
    numbers = Counter(number for cell in cells if (number := _number(cell)) is not None)
    if kind == "multilabel" or not cells or numbers.total() < len(cells):
        return
    fills = _CLASS_FILLS if kind == "class" and len(numbers) > 2 else _FILLS
    for value in sorted(fills & {min(numbers), max(numbers)}):
        log.warning(
            "%s: column %r holds %g in %d rows, which looks like no value; if so, give "
            "--data.label_nodata %g",
            path,
            column,
            value,
            numbers[value],
            value,
        )


def _places(cells: list[str]) -> int:
    """Return the length of lists that say 0 or 1 of each class; 0 where they name classes."""
    lists = [_parts(cell) if _BRACKETS.fullmatch(cell) else ["no list"] for cell in cells]
    lengths = {len(parts) for parts in lists}
    if len(lengths) != 1 or not {part for parts in lists for part in parts} <= {"0", "1"}:
        return 0
    length = lengths.pop()
    return length if any(len(set(parts)) < length for parts in lists) else 0


def _places_of(cell: str) -> str:
    return json.dumps([str(place) for place, part in enumerate(_parts(cell)) if part == "1"])


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
        inside = "" if cell == "set()" else cell[1:-1].strip()
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
