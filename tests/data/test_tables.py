import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from make_folder import make_folder

from decur.data import PairedFolder
from decur.data.selection import join_columns
from decur.errors import ConfigError, DataError

IDS = [f"{i:02d}" for i in range(6)]


@pytest.fixture
def labelled(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS}, size=1)

    def make(text, file="labels.csv", encoding="utf-8", **options):
        (root / file).write_bytes(text.encode(encoding))
        return PairedFolder(root, **options)

    return make


def table(cells, header="id,label"):
    return header + "\n" + "".join(f"{i},{c}\n" for i, c in zip(IDS, cells, strict=False))


@pytest.mark.parametrize(
    "cells",
    [
        ("\"['b', 'a']\"", "\"['a']\"", "[]"),  # Python, pandas
        ("\"['b' 'a']\"", "\"['a']\"", "[]"),  # NumPy
        ('"[""b"", ""a""]"', '"[""a""]"', "[]"),  # JSON
        ("\"('b', 'a')\"", "\"('a',)\"", "()"),
        ('"[b, a]"', "[a]", "[]"),
        ("b;a", "a", ";"),
        ("b|a", "a", "|"),
        ('"b, a"', "a", ""),
    ],
)
def test_several_labels_in_a_cell(labelled, cells):
    data = labelled(table(cells))
    target = data.targets["label"]
    assert (target.kind, target.classes) == ("multilabel", ("a", "b"))
    values = [data[i]["target"]["label"] for i in range(4)]
    assert [v.tolist() for v in values[:2]] == [[1, 1], [1, 0]]
    assert values[2].isnan().all() if cells[2] == "" else values[2].tolist() == [0, 0]
    assert values[3].isnan().all()
    assert "label: 2 classes, several at a time" in data.describe()


def test_names_with_quotes_and_commas_stay_whole(labelled):
    text = table(('"[""Farmer\'s land"", \'inland, wet\']"', "\"['inland, wet']\""))
    assert labelled(text).targets["label"].classes == ("Farmer's land", "inland, wet")
    text = table(('"railway, station"', "forest", '"highway, square"', "forest"))
    target = labelled(text).targets["label"]
    assert target.kind == "class" and "railway, station" in target.classes


def test_no_value_is_written_in_many_ways(labelled, caplog):
    unknown = ["N/A", "NULL", "None", "#N/A", "<NA>"]
    data = labelled(table(["2.5", *unknown]))
    assert data[0]["target"]["label"] == 2.5
    assert all(data[i]["target"]["label"].isnan() for i in range(1, 6))
    text = table(["2.5", "-9999", "-9999", "3.5"])
    labelled(text)
    assert "'label' holds -9999 in 2 rows" in caplog.text and "label_nodata -9999" in caplog.text
    values = [labelled(text, label_nodata=-9999)[i]["target"]["label"].item() for i in range(4)]
    np.testing.assert_array_equal(values, [2.5, np.nan, np.nan, 3.5])


def test_the_header_decides(labelled):
    text = "id,a:number,b:class,c:multilabel,d:scalar\n00,1,1.5,x,1\n01,2,2.5,y,2\n"
    kinds = {name: spec.kind for name, spec in labelled(text).targets.items()}
    assert kinds == {"a": "scalar", "b": "class", "c": "multilabel", "d": "scalar"}
    said = labelled(text).describe()
    assert "labels a: number, b: 2 classes, c: 2 classes, several at a time, d: number" in said


@pytest.mark.parametrize(
    ("text", "file", "encoding"),
    [
        ("id;height\n00;1,5\n01;2\n", "labels.csv", "utf-8-sig"),
        ("id\theight\n00\t1,5\n01\t2\n", "labels.tsv", "utf-8"),
        ("id\theight\n00\t1,5\n01\t2\n", "labels.csv", "utf-16"),  # Excel's Unicode text
        ("sep=;\nid;height\n00;1,5\n01;2\n", "labels.csv", "utf-8"),
        ("id,height\n00,1.5\n01,2\n", "Labels.CSV", "utf-8"),
        ("id,height,note\n00,1.5,a\x0cb\u2028c\n01,2,d\n", "labels.csv", "utf-8"),
    ],
)
def test_separators_and_encodings(labelled, text, file, encoding):
    data = labelled(text, file, encoding)
    assert data.targets["height"].kind == "scalar"
    assert [data[i]["target"]["height"].item() for i in (0, 1)] == [1.5, 2]


def test_numbers_that_are_not_written_as_such_are_no_classes(labelled, caplog):
    assert labelled("id;height\n00;1.234,5\n01;2,5\n")[0]["target"]["height"] == 1234.5
    ambiguous = table(['"1,5"', '"2,5"', "3"])
    with pytest.raises(DataError, match=r"'1,5' is a number .* write label:number or label:multi"):
        labelled(ambiguous)
    assert labelled(table(['"1,5"', "3"], "id,label:number"))[0]["target"]["label"] == 1.5
    for cells in (['"1,234.5"', "1.5", "2"], ["10%", "20%"], ["1.5 m"]):
        caplog.clear()
        data = labelled(table(cells))
        assert not data.targets and "left out: column label (no label)" in data.describe()
        odd = cells[0].strip('"')
        assert f"most cells are numbers and '{odd}' is none" in caplog.text
    assert labelled(table(["1.0;2.0", "2.0"])).targets["label"].classes == ("1", "2")
    assert labelled(table(["2 lanes", "3 lanes"])).targets["label"].classes == (
        "2 lanes",
        "3 lanes",
    )


def test_what_may_be_meant_otherwise_is_told(labelled, caplog):
    caplog.set_level("INFO", "decur")
    labelled(table(["NA", "DE", "de", "FR"]))
    assert "'NA' means unknown; if it is a class, write it otherwise" in caplog.text
    assert "'DE', 'de' are different classes; write them alike if they are one" in caplog.text
    labelled(table(["0", "1", "255"]))
    assert "'label' holds 255 in 1 rows" in caplog.text
    caplog.clear()
    labelled(table(["-1", "1"]))
    assert "label_nodata" not in caplog.text


def test_lists_of_0_and_1_say_of_each_class(labelled):
    data = labelled(table(['"[1, 0, 1]"', '"[0.0, 0.0, 1.0]"', "[0 0 0]"]))
    assert data.targets["label"].classes == ("0", "1", "2")
    values = [data[i]["target"]["label"].tolist() for i in range(3)]
    assert values == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    named = labelled(table(['"[1, 0]"', "[1]"]))  # of several lengths: names of classes
    assert named[1]["target"]["label"].tolist() == [0, 1]


def test_parquet_as_pandas_writes_it(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS}, size=1)
    frame = pd.DataFrame(
        {
            "id": IDS,
            "tags": [["a"], ["b", "a"], [], None, ["a"], ["b"]],
            "count": pd.array([1, 2, None, 1, 2, 1], dtype="Int64"),
            "grade": [1.0, 2.0, np.nan, 1.0, 2.0, 1.0],
            "height": [0.5, 1.5, np.nan, 1, 2, 3],
        }
    )
    frame.to_parquet(root / "labels.parquet")
    data = PairedFolder(root)
    targets = {name: (spec.kind, spec.classes) for name, spec in data.targets.items()}
    assert targets == {
        "tags": ("multilabel", ("a", "b")),
        "count": ("class", ("1", "2")),
        "grade": ("class", ("1", "2")),
        "height": ("scalar", ()),
    }
    assert data[1]["target"]["tags"].tolist() == [1, 1] and data[2]["target"]["grade"] == -1
    frame.to_csv(root / "labels.csv", index=False)
    with pytest.raises(DataError, match=r"labels\.csv: there is labels\.parquet, too; keep one"):
        PairedFolder(root)
    (root / "labels.parquet").unlink()
    again = PairedFolder(root)
    assert again.targets == data.targets
    for i in range(6):
        torch.testing.assert_close(again[i]["target"], data[i]["target"], equal_nan=True)


def test_one_hot_columns_are_one_label(labelled):
    text = "id,is_water,is_wood,level\n00,0,1,3\n01,1,1,4\n02,,0,3\n"
    data = join_columns(labelled(text), "is_*")
    assert data.targets["is_*"].classes == ("water", "wood")
    assert data.targets["is_*"].kind == "multilabel" and "is_water" not in data.targets
    assert [data[i]["target"]["is_*"].tolist() for i in (0, 1)] == [[0, 1], [1, 1]]
    assert data[2]["target"]["is_*"].isnan().tolist() == [True, False]
    alone = pickle.loads(pickle.dumps(data.only(["s1"], ["is_*"])))
    assert set(alone.targets) == {"is_*"} and alone[1]["target"]["is_*"].tolist() == [1, 1]
    assert set(data.only(None, ["level"]).targets) == {"level"}
    for wrong, match in (("has_*", "matches no label"), ("*", "'level' is no such column")):
        with pytest.raises(ConfigError, match=match):
            join_columns(data.data, wrong)
