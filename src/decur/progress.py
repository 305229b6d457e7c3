"""Progress bars for people: on a terminal, and gone when the work ends."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn


def progress_bar(
    console: Console, what: str, unit: str, time: ProgressColumn, wide: bool = False
) -> Progress:
    """A bar that fills, with how much is done of how much; not shown where nobody looks.

    Args:
        console: where to. A file gets none.
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
        disable=not console.is_terminal,
    )
