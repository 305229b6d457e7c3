"""What people see on a terminal: progress bars, tables, and numbers with their units."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

T = TypeVar("T")


class Watch(Protocol):
    """A progress bar: yields `steps` one after another, of which there are n."""

    def __call__(self, steps: Iterable[T], n: int) -> Iterator[T]: ...  # noqa: D102


_results: TextIO | None = None  # with --quiet, what paths of results are printed to


@contextmanager
def quiet() -> Iterator[None]:
    """Let the block print nothing but warnings, errors and the paths of results."""
    global _results
    _results = sys.stdout
    logging.disable(logging.INFO)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        _results = None
        logging.disable(logging.NOTSET)


def is_quiet() -> bool:
    """Return whether the command was given --quiet."""
    return _results is not None


def tell_result(what: str, path: object, about: str = "") -> None:
    """Print where a result is; with --quiet its path alone.

    Args:
        what: the text before it, with its space.
        path: of the file or folder.
        about: what is said behind it.
    """
    if _results is not None:
        print(path, file=_results, flush=True)
    else:
        print(f"{what}{path}{about}", flush=True)


def _in_notebook(console: Console) -> bool:
    """Return whether a notebook shows the bar, which rich needs ipywidgets for."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


def progress_bar(
    console: Console, what: str, unit: str, time: ProgressColumn, wide: bool = False
) -> Progress:
    """Return a bar that fills, with how much is done, on a terminal or in a notebook.

    Args:
        console: where to. A file gets none, nor does a terminal with --quiet.
        what: the text before it, as rich formats it: "{task.description}", "{task.fields[NAME]}".
        unit: the text behind the numbers; empty for none.
        time: rich's column of the time that is left or was taken.
        wide: over the whole width of the terminal.
    """
    behind = [TextColumn(unit)] if unit else []
    return Progress(
        TextColumn(what),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        *behind,
        time,
        console=console,
        expand=wide,
        transient=True,
        disable=is_quiet() or not (console.is_terminal or _in_notebook(console)),
    )


# -- tables, and numbers with their units ----------------------------------------------------------


def make_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    words: Sequence[str] = (),
) -> Table:
    """Return a table of numbers, which stand at the right of their columns.

    Args:
        columns: their names.
        rows: the cells of each row.
        title: of the table.
        words: names of columns that hold words and no numbers; the first one does in any case.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        left = number == 0 or column in words
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def quantity(number: float | None, unit: str) -> str:
    """Return a number with three digits, and its unit with a prefix; nothing for None or 0."""
    if not number:
        return ""
    power = min(5, max(-2, math.floor(math.log10(abs(number) * 1.0005) / 3)))
    return f"{number / 1000**power:.3g} {'µm kMGTP'[power + 2].strip()}{unit}"


def duration(seconds: float | None) -> str:
    """Return seconds as s, ms or µs; nothing for None or 0."""
    return f"{seconds:,.0f} s" if seconds and seconds >= 1000 else quantity(seconds, "s")
