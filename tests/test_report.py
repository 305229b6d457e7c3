"""The page of a run: contents, order, tables; whole and by itself whatever it holds."""

import logging
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from decur import plotting, report
from decur.runs import RunFolder

NASTY = "<i>\"R&D'"


class _Outline(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.path, self.links, self.ids, self.sources, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        self.sources += [given["src"]] if "src" in given else []
        if tag not in ("meta", "img", "input"):
            self.path.append(tag)

    def handle_endtag(self, tag):
        assert self.path.pop() == tag

    def handle_data(self, data):
        self.text.append((self.path[-1] if self.path else "", data))


def _of(run):
    page = _Outline(run.report.read_text())
    assert not page.path
    return page


def test_sections_stand_in_order_with_a_list_of_contents(tmp_path):
    run = RunFolder(tmp_path / NASTY)
    report.add_section(run, 100, name="last", title=NASTY, body=report.paragraph("z"))
    assert not _of(run).links  # a list of one would tell nothing
    for order, name in ((20, "second"), (3, "first"), (20, "second-half")):
        report.add_section(run, order, name=name, title=name, body=report.paragraph(NASTY))
    page = _of(run)
    names = ["first", "second-half", "second", "last"]
    assert page.ids == sorted(names, key=page.ids.index) and set(page.ids) == set(names)
    assert page.ids[0] == "first" and page.ids[-1] == "last"
    assert page.links == [f"#{name}" for name in page.ids]
    assert [text for tag, text in page.text if tag == "h1"] == [NASTY]
    assert [text for tag, text in page.text if tag == "h2"][-1] == NASTY


def test_a_section_replaces_its_like_and_no_other(tmp_path):
    run = RunFolder(tmp_path / "run")
    report.add_section(run, 10, name="my-demo", title="mine", body="")
    report.add_section(run, 20, name="demo", title="old", body="")
    report.add_section(run, 30, name="demo", title="new", body="")
    assert _of(run).ids == ["my-demo", "demo"] and "old" not in run.report.read_text()


def test_sections_that_version_0_1_wrote_are_kept(tmp_path):
    run = RunFolder(tmp_path / "run")
    (run.path / "report").mkdir(parents=True)
    old = (
        "<section><h2>R&amp;D &lt;i&gt;</h2>\n<p>&quot;old&quot; &#x27;text&#x27;</p>\n</section>\n"
    )
    (run.path / "report" / "10-pretrain.html").write_text(old)
    report.add_section(run, 30, name="transfer", title="new", body="")
    page = _of(run)
    assert page.ids == ["pretrain", "transfer"] and page.links == ["#pretrain", "#transfer"]
    assert ("h2", "R&D <i>") in page.text and ("a", "R&D <i>") in page.text
    assert ("p", "\"old\" 'text'") in page.text


def test_numbers_stand_to_the_right_and_text_to_the_left():
    head = ["name", "share", "count", "spread", "what it is"]
    rows = [
        ["a", 0.123456, 12345.6, "0.5 ± 0.1 *", "long " * 10],
        [NASTY, float("nan"), 7, "–", "3 dogs and a cat"],
    ]
    text = report.table(head, rows)
    page = _Outline(text)
    cells = [text for tag, text in page.text if tag == "td"]
    assert cells[:3] == ["a", "0.123", "12,346"] and cells[5:8] == [NASTY, "–", "7"]
    assert text.count('<td class="number">') == 2 * 3 and text.count('<td class="short">') == 2
    assert text.count("<td>") == 2 and report.table(["x"], []).count("<th") >= 1


def test_pictures_are_inside_the_page(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    card = (report.label(NASTY), report.strip(NASTY, [report.thumbnail(pixels, NASTY)]))
    run = RunFolder(tmp_path / "run")
    png = tmp_path / "p.png"
    Image.fromarray(pixels).save(png)
    body = report.cards([card]) + report.figure(png, NASTY) + report.columns([report.note(NASTY)])
    report.add_section(run, 1, name="x", title="x", body=body + report.figure(png))
    page = _of(run)
    assert len(page.sources) == 3 and all(s.startswith("data:image/") for s in page.sources)
    captions = [text for tag, text in page.text if tag == "figcaption"]
    assert captions == [NASTY, NASTY]  # a figure without one has none
    assert "i" not in {tag for tag, _ in page.text}


def test_options_of_a_command_are_not_broken_behind_their_dashes():
    text = report.paragraph("decur a --run <b> --data.root c, well--known")
    assert "<p>decur a <span" in text and ">--run</span> &lt;b&gt; <span" in text
    assert text.count("<span") == 2 and ">--data.root</span> c, well--known</p>" in text
    assert '<span class="option">--run' in report.summary("", [], then=["decur b --run c"])


def test_pictures_have_no_paper_and_charts_have(tmp_path):
    pytest.importorskip("matplotlib")
    looks = {}
    for kind in ("sheet", "chart"):
        figure, axis = plotting.single(2, 2)
        if kind == "sheet":
            figure.colorbar(axis.imshow(np.zeros((4, 4))))
        else:
            axis.plot([0, 1], [0, 1])
        axis.set_title("words")
        path = plotting.save(figure, tmp_path / f"{kind}.png")
        looks[kind] = report.figure(path).split('"')[1]
        pixels = np.asarray(Image.open(path))  # (H, W, 4)
        assert (pixels[0, 0, 3] == 0) == (kind == "sheet")
        assert axis.title.get_color() == (plotting.INK if kind == "sheet" else "black")
    assert looks == {"sheet": "sheet", "chart": "chart"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_colours_by_day_and_night(tmp_path, scheme):
    run = RunFolder(tmp_path / "run")
    report.add_section(run, 1, name="x", title="x", body="")
    page = run.report.read_text()
    assert scheme in page and 'name="viewport"' in page
    assert "://" not in page and "url(" not in page and "@import" not in page


def test_a_report_escapes_and_keeps_its_sections_in_order(tmp_path):
    run = RunFolder(tmp_path / "a<b & 'c'")
    nasty = "<script>&\"'"
    report.add_section(
        run, 20, name="late", title=nasty, body=report.table(["x", nasty], [[nasty, 1.23456]])
    )
    report.add_section(
        run,
        10,
        name="early",
        title="first",
        body=report.paragraph(nasty) + report.details(nasty, nasty),
    )
    report.add_section(run, 20, name="late", title="second", body=report.paragraph("replaced"))
    page = run.report.read_text()
    assert "<script" not in page and "a&lt;b &amp; &#39;c&#39;" in page
    assert page.index("first") < page.index("second") and page.count("<section>") == 2
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    assert "iVBORw" not in page and nasty not in report.figure(picture, nasty)


def test_the_first_screen_stands_before_all_and_outside_the_contents(tmp_path):
    run = RunFolder(tmp_path / "run")
    body = report.summary(NASTY, [("agreement", "0.50", "0 by chance")], then=["decur explain run"])
    for order, name, title in ((10, "a", "A"), (0, "summary", ""), (20, "b", "B")):
        report.add_section(run, order, name=name, title=title, body=body if not title else "")
    page = _of(run)
    assert page.links == ["#a", "#b"]
    assert next(text for tag, text in page.text if tag == "p") == NASTY
    assert ("b", "0.50") in page.text and ("pre", "decur explain run") in page.text


def test_a_word_of_the_glossary_says_what_it_means(tmp_path):
    table = report.table(["", "by chance"], [["diagonal/common/a-b", 0.5], ["common", 1.0]])
    assert "drives it towards 1" in table and "looks at no picture" in table
    assert "title" not in report.table(["commonly"], [["0.5"], ["uncommon"]])


def test_charts_are_told_from_pictures(tmp_path):
    paper = np.full((40, 40, 3), 255, np.uint8)
    paper[20] = 0
    for name, pixels in (("chart", paper), ("photo", paper // 2)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert ('class="chart"' in report.figure(tmp_path / f"{name}.png")) == (name == "chart")


def test_a_curve_says_the_value_under_the_pointer(tmp_path):
    figure, axis = plotting.single(5, 3)
    (line,) = axis.plot([1, 2, 3], [0.5, np.nan, 0.25], "", color="red", marker="o", linewidth=0)
    axis.set_xlabel("epoch")
    plotting.legend(axis, [line], [NASTY], loc="center left", bbox_to_anchor=(1, 0.5))
    page = report.figure(plotting.save(figure, tmp_path / "curve.png"))
    told = re.findall(r'<circle cx="(\d+)" cy="(\d+)" r="6"><title>(.+?)</title>', page)
    pixels = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
    red = pixels[..., 0] - pixels[..., 1] > 200
    assert [unescape(text) for *_, text in told] == [
        f"{NASTY}: 0.5 (epoch 1)",
        f"{NASTY}: 0.25 (epoch 3)",
    ]
    for x, y, _ in told:
        rows, columns = np.nonzero(red[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7])
        assert abs(rows.mean() - 6) < 1.5 and abs(columns.mean() - 6) < 1.5


def test_names_of_classes_that_are_numbers_are_no_line_of_matplotlib(caplog):
    with caplog.at_level(logging.INFO):
        _, axes = plotting.subplots(1, 1, width=2)
        axes[0, 0].barh(["0", "1"], [1, 2])
    assert not caplog.text
