"""The scores that the DeCUR paper prints, to stand beside measured ones (`published/*.yaml`)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser

from decur.config import read_mapping
from decur.errors import ConfigError

Training = Literal["frozen", "fine-tuned", "supervised"]


@dataclass(frozen=True)
class Column:
    """How the scores of a column were measured.

    Args:
        name: its head.
        training: what happened to the encoders; None: not stated.
        label_fraction: share of the labels, above 0 and at most 1; None: not stated.
        modalities: the sensors; empty where each row names its own.
        metric: as the paper names it; None: the table's.
    """

    name: str
    training: Training | None = None
    label_fraction: float | None = None
    modalities: tuple[str, ...] = ()
    metric: str | None = None


@dataclass(frozen=True)
class Row:
    """What a table prints of one system.

    Args:
        method: its name as printed, without the citation.
        values: one a column, 0 to 100; None where there is a dash.
        backbone: of its encoders, where the paper names it.
        reference: the paper's citation, its number first.
        training: what happened to its encoders, where that is not what the columns say.
        modalities: its sensors, where the columns name none or others.
    """

    method: str
    values: tuple[float | None, ...]
    backbone: str | None = None
    reference: str | None = None
    training: Training | None = None
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """One printed number.

    Args:
        row: its row.
        column: its column, completed by what the row and the table say.
        value: as printed, 0 to 100.
    """

    row: Row
    column: Column
    value: float


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper, or the part of one that is about one data set.

    Args:
        name: the file's, without its ending: "table1-sar".
        source: paper and table.
        data: the data set.
        metric: as the paper names it.
        columns: measurement protocols.
        rows: systems, in the paper's order.
        note: what a reader of the numbers must know.

    Raises:
        ConfigError: if rows and columns do not fit each other or a number is out of range.
    """

    name: str
    source: str
    data: str
    metric: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def __post_init__(self) -> None:
        where = f"published table {self.name!r}"
        for column in self.columns:
            if column.label_fraction is not None and not 0 < column.label_fraction <= 1:
                raise ConfigError(
                    f"{where}: label_fraction of column {column.name!r} must be in (0, 1], is "
                    f"{column.label_fraction:g}"
                )
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ConfigError(
                    f"{where}: {len(row.values)} values in row {row.method!r} for "
                    f"{len(self.columns)} columns"
                )
        protocols: dict[tuple[Row, Column], float] = {}
        for score in self._printed():
            row, column, value = score.row, score.column, score.value
            if not 0 <= value <= 100:
                raise ConfigError(f"{where}: {value:g} in row {row.method!r} is no percentage")
            if not column.modalities:
                raise ConfigError(f"{where}: no modalities in row {row.method!r} or its columns")
            if protocols.setdefault((row, replace(column, name="")), value) != value:
                raise ConfigError(
                    f"{where}: row {row.method!r} has a second value for what column "
                    f"{column.name!r} says"
                )

    def scores(self) -> list[Score]:
        """All numbers; one that is printed in several columns for one measurement comes once."""
        first: dict[tuple[Row, Column], Score] = {}
        for score in self._printed():
            first.setdefault((score.row, replace(score.column, name="")), score)
        return list(first.values())

    def _printed(self) -> list[Score]:
        """All numbers, row by row."""
        return [
            Score(
                row,
                replace(
                    column,
                    training=row.training or column.training,
                    modalities=row.modalities or column.modalities,
                    metric=column.metric or self.metric,
                ),
                value,
            )
            for row in self.rows
            for column, value in zip(self.columns, row.values, strict=True)
            if value is not None
        ]


def find(
    table: PublishedTable,
    *,
    training: Training | Collection[Training] | None = None,
    label_fraction: float | None = None,
    modalities: Collection[str] | None = None,
    metric: str | None = None,
) -> list[Score]:
    """The scores that were measured in a given way, in the order of the table.

    Args:
        table: where to look.
        training: of the encoders, one or several: ("fine-tuned", "supervised") also finds the
            row that was trained from scratch. What the table does not state is not found.
        label_fraction: share of the labels.
        modalities: the sensors, in any order.
        metric: as the paper names it; needed where a table has two.
    """
    trainings = (training,) if isinstance(training, str) else training
    return [
        score
        for score in table.scores()
        if (trainings is None or score.column.training in trainings)
        and (label_fraction is None or _same(score.column.label_fraction, label_fraction))
        and (modalities is None or set(score.column.modalities) == set(modalities))
        and (metric is None or score.column.metric == metric)
    ]


def _same(stated: float | None, wanted: float) -> bool:
    return stated is not None and math.isclose(stated, wanted)


def published_tables() -> dict[str, PublishedTable]:
    """All tables that ship with the package, by name."""
    return {name: read_table(name, text) for name, text in _texts().items()}


def published_table(name: str) -> PublishedTable:
    """One table that ships with the package.

    Raises:
        ConfigError: if there is none of this name.
    """
    texts = _texts()
    if name not in texts:
        close = difflib.get_close_matches(name, texts, n=3) or list(texts)
        raise ConfigError(f"no published table {name!r}; there is {', '.join(close)}")
    return read_table(name, texts[name])


def _texts() -> dict[str, str]:
    folder = resources.files("decur") / "compare" / "published"
    found = {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


@cache  # what is asked for again and again takes a twentieth of a second each
def read_table(name: str, text: str) -> PublishedTable:
    """A table from YAML: the fields of `PublishedTable` but `name`.

    Args:
        name: the table's.
        text: YAML.

    Raises:
        ConfigError: naming the table and what is wrong in it.
    """
    where = f"published table {name!r}"
    values = read_mapping(text, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PublishedTable, "table")
    try:
        settings = parser.parse_object({"table": {**values, "name": name}})
    except ArgumentError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    table: PublishedTable = parser.instantiate_classes(settings).table
    return table
