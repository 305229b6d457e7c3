"""The parts of a section: plain text, numbers and pictures in, HTML out."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decur.charts import Chart
from decur.plotting import CHART, POINTS
from decur.report.scripts import harmless
from decur.report.templates import environment

if TYPE_CHECKING:
    from PIL.Image import Image

# What words of reports mean; a cell or heading that is one of them, or begins with it and a slash,
# says so to the pointer.
GLOSSARY = {
    "diagonal": "Mean of C_ii, the correlation of dimension i of one embedding with another's: "
    "1 where they say the same, 0 where they have nothing in common.",
    "diagonal/common": "Common dimensions of two sensors: training drives it towards 1.",
    "diagonal/unique": "Unique dimensions of two sensors: training keeps it near 0.",
    "diagonal/intra": "Two views of one sensor: training drives it towards 1.",
    "offdiag_rms": "Root mean square of C_ij for i other than j: how much dimensions repeat each "
    "other. Small is good.",
    "rank": "Effective rank: how many directions vectors use, the exponential of the entropy of "
    "their spectrum. Near 1 is a collapse.",
    "loss": "The sum that training makes smaller. Its size depends on the width: watch its course.",
    "pairs_per_second": "Samples of a training step, over its time.",
    "by chance": "The score of a guess that looks at no picture.",
    "before training": "The same network with its first, random weights.",
    "floor": "The score of a constant guess on the same test part.",
    "common": "Dimensions that the sensors share.",
    "unique": "Dimensions that only this sensor sees.",
}
_DRAWING = 0.5  # share of white pixels from which a picture is taken for a chart
_SHORT = 28  # letters of a cell that stays in one line
# "0.12", "-3", "12 %", "< 0.1", "0.5 ± 0.1 *", or nothing
_NUMBER = re.compile(r"([<>≤≥]? ?[-+−]?[\d.,]*\d(e[-+]?\d+)?( ?\S{1,3}| ±.*)?|[–-]?)$")


def figure(picture: Path, caption: str = "", *, chart: Chart | None = None) -> str:
    """Return a picture with its caption, embedded; a click shows it in its own size.

    Where scripts run, a chart takes the place of the picture.

    Args:
        picture: a PNG file.
        caption: what it shows and how to read it, plain text.
        chart: the same as `decur.charts` makes it; None: that which `plotting.save` has put into
            the file, where the figure is one of lines and bars.
    """
    from PIL import Image

    with Image.open(picture) as image:
        words = getattr(image, "text", {})
        told, kept = words.get(POINTS, "[]"), words.get(CHART, "null")
        size, look = image.size, _look_of(image)
    chart = chart or json.loads(kept)
    return _fill(
        "figure",
        source=_embedded("image/png", picture.read_bytes()),
        alt=caption or picture.stem,
        caption=caption,
        look=look,
        size=size,
        points=[(x * size[0], y * size[1], text) for x, y, text in json.loads(told)],
        chart=harmless(chart) if chart else None,
    )


def summary(sentence: str, numbers: Sequence[tuple[str, str, str]], *, then: Sequence[str]) -> str:
    """Return the first screen of a page: what was done, what came of it, what to do next.

    Args:
        sentence: what was done.
        numbers: for each, what it is, the number, and what it is by chance or at worst.
        then: commands to go on with.
    """
    return _fill("summary", sentence=sentence, numbers=numbers, then=then)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table, which scrolls sideways where it is too wide; numbers get three digits.

    Args:
        head: column names.
        rows: cells, plain text or numbers.
    """
    cells = [[_text(value) for value in row] for row in rows]
    looks = [_look([row[column] for row in cells]) for column in range(len(head))]
    return _fill(
        "table",
        head=[(text, look, _meaning(text)) for text, look in zip(head, looks, strict=True)],
        rows=[
            [
                (text, look, "" if column else _meaning(text))
                for column, (text, look) in enumerate(zip(row, looks, strict=True))
            ]
            for row in cells
        ],
    )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text as HTML."""
    return _fill("paragraph", text=text)


def note(text: str) -> str:
    """Return plain text of less weight as HTML: where things are, how long they took."""
    return _fill("note", text=text)


def details(summary: str, text: str) -> str:
    """Return preformatted text that opens on a click."""
    return _fill("details", summary=summary, text=text)


def thumbnail(pixels: NDArray[np.uint8], caption: str = "", *, side: float = 6) -> str:
    """Return a small picture, embedded as JPEG.

    Args:
        pixels: (H, W, 3).
        caption: plain text below it.
        side: its width, in letters.
    """
    return _fill("thumbnail", source=_jpeg(pixels), caption=caption, side=f"{side:g}")


def sheet(pictures: NDArray[np.uint8], columns: int) -> str:
    """Return many small pictures as one JPEG, row by row: the address of an embedded picture.

    Args:
        pictures: (n, s, s, 3).
        columns: pictures in a row; the last row is filled with black ones.
    """
    side, rows = pictures.shape[1], -(-len(pictures) // columns)
    filled = np.zeros((rows * columns, side, side, 3), np.uint8)
    filled[: len(pictures)] = pictures
    tiled = filled.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return _jpeg(tiled.reshape(rows * side, columns * side, 3))


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=82)
    return _embedded("image/jpeg", stream.getvalue())


def strip(title: str, pictures: Sequence[str]) -> str:
    """Return pictures of `thumbnail` side by side under a heading, wrapped at the edge."""
    return _fill("strip", title=title, htmls=pictures)


def label(text: str) -> str:
    """Return a name, plain text, next to the mark that opens a card."""
    return _fill("label", text=text)


def columns(bodies: Sequence[str]) -> str:
    """Return HTML side by side, and below one another where there is no room."""
    return _fill("columns", htmls=bodies)


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Return cards in a grid, each of which opens on a click.

    Args:
        items: for each card, HTML that always shows, and HTML that it opens to.
    """
    return _fill("cards", items=items)


def _fill(part: str, **values: Any) -> str:
    """Call a macro of `parts.html`."""
    macro = getattr(environment().get_template("parts.html").module, part)
    # a plain str: Markup would escape the HTML in plain strings that it is added to
    return str(macro(**values)).strip()


def _look_of(image: Image) -> str:
    """Return how a picture is shown on a dark page.

    A "sheet" has no paper and stays as it is; a "chart", on white paper, is turned light on dark.
    """
    if image.mode == "RGBA" and (np.asarray(image.getchannel("A")) == 0).any():
        return "sheet"
    white = (np.asarray(image.convert("L")) == 255).mean()
    return "chart" if white > _DRAWING else ""


def _meaning(text: str) -> str:
    """Return what the longest word of the glossary that a name begins with means; "" if none."""
    parts = text.split("/")
    names = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((GLOSSARY[name] for name in names if name in GLOSSARY), "")


def _embedded(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _text(value: Any) -> str:
    """Return the text of a cell: three digits of a fraction, whole numbers whole."""
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return "–"
        return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"
    return str(value)


def _look(cells: Sequence[str]) -> str:
    """Return the class of a column: numbers stand to the right, what is short is not broken."""
    if cells and all(_NUMBER.match(text) for text in cells):
        return "number"
    return "short" if all(len(text) <= _SHORT for text in cells) else ""
