"""How numbers are printed: tables for a terminal, and quantities with their units."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """Return a table whose first column is text, and all others numbers."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
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
    """Return seconds as s, ms or µs."""
    return f"{seconds:,.0f} s" if seconds and seconds >= 1000 else quantity(seconds, "s")
