"""Charts of a report: the numbers of the figure, what may run, and what a browser draws."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from decur import charts, plotting, report
from decur.report import scripts
from decur.runs import RunFolder

NASTY = (
    "</script><!--<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
    '<a href="javascript:1">&lt;b&gt; & <b>bold</b></a>\u2028\'$x_{$%{y}'
)


class Scripts(HTMLParser):
    """The scripts of a page and its policy, as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.kind, self.policy, self.links = [], [], None, "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[key] for key in attrs if key.endswith(("href", "src"))]
        self.kind = None
        if tag == "script":
            self.kind = attrs.get("type", "code")
            self.texts.append([self.kind, ""])
        elif attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]

    def handle_endtag(self, tag):
        self.kind = None

    def handle_data(self, data):
        if self.kind:
            self.texts[-1][1] += data

    def of(self, kind):
        return [text for each, text in self.texts if each == kind]


@pytest.fixture
def library(monkeypatch):
    """A library that is not plotly's, which need not be installed."""
    text = "var Plotly = {};"
    packed = base64.b64encode(gzip.compress(text.encode())).decode()
    monkeypatch.setattr(scripts, "are_drawn", lambda: True)
    monkeypatch.setattr(scripts, "plotly", lambda: scripts.Library(packed, digest(text)))
    return text


def digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def curve(path, name="a"):
    figure, axis = plotting.single(5, 3)
    lines = [axis.plot([1, 2, 3], [0.5, np.nan, 0.25], "--", color="red", marker=".")[0]]
    axis.axhline(0, color="grey")
    axis.set(xlabel="epoch", ylabel=plotting.plain(name), ylim=(-1, 1))
    axis.set_title(plotting.plain(name))
    plotting.legend(axis, lines, [name])
    return plotting.save(figure, path)


@pytest.fixture
def run(tmp_path):
    pytest.importorskip("matplotlib")
    run = RunFolder(tmp_path / NASTY.replace("/", "_"))
    report.add_section(
        run, 1, name="x", title=NASTY, body=report.figure(curve(tmp_path / "a.png", NASTY), NASTY)
    )
    return run


def charts_of(page):
    return [json.loads(text) for text in Scripts(page).of("application/json")]


def test_a_chart_has_the_numbers_of_its_figure(tmp_path):
    pytest.importorskip("matplotlib")
    figure, axes = plotting.subplots(1, 3, width=3, height=3)
    first, second, third = axes[0]
    (line,) = first.plot([1, 2], [3, 4], ":", label="_s1", color="#0072B2")
    first.plot([1, 2], [5, 6], label="other")
    first.axhline(0.5)
    first.set(xlabel="epoch", xscale="linear", xlim=(0, 5), title=r"cost in \$")
    second.barh(["cat", "dog"], [0.25, 0.75], hatch="//", label="share")
    error = second.errorbar([0.5], [1], [0.125], marker="D")
    third.plot([1, 10, 100], [1, 2, 3], "s")
    third.set_xscale("log")
    third.set_xticks([1, 100], ["one", "hundred"])
    figure.legend([line], ["_s1"])
    chart = charts.chart_of(figure)
    traces, layout = chart["data"], chart["layout"]
    named = {trace["name"]: trace for trace in traces if trace["name"]}
    assert set(named) == {"_s1", "other", "share"} and error.get_label() not in named
    assert named["_s1"]["y"] == [3, 4] and named["_s1"]["line"]["dash"] == "dot"
    assert named["_s1"]["line"]["color"] == "#0072b2" and named["_s1"]["showlegend"]
    across = next(t for t in traces if t["y"] == [0.5, 0.5])
    assert across["x"] == [0, 5] and across["hoverinfo"] == "skip"
    assert layout["xaxis"]["range"] == [0, 5] and layout["xaxis"]["dtick"] == 1
    bars = named["share"]
    assert (bars["x"], bars["y"], bars["orientation"]) == ([0.25, 0.75], [0, 1], "h")
    assert bars["customdata"] == layout["yaxis2"]["ticktext"] == ["cat", "dog"]
    diamond = next(t for t in traces if t.get("marker", {}).get("symbol") == "diamond")
    assert diamond["error_y"]["array"] == [0.125] and diamond["xaxis"] == "x2"
    assert layout["xaxis3"]["tickvals"] == [1, 100] and layout["xaxis3"]["type"] == "log"
    assert layout["xaxis3"]["ticktext"] == ["one", "hundred"]
    squares = next(t for t in traces if t.get("marker", {}).get("symbol") == "square")
    assert squares["hovertemplate"] == named["_s1"]["hovertemplate"] == "%{y:.4g}"
    assert diamond["hovertemplate"] == "%{x:.4g}"  # what names stand for is no number
    low, high = third.get_xlim()
    np.testing.assert_allclose(layout["xaxis3"]["range"], np.log10([low, high]))
    assert [title["text"] for title in layout["annotations"]] == ["cost in $"]
    assert layout["grid"]["columns"] == 3 and layout["grid"]["rows"] == 1


@pytest.mark.parametrize("what", ["picture", "points", "words", "too much", "nothing"])
def test_what_is_not_lines_and_bars_alone_stays_a_picture(what):
    pytest.importorskip("matplotlib")
    figure, axis = plotting.single(3, 3)
    if what != "nothing":
        axis.plot([0, 1], [0, 1])
    if what == "picture":
        axis.imshow(np.zeros((2, 2)))
    elif what == "points":
        axis.scatter([0], [0])
    elif what == "words":
        axis.text(0, 0, "here")
    elif what == "too much":
        axis.plot(np.zeros(charts.MOST))
    assert charts.chart_of(figure) is None


def test_levels_among_bars_are_lines_with_gaps():
    pytest.importorskip("matplotlib")
    figure, axis = plotting.single(3, 3)
    axis.bar([0, 1], [2, 3], label="a")
    axis.hlines([1, 2], [-0.4, 0.6], [0.4, 1.4], color="black", label="chance")
    (levels,) = [t for t in charts.chart_of(figure)["data"] if t["name"] == "chance"]
    assert levels["x"] == [-0.4, 0.4, None, 0.6, 1.4, None]
    assert levels["y"] == [1, 1, None, 2, 2, None]
    axis.vlines([0], [0], [1])
    assert charts.chart_of(figure) is None


@pytest.mark.parametrize("count", [10, charts.MOST, charts.MOST + 1])
def test_a_map_tells_of_each_point_what_it_is(count):
    step = 1 if count <= charts.MOST else 2
    rows = np.arange(count)
    xy = np.stack([rows, -rows], 1) / 7
    odd = charts.Group("odd", rows[1::2], "#112233", "x")
    even = charts.Group("even", rows[::2], "#445566")
    value = charts.Group("", rows, np.where(rows < 4, np.nan, rows))
    names = [str(row) for row in rows]
    points = charts.Points(names, [f"<b>{name}" for name in names], "things")
    chart = scripts.harmless(charts.map_of(xy, [("kind", [odd, even]), ("<i>", [value])], points))
    assert chart["looks"] == [("kind", [0, 1]), ("<i>", [2])]
    told = chart["points"]
    assert told["names"] == names[::step] and told["about"][1] == f"<b>{names[step]}"
    assert bool(told["left_out"]) == (step > 1)
    crosses, circles, coloured = chart["data"]
    assert (crosses["marker"]["symbol"], circles["marker"]["symbol"]) == ("x", "circle")
    assert crosses["visible"] and not coloured["visible"] and coloured["marker"]["showscale"]
    assert coloured["marker"]["color"][0] is None
    for trace in chart["data"]:
        shown = [int(told["names"][number]) for number in trace["customdata"]]
        np.testing.assert_allclose(trace["x"], xy[shown, 0], rtol=1e-5)
    assert len(coloured["x"]) == -(-count // step) == len(crosses["x"]) + len(circles["x"])


def test_a_page_runs_its_own_scripts_and_holds_the_library_once(library, run, tmp_path):
    report.add_section(run, 2, name="y", title="", body=report.figure(curve(tmp_path / "b.png")))
    page = Scripts(run.report.read_text())
    assert [kind for kind, _ in page.texts] == [*["application/json"] * 2, "text/plain", "code"]
    (packed,), (code,) = page.of("text/plain"), page.of("code")
    assert gzip.decompress(base64.b64decode(packed)).decode() == library
    allowed = dict(part.split(" ", 1) for part in page.policy.split("; "))
    named = set(allowed["script-src"].split())
    assert named == {f"'sha256-{digest(text)}'" for text in (code, library)}
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:"
    assert page.tags.count("script") == 4 and page.tags.count("img") == 2
    assert "://" not in code


def test_names_of_data_are_neither_markup_nor_numbers_that_are_none(library, run):
    page = run.report.read_text()
    (chart,) = charts_of(page)
    line = next(trace for trace in chart["data"] if trace["mode"] == "lines+markers")
    assert line["y"] == [0.5, None, 0.25]
    for text in (line["name"], chart["layout"]["yaxis"]["title"]["text"]):
        assert not set("<>") & set(text) and re.fullmatch(r"([^&]|&(amp|lt|gt);)*", text)
        assert text.startswith("&lt;/script&gt;") and "&amp;lt;b&amp;gt; &amp; " in text
        assert "$x_{$%{y}" in text
    (json_text,) = Scripts(page).of("application/json")
    assert json_text.isascii() and not set("<>&'") & set(json_text)
    assert Scripts(page).tags.count("script") == 3 and "<img src=x" not in page


def test_without_plotly_a_page_runs_nothing_and_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(scripts, "are_drawn", lambda: False)
    report.add_section(run, 2, name="y", title="", body=report.note("y"))
    page = Scripts(run.report.read_text())
    assert not page.texts and "img" in page.tags and "script-src 'none'" in page.policy
    assert run.report.read_text().count("pip install &#39;decur[explain]&#39;") == 1
    shutil.rmtree(run.path / "report")
    report.add_section(run, 2, name="y", title="", body=report.note("y"))
    assert "decur[explain]" not in run.report.read_text()


def test_small_pictures_lie_in_a_sheet_row_by_row():
    pictures = np.zeros((5, 8, 8, 3), np.uint8)
    pictures[4] = 255
    packed = report.sheet(pictures, columns=3).partition("data:image/jpeg;base64,")[2]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))))
    assert pixels.shape == (16, 24, 3)
    assert pixels[8:, 8:16].min() > 200 and pixels[:8].max() < 50 and pixels[8:, 16:].max() < 50


@pytest.mark.slow
def test_a_browser_draws_it_with_names_as_they_are(run, tmp_path):
    pytest.importorskip("plotly")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("needs chromium")
    page = tmp_path / "page.html"
    shutil.copy(run.report, page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    flags += [f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom"]
    done = subprocess.run([chromium, *flags, str(page)], capture_output=True, timeout=120)
    dom = done.stdout.decode()
    found = Scripts(dom)
    assert 'class="main-svg"' in dom and 'class="zoom" hidden' in dom
    assert "<title>owned" not in dom and found.tags.count("img") == 1
    drawn = dom[dom.index('class="drawn') : dom.index("</figure>")]
    words = "".join(re.findall(r"<t(?:ext|span)[^>]*>([^<]*)", drawn)).replace("\xa0", " ")
    assert unescape(words).count("</script><!--<script>document.title='owned'</script><img") == 3
    assert unescape(words).count("&lt;b&gt; & <b>bold</b></a>") == 3  # title, axis and legend
    assert all(link is None or link.startswith("data:image/") for link in found.links)


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ((0.09, 3), ["0.1", "0.2", "0.5", "1", "2"]),
        ((0.5, 2e4), ["1", "10", "100", "1000", "10000"]),
    ],
)
def test_marks_on_a_logarithmic_axis_are_whole_numbers(limits, names):
    figure, axis = plotting.single(4, 3)
    axis.plot([1, 2], limits)
    axis.set(yscale="log", ylim=limits)
    told = charts.chart_of(figure)["layout"]["yaxis"]
    assert told["ticktext"] == names and told["tickvals"] == [float(name) for name in names]
