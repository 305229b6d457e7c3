"""The page of a run: one HTML file with its style and pictures inside, made of sections.

A section lives as a fragment in `report/` of the run's folder. The page is put together from all
fragments whenever one changes, so that it can be mailed or opened from disk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from decur.report import scripts
from decur.report.templates import environment
from decur.runs import RunFolder, write_text


def add_section(run: RunFolder, order: int, *, name: str, title: str, body: str) -> None:
    """Write or replace a section, and put the page together anew.

    Args:
        run: the run's folder.
        order: sections are sorted by it.
        name: of the section; one of this name is replaced.
        title: its heading, plain text; "" for a section without one, which the list of contents
            leaves out.
        body: HTML, as the functions of `decur.report.parts` give it.
    """
    folder = run.path / "report"
    for old in _fragments(folder):
        if _name(old) == name:
            old.unlink()
    fragment = environment().get_template("section.html").render(title=title, body=body)
    write_text(folder / f"{order:02d}-{name}.html", fragment)
    write_text(run.report, _page(run.path.resolve().name, _fragments(folder)))


def whole_page(heading: str, body: str, *, script: str = "") -> str:
    """Return a page of its own in the style of a report.

    Args:
        heading: plain text.
        body: HTML.
        script: that runs when the page is there; it may make pictures as blobs.
    """
    return _render(heading, [body], script=script)


def _page(heading: str, fragments: list[Path]) -> str:
    """Return the whole page: a heading, a list of contents of several sections, and these."""
    contents, sections = [], []
    for path in fragments:
        anchor, text = _name(path), path.read_text()
        if title := re.search(r"<h2>(.*?)</h2>", text, re.DOTALL):
            contents.append((anchor, title[1]))
        heading_with_anchor = Markup('<h2 id="{}">').format(anchor)
        sections.append(text.replace("<h2>", heading_with_anchor, 1))
    zooms = any('class="zoom"' in section for section in sections)
    return _render(heading, sections, contents, zooms=zooms)


def _render(
    heading: str,
    sections: Sequence[str],
    contents: Sequence[tuple[str, str]] = (),
    *,
    zooms: bool = False,
    script: str = "",
) -> str:
    """Fill the template of a page.

    Args:
        heading: plain text.
        sections: HTML.
        contents: the list of contents: anchors, and headings as HTML.
        zooms: whether to say that pictures open at a tap.
        script: of the page's own.
    """
    texts = [script] if script else []
    library, hint = "", ""
    digests = []
    if any(map(scripts.has_charts, sections)):
        if scripts.are_drawn():
            library = scripts.plotly().packed
            texts.append(scripts.drawing())
            digests.append(scripts.plotly().script_hash)
        else:
            hint = scripts.MISSING
            sections = [scripts.without_charts(section) for section in sections]
    digests += map(scripts.script_hash, texts)
    return (
        environment()
        .get_template("page.html")
        .render(
            heading=heading,
            policy=scripts.policy(digests, pictures="data: blob:" if script else "data:"),
            contents=contents,
            sections=sections,
            zooms=zooms,
            hint=hint,
            library=library,
            scripts=texts,
        )
    )


def _fragments(folder: Path) -> list[Path]:
    """Return the fragments of a folder in the order of their sections."""
    found = [path for path in folder.glob("*.html") if re.fullmatch(r"\d+-.+\.html", path.name)]
    return sorted(found, key=lambda path: (int(path.name.split("-")[0]), path.name))


def _name(fragment: Path) -> str:
    return fragment.name.removesuffix(".html").split("-", 1)[1]
