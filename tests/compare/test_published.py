"""The shipped tables against the paper itself, and against what its text says of them."""

import math
import re
from pathlib import Path

import pytest

from decur.compare.tables import check_names, find, published_scores, published_table
from decur.errors import ConfigError

PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"
SCORES = published_scores()
TABLES = dict(list(SCORES.groupby("table", sort=False)))

# Where the parts of a table stand in the paper's: number, and cells of a line, the first the name.
PARTS = {
    "table1-multimodal": (1, (0, 1, 2)),
    "table1-sar": (1, (3, 4, 5)),
    "table1-optical": (1, (6, 7, 8)),
    "table2-multimodal": (2, (0, 1, 2, 3, 4)),
    "table2-rgb": (2, (5, 6, 7, 8, 9)),
    "table3-sunrgbd": (3, (0, 1, 2, 3)),
    "table3-nyu": (3, (4, 5, 6, 7)),
    "table4-bigearthnet": (4, (0, 1, 2, 3, 4)),
    "table4-geonrw": (4, (0, 5, 6, 7, 8)),
    "table5-bigearthnet": (5, (0, 1)),
    "table5-geonrw": (5, (0, 2)),
    "table6-bigearthnet": (6, (0, 1, 2)),
    "table6-geonrw": (6, (0, 1, 3)),
    "table7-bigearthnet": (7, (0, 1)),
    "table7-geonrw": (7, (0, 2)),
}
SUPPLEMENT = {name: (number - 5, cells) for name, (number, cells) in PARTS.items() if number > 5}
MODAL = {"RGB": "rgb", "RGBD": "rgb+depth"}
SCORE = re.compile(r"[+-]?\d+(\.\d+)?|-")


def lines(file: str, number: int, cells: tuple[int, ...]) -> list[list[str]]:
    """The lines of a part of a table that hold scores, as cells."""
    text = (PAPER / file).read_text()
    body = re.split(rf"^\**Table {number}:", text, flags=re.M)[1].split("\n\n")[1]
    found = []
    for line in re.sub(r"</?b>", "", body).splitlines():
        every = [cell.strip() for cell in line.split("\t")]
        part = [every[i] if i < len(every) else "" for i in cells]
        if part[0] and any(SCORE.fullmatch(s) for cell in part[1:] for s in cell.split("/")):
            found.append(part)
    return found


def scores(cells: list[str], columns: int) -> list[str]:
    """The scores of a line; a cell with one for two columns gives it to both."""
    cells = [cell for cell in cells if all(SCORE.fullmatch(s) for s in cell.split("/"))]
    each = columns // len(cells)
    assert each * len(cells) == columns
    return [s for cell in cells for s in (cell.split("/") if "/" in cell else [cell] * each)]


@pytest.mark.realdata
@pytest.mark.skipif(not PAPER.is_dir(), reason=f"no paper at {PAPER}")
@pytest.mark.parametrize(
    ("file", "name", "number", "cells"),
    [("decur-paper.md", name, *part) for name, part in PARTS.items()]
    + [("decur-supplement.md", name, *part) for name, part in SUPPLEMENT.items()],
)
def test_a_table_is_the_paper_s(file, name, number, cells):
    table, printed = TABLES[name], lines(file, number, cells)
    rows = [row for _, row in table.groupby(["method", "modalities"], sort=False)]
    if "MM" in " ".join(table["column"]):  # columns of several sensors
        rows = [row for _, row in table.groupby("method", sort=False)]
    assert len(rows) == len(printed) >= 3
    first: list[float] = []
    for row, (label, *rest) in zip(rows, printed, strict=True):
        assert set(row["method"]) == {re.sub(r" \[\d+\]", "", label)}
        if (citation := re.search(r"\[\d+\]", label)) and file == "decur-paper.md":
            assert row["reference"].str.startswith(f"{citation[0]} ").all()
        texts = scores(rest, len(row))
        values = [math.nan if text == "-" else float(text) for text in texts]
        if any(text[0] in "+-" and len(text) > 1 for text in texts):  # a difference to the first
            values = [f + v for f, v in zip(first, values, strict=True)]
        first = first or values
        assert row["value"].tolist() == pytest.approx(values, nan_ok=True)
        for cell in rest:
            if cell in MODAL:
                assert set(row["modalities"]) == {MODAL[cell]}
            elif not SCORE.fullmatch(cell.split("/")[0]):
                assert set(row["backbone"]) == {cell.replace("RN50", "ResNet-50")}


def test_every_table_of_the_paper_ships():
    assert {name for name in TABLES if name.startswith("table")} == set(PARTS)
    assert set(TABLES) - set(PARTS) == {"figure3a", "figure4"}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_where_it_comes_from_and_how_it_was_measured(name):
    table = TABLES[name]
    kind, number = re.match(r"(table|figure)(\d)", name).groups()
    assert table["source"].str.startswith(f"{kind.title()} {number}").all()
    assert (table[["section", "data", "metric", "column", "method"]] != "").all(axis=None)
    assert not table.duplicated(["method", "modalities", "column"]).any()
    assert table["note"].iloc[0]
    assert set("+".join(table["modalities"]).split("+")) <= {"s1", "s2", "rgb", "dem", "depth"}
    stated = (table["training"] != "") & table["label_fraction"].notna()
    assert stated.all() if kind == "table" else not stated.any()


def test_all_scores_are_in_range_and_one_measurement_has_one_value():
    assert SCORES["value"].dropna().between(0, 100).all()
    assert SCORES["label_fraction"].dropna().between(0, 1, inclusive="right").all()
    assert set(SCORES["training"]) == {"", "frozen", "fine-tuned", "supervised"}
    measured = SCORES[SCORES["table"].str.startswith("table")].dropna(subset="value")
    measurement = ["table", "method", "modalities", "training", "label_fraction", "metric"]
    assert (measured.groupby(measurement)["value"].nunique() == 1).all()


def value(name: str, method: str, column: str) -> float:
    table = TABLES[name]
    (found,) = table[(table["method"] == method) & (table["column"] == column)]["value"]
    assert not math.isnan(found)
    return found


@pytest.mark.parametrize(
    ("name", "method", "column", "expected"),
    [
        ("table1-multimodal", "DeCUR (ours)", "1 % linear", 79.8),
        ("table1-sar", "BT-SAR", "100 % fine-tuned", 81.6),
        ("table1-optical", "SkySense", "10 % fine-tuned", 88.7),
        ("table2-multimodal", "VICReg", "100 % frozen", 38.0),
        ("table2-rgb", "Supervised", "100 % frozen", 38.8),
        ("table3-nyu", "OMNIVORE", "mIoU", 54.0),
        ("table4-geonrw", "with DA", "GeoNRW-RGB 1 %", 30.2),
        ("table5-geonrw", "w/o intra", "1 % fine-tuned", 34.3),
        ("table6-bigearthnet", "Rand. Init.", "1 % frozen", 57.7),
        ("table7-bigearthnet", "CBAM", "1 % frozen", 73.1),
    ],
)
def test_single_scores(name, method, column, expected):
    assert value(name, method, column) == expected


@pytest.mark.parametrize(
    ("name", "other", "column", "lead"),
    [  # differences that the text of sections 5.1 to 5.3 states
        ("table1-multimodal", "SimCLR-cross", "1 % linear", 2.4),
        ("table1-multimodal", "SimCLR-cross", "100 % linear", 3.4),
        ("table1-multimodal", "Barlow Twins", "1 % linear", 1.1),
        ("table1-multimodal", "Barlow Twins", "1 % fine-tuned", 1.2),
        ("table1-multimodal", "Barlow Twins", "100 % linear", 3.0),
        ("table1-multimodal", "Barlow Twins", "100 % fine-tuned", 0.3),
        ("table1-sar", "CLIP", "100 % linear", 7.8),
        ("table1-sar", "BT-SAR", "1 % linear", 3.2),
        ("table1-sar", "BT-SAR", "1 % fine-tuned", 2.7),
        ("table1-sar", "BT-SAR", "100 % linear", 2.0),
        ("table1-sar", "BT-SAR", "100 % fine-tuned", 2.4),
        ("table2-multimodal", "SimCLR-cross", "1 % frozen", 11.7),
        ("table2-multimodal", "Barlow Twins", "1 % fine-tuned", 3.0),
        # the text has 12.1 "compared to CLIP", which is the lead over SimCLR-cross
        ("table2-rgb", "SimCLR-cross", "1 % frozen", 12.1),
        ("table2-rgb", "CLIP", "1 % frozen", 12.2),
        ("table2-rgb", "BarlowTwins-RGB", "1 % frozen", 3.6),
        ("table2-rgb", "BarlowTwins-RGB", "100 % frozen", 4.6),
        ("table2-rgb", "BarlowTwins-RGB", "1 % fine-tuned", 3.1),
        ("table2-rgb", "BarlowTwins-RGB", "100 % fine-tuned", 1.0),
    ],
)
def test_leads_that_the_text_states(name, other, column, lead):
    ours = value(name, "DeCUR (ours)", column)
    assert ours - value(name, other, column) == pytest.approx(lead)


@pytest.mark.parametrize(
    ("name", "lead"), [("table3-sunrgbd", (4.0, 1.3)), ("table3-nyu", (0.8, 0.6))]
)
def test_leads_over_clip_with_depth(name, lead):
    found = [
        value(name, "FCN (DeCUR)", column) - value(name, "FCN (CLIP)", column)
        for column in ("mIoU", "OA")
    ]
    assert found == pytest.approx(lead)


@pytest.mark.parametrize(
    ("ablation", "column", "full", "same"),
    [
        ("table4-bigearthnet", "BigEarthNet-MM 1 %", "table1-multimodal", "1 % linear"),
        ("table4-bigearthnet", "BigEarthNet-MM 100 %", "table1-multimodal", "100 % linear"),
        ("table4-bigearthnet", "BigEarthNet-SAR 1 %", "table1-sar", "1 % linear"),
        ("table4-bigearthnet", "BigEarthNet-SAR 100 %", "table1-sar", "100 % linear"),
        ("table4-geonrw", "GeoNRW-MM 1 %", "table2-multimodal", "1 % frozen"),
        ("table4-geonrw", "GeoNRW-MM 100 %", "table2-multimodal", "100 % frozen"),
        ("table4-geonrw", "GeoNRW-RGB 1 %", "table2-rgb", "1 % frozen"),
        ("table4-geonrw", "GeoNRW-RGB 100 %", "table2-rgb", "100 % frozen"),
    ],
)
def test_the_ablation_ends_at_the_full_method(ablation, column, full, same):
    assert value(ablation, "with RDA", column) == value(full, "DeCUR (ours)", same)


def test_find_takes_a_row_by_its_own_training():
    table = published_table("table2-multimodal")
    frozen = find(table, training="frozen", label_fraction=0.01, modalities=("dem", "rgb"))
    assert list(zip(frozen["method"], frozen["value"], strict=True)) == [
        ("Rand. Init.", 14.1),
        ("SimCLR-cross", 23.0),
        ("CLIP", 22.8),
        ("Barlow Twins", 31.2),
        ("VICReg", 27.4),
        ("DeCUR (ours)", 34.7),
    ]
    tuned = find(table, training=("fine-tuned", "supervised"), label_fraction=1)
    assert list(zip(tuned["method"], tuned["value"], strict=True)) == [
        ("Supervised", 44.0),  # printed twice, found once
        ("SimCLR-cross", 47.3),
        ("CLIP", 46.7),
        ("Barlow Twins", 48.4),
        ("VICReg", 45.1),
        ("DeCUR (ours)", 48.9),
    ]
    assert find(table, training="frozen", modalities=("rgb",)).empty


def test_find_by_metric_and_by_a_row_s_sensors():
    table = published_table("table3-nyu")
    both = find(table, modalities=("rgb", "depth"), metric="OA")
    assert both["value"].tolist() == [77.9, 76.4, 80.1, 80.3]  # none of OMNIVORE
    assert set(find(table)["metric"]) == {"mIoU", "OA"}
    assert find(table, modalities=("rgb",), metric="mIoU")["value"].tolist() == [29.2, 30.4, 31.2]


def test_find_does_not_guess_what_is_not_stated():
    figure = published_table("figure3a")
    assert find(figure, modalities=("s1", "s2"))["value"].tolist() == [87.5]
    assert find(figure, training="frozen").empty and find(figure, label_fraction=0.01).empty


def test_an_unknown_table_names_near_ones():
    with pytest.raises(ConfigError, match=r"'table1-sra'; there is .*table1-sar"):
        published_table("table1-sra")
    with pytest.raises(ConfigError, match=r"there is figure3a, .*table7-geonrw"):
        published_table("?")
    with pytest.raises(ConfigError, match=r"^tasks\.cover\.published: no published table 'x'"):
        check_names("tasks.cover.published", ["table1-sar", "x"])
