"""What a page may run: plotly.js and the script that draws charts with it, and nothing else.

Charts lie in a page as JSON, which is data and not run. A Content-Security-Policy names the scripts
of the page by their digests: a browser runs no other, and asks no server for anything.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from decur.errors import install

MISSING = f"With plotly, charts answer to the pointer: {install('explain')}, and the command again."
_CHART = re.compile(r'<script type="application/json">.*?</script>\n?', re.DOTALL)
_LEVEL = 6  # level of gzip: the highest takes half as long again for 0.2 %


@dataclass(frozen=True)
class Library:
    """The library plotly.js.

    Args:
        packed: it, by gzip and in base64: 2 MB of 4.8.
        digest: of its text, as a policy names it.
    """

    packed: str
    script_hash: str


@cache
def plotly() -> Library:
    """Return plotly.js; the package plotly brings it."""
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs()
    packed = gzip.compress(text.encode(), _LEVEL, mtime=0)
    return Library(base64.b64encode(packed).decode(), script_hash(text))


@cache
def drawing() -> str:
    """Return the script that draws the charts of a page."""
    return files("decur.report.templates").joinpath("charts.js").read_text(encoding="utf-8")


def are_drawn() -> bool:
    """Return whether plotly is installed."""
    return find_spec("plotly") is not None


def has_charts(body: str) -> bool:
    """Return whether HTML that `report.figure` has made holds a chart."""
    return _CHART.search(body) is not None


def without_charts(body: str) -> str:
    """Return HTML without its charts, whose pictures stay."""
    return _CHART.sub("", body)


def harmless(chart: dict[str, Any]) -> dict[str, Any]:
    """Return a chart whose texts plotly shows as they are, though it reads some HTML in texts.

    Args:
        chart: with "data" and "layout" for plotly. The rest, which the script of the page shows as
            plain text, stays as it is.
    """
    return {key: _plain(v) if key in ("data", "layout") else v for key, v in chart.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value, quote=False).replace("\n", "<br>")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def policy(digests: Sequence[str] = (), pictures: str = "data:") -> str:
    """Return a Content-Security-Policy: the page's own style and pictures, and some scripts.

    Args:
        digests: of the texts of the scripts; without any, no script runs.
        pictures: where pictures may come from.
    """
    named = " ".join(f"'sha256-{each}'" for each in digests) or "'none'"
    allowed = {"default-src": "'none'", "script-src": named, "style-src": "'unsafe-inline'"}
    allowed |= {"img-src": pictures, "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{what} {of}" for what, of in allowed.items())


def script_hash(text: str) -> str:
    """Return the digest of a script, as a policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
