"""One self-contained page for a run: any command may add a section to it.

A section lives as a fragment in `report/` of the run's folder; the page is put together from all of
them whenever one changes, pictures and all, so that it can be mailed or opened from disk.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from decur.checkpoint import RunFolder, atomic

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
figure { margin: 1rem 0; } figcaption { opacity: .8; font-size: .9rem; }
img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; border-radius: 4px; }
"""


def figure(picture: Path, caption: str) -> str:
    """A picture with its caption, embedded in the page.

    Args:
        picture: a PNG file.
        caption: what it shows and how to read it, plain text.
    """
    data = base64.b64encode(picture.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; numbers get three digits.

    Args:
        head: column names.
        rows: cells, plain text or numbers.
    """

    def cell(value: object) -> str:
        return html.escape(f"{value:.3g}" if isinstance(value, float) else str(value))

    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    header = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        '<div class="wide"><table><thead><tr>'
        f"{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def details(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return (
        f"<details><summary>{html.escape(summary)}</summary>"
        f"<pre>{html.escape(text)}</pre></details>"
    )


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
    for old in fragments.glob(f"*-{name}.html"):
        old.unlink()
    with atomic(fragments / f"{order:02d}-{name}.html") as temporary:
        temporary.write_text(f"<section><h2>{html.escape(title)}</h2>\n{body}\n</section>\n")
    heading = html.escape(run.path.resolve().name)
    sections = "".join(path.read_text() for path in sorted(fragments.glob("*.html")))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{heading}</h1>{sections}</body></html>\n"
    )
    with atomic(run.report) as temporary:
        temporary.write_text(page)
