"""What `decur bench` and `decur plan` share: options, tables, and numbers with their units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import torch
from jsonargparse import Namespace
from rich import box
from rich.table import Table

from decur.config import Parser
from decur.pretrain.settings import PretrainSettings


def add_device(parser: Parser, seconds: float, json: str) -> None:
    """Add --device, --seconds (with its default) and --json (with its help) to a parser."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="The device that is measured.")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="Of each measurement, about."
    )
    parser.add_argument("--json", type=str, help=json)


def settings_of(made: Namespace) -> PretrainSettings:
    """Return the settings of pretraining among instantiated options."""
    return PretrainSettings(**{key.name: made[key.name] for key in fields(PretrainSettings)})


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is text, and all others numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
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
