"""One self-contained page for a run, to which any command may add a section.

The functions for parts (`paragraph`, `table`, `figure`, ...) return HTML, in which every text that
they were given is escaped. `add_section` writes a section and puts the page together.
"""

from decur.report.page import add_section, whole_page
from decur.report.parts import (
    cards,
    columns,
    details,
    figure,
    label,
    note,
    paragraph,
    sheet,
    strip,
    summary,
    table,
    thumbnail,
)

__all__ = [
    "add_section",
    "cards",
    "columns",
    "details",
    "figure",
    "label",
    "note",
    "paragraph",
    "sheet",
    "strip",
    "summary",
    "table",
    "thumbnail",
    "whole_page",
]
