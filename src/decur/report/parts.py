"""The parts of a section: plain text, numbers and pictures in, HTML out."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.report.templates import environment

_SHORT = 28  # letters of a cell that stays in one line
# "0.12", "-3", "12 %", "< 0.1", "0.5 ± 0.1 *", or nothing
_NUMBER = re.compile(r"([<>≤≥]? ?[-+−]?[\d.,]*\d(e[-+]?\d+)?( ?\S{1,3}| ±.*)?|[–-]?)$")


def figure(picture: Path, caption: str = "") -> str:
    """A picture with its caption, embedded in the page; a click shows it in its own size.

    Args:
        picture: a PNG file.
        caption: what it shows and how to read it, plain text.
    """
    source = _embedded("image/png", picture.read_bytes())
    return _fill("figure", source=source, alt=caption or picture.stem, caption=caption)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table, which scrolls sideways where it is too wide; numbers get three digits.

    Args:
        head: column names.
        rows: cells, plain text or numbers.
    """
    cells = [[_text(value) for value in row] for row in rows]
    looks = [_look([row[column] for row in cells]) for column in range(len(head))]
    return _fill(
        "table",
        head=list(zip(head, looks, strict=True)),
        rows=[list(zip(row, looks, strict=True)) for row in cells],
    )


def paragraph(text: str) -> str:
    """Plain text."""
    return _fill("paragraph", text=text)


def note(text: str) -> str:
    """Plain text of less weight: where things are, how long they took."""
    return _fill("note", text=text)


def details(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return _fill("details", summary=summary, text=text)


def thumbnail(pixels: NDArray[np.uint8], caption: str = "", side: float = 6) -> str:
    """A small picture, embedded as JPEG.

    Args:
        pixels: (H, W, 3).
        caption: plain text below it.
        side: its width, in letters.
    """
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=82)
    source = _embedded("image/jpeg", stream.getvalue())
    return _fill("thumbnail", source=source, caption=caption, side=f"{side:g}")


def strip(title: str, pictures: Sequence[str]) -> str:
    """Pictures of `thumbnail` side by side under a heading, wrapped where they do not fit."""
    return _fill("strip", title=title, htmls=pictures)


def label(text: str) -> str:
    """A name, plain text, next to the mark that opens a card."""
    return _fill("label", text=text)


def columns(bodies: Sequence[str]) -> str:
    """HTML side by side, and below one another where there is no room."""
    return _fill("columns", htmls=bodies)


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Cards in a grid, each of which opens on a click.

    Args:
        items: for each card, HTML that always shows, and HTML that it opens to.
    """
    return _fill("cards", items=items)


def _fill(part: str, **values: Any) -> str:
    """Call a macro of `parts.html`."""
    macro = getattr(environment().get_template("parts.html").module, part)
    # a plain str: Markup would escape the HTML in plain strings that it is added to
    return str(macro(**values)).strip()


def _embedded(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _text(value: Any) -> str:
    """Text of a cell: three digits of a fraction, whole numbers whole."""
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return "–"
        return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"
    return str(value)


def _look(cells: Sequence[str]) -> str:
    """The class of a column: numbers stand to the right, what is short is not broken."""
    if cells and all(_NUMBER.match(text) for text in cells):
        return "number"
    return "short" if all(len(text) <= _SHORT for text in cells) else ""
