"""One self-contained page for a run: any command may add a section to it.

A section lives as a fragment in `report/` of the run's folder; the page is put together from all of
them whenever one changes, pictures and all, so that it can be mailed or opened from disk.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.runs import RunFolder, atomic

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b2330; --quiet: #566171; --soft: #f3f5f8;
  --line: #dbe0e7; --link: #0064a0; }
@media (prefers-color-scheme: dark) { :root { --page: #14181f; --text: #e4e8ee; --quiet: #a3aebd;
  --soft: #1e2530; --line: #37414f; --link: #7cc0ee; } }
* { box-sizing: border-box; }
html { background: var(--page); color: var(--text); -webkit-text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; margin: 0 auto;
  padding: 1rem; max-width: 62rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 .75rem; scroll-margin-top: 1rem; }
section { border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2rem; }
p { max-width: 44rem; }
a { color: var(--link); }
nav { background: var(--soft); border-radius: 8px; padding: .75rem 1rem; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: .2rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.note, figcaption { color: var(--quiet); font-size: .9rem; }
figure { margin: 1.25rem 0; }
figcaption { margin-top: .4rem; max-width: 44rem; }
img { max-width: 100%; height: auto; }
.zoom { display: block; position: relative; overflow-x: auto; cursor: zoom-in; }
.zoom img { display: block; background: #fff; border-radius: 4px; }
.zoom input { position: absolute; opacity: 0; }
.zoom:has(:focus-visible) { outline: 2px solid var(--link); outline-offset: 2px; }
.zoom:has(:checked) { cursor: zoom-out; }
.zoom :checked + img { max-width: none; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .3rem .65rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; }
.number { text-align: right; }
td.number, td.short { white-space: nowrap; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; border-radius: 8px;
  font-size: .85rem; }
summary { cursor: pointer; }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.card { background: var(--soft); border-radius: 8px; padding: .6rem .75rem; min-width: 0; }
.card[open] { grid-column: 1 / -1; }
.card h3 { font-size: .95rem; margin: 1rem 0 .4rem; }
.card summary b { font-weight: 600; font-size: .9rem; }
.card summary .row { margin-top: .4rem; }
.columns { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
.thumb { margin: 0; width: min(var(--side, 6rem), (100% - 1.2rem) / 3); }
summary .thumb { width: min(var(--side, 6rem), (100% - .6rem) / 2); }
.thumb img { display: block; width: 100%; border-radius: 4px; }
.thumb figcaption { font-size: .75rem; line-height: 1.3; margin-top: .2rem; }
@media (min-width: 60rem) { .hint { display: none; } }
@media (max-width: 40rem) { .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (min-width: 78rem) {
  .contents { display: grid; grid-template-columns: 13rem minmax(0, 60rem); column-gap: 2.5rem;
    max-width: 75.5rem; }
  .contents h1 { grid-column: 1 / -1; }
  .contents nav { position: sticky; top: 1rem; align-self: start; max-height: calc(100vh - 2rem);
    overflow-y: auto; font-size: .92rem; }
  .contents section:first-of-type { border-top: 0; margin-top: 0; padding-top: 0; }
}
@media print { .contents { display: block; } nav { display: none; } }
"""
_SHORT = 28  # letters of a cell that stays in one line
# "0.12", "-3", "12 %", "< 0.1", "0.5 ± 0.1 *", or nothing
_NUMBER = re.compile(r"([<>≤≥]? ?[-+−]?[\d.,]*\d(e[-+]?\d+)?( ?\S{1,3}| ±.*)?|[–-]?)$")


def figure(picture: Path, caption: str = "") -> str:
    """A picture with its caption, embedded in the page; a click shows it in its own size.

    Args:
        picture: a PNG file.
        caption: what it shows and how to read it, plain text.
    """
    data = base64.b64encode(picture.read_bytes()).decode()
    alt = html.escape(caption or picture.stem)
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        '<figure><label class="zoom"><input type="checkbox" aria-label="own size">'
        f'<img alt="{alt}" src="data:image/png;base64,{data}"></label>{text}</figure>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table, which scrolls sideways where it is too wide; numbers get three digits.

    Args:
        head: column names.
        rows: cells, plain text or numbers.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    looks = [_look([row[column] for row in cells]) for column in range(len(head))]

    def line(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{look}>{html.escape(text)}</{tag}>"
            for look, text in zip(looks, row, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return (
        '<div class="wide" tabindex="0"><table><thead><tr>'
        f"{line('th', head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def note(text: str) -> str:
    """Plain text of less weight: where things are, how long they took."""
    return f'<p class="note">{html.escape(text)}</p>'


def details(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return (
        f"<details><summary>{html.escape(summary)}</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
    )


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
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    return (
        f'<figure class="thumb" style="--side:{side:g}rem"><img alt="{text}" loading="lazy" '
        f'src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def strip(title: str, pictures: Sequence[str]) -> str:
    """Pictures of `thumbnail` side by side under a heading, wrapped where they do not fit."""
    heading = f"<h3>{html.escape(title)}</h3>" if title else ""
    return f'{heading}<div class="row">{"".join(pictures)}</div>'


def label(text: str) -> str:
    """A name, plain text, beside the mark that opens a card."""
    return f"<b>{html.escape(text)}</b>"


def columns(bodies: Sequence[str]) -> str:
    """HTML side by side, and below one another where there is no room."""
    return f'<div class="columns">{"".join(f"<div>{body}</div>" for body in bodies)}</div>'


def cards(items: Sequence[tuple[str, str]]) -> str:
    """Cards in a grid, of which each opens on a click.

    Args:
        items: of each, HTML that is always there, and HTML that it opens to.
    """
    opened = "".join(
        f'<details class="card"><summary>{short}</summary>{long}</details>' for short, long in items
    )
    return f'<div class="cards">{opened}</div>'


def add_section(run: RunFolder, order: int, name: str, title: str, body: str) -> None:
    """Write or replace a section, and the page.

    Args:
        run: the run's folder.
        order: sections are sorted by it.
        name: of the section; one of this name is replaced.
        title: its heading, plain text.
        body: HTML, as the functions of this module give it.
    """
    fragments = run.path / "report"
    for old in _fragments(fragments):
        if _name(old) == name:
            old.unlink()
    with atomic(fragments / f"{order:02d}-{name}.html") as temporary:
        temporary.write_text(f"<section><h2>{html.escape(title)}</h2>\n{body}\n</section>\n")
    heading = html.escape(run.path.resolve().name)
    entries, sections = [], []
    for path in sorted(_fragments(fragments), key=lambda p: (int(p.name.split("-")[0]), p.name)):
        anchor, text = html.escape(_name(path)), path.read_text()
        if found := re.search(r"<h2>(.*?)</h2>", text, re.S):
            entries.append(f'<li><a href="#{anchor}">{found[1]}</a></li>')
        sections.append(text.replace("<h2>", f'<h2 id="{anchor}">', 1))
    several = len(entries) > 1
    contents = f'<nav aria-label="Contents"><ol>{"".join(entries)}</ol></nav>' if several else ""
    layout = ' class="contents"' if several else ""
    zooms = any('class="zoom"' in section for section in sections)
    hint = '<p class="note hint">A picture opens to its own size at a tap.</p>' if zooms else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{_STYLE}</style></head>"
        f"<body{layout}><h1>{heading}</h1>{contents}"
        f"<main>{hint}{''.join(sections)}</main></body></html>\n"
    )
    with atomic(run.report) as temporary:
        temporary.write_text(page)


def _fragments(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.html") if re.fullmatch(r"\d+-.+\.html", path.name)]


def _name(fragment: Path) -> str:
    return fragment.name.removesuffix(".html").split("-", 1)[1]


def _cell(value: Any) -> str:
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
        return ' class="number"'
    return ' class="short"' if all(len(text) <= _SHORT for text in cells) else ""
