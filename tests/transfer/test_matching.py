"""Labels of data elsewhere get the classes of the data that is trained on."""

import numpy as np
import pytest
import torch

from decur.data import PairedDataset, SyntheticScenes, Target
from decur.errors import DataError
from decur.transfer.matching import match_label
from decur.transfer.splits import join
from decur.transfer.tasks import make_task

NAN = float("nan")


class Labelled(PairedDataset):
    """Samples without pictures, and the labels that are given."""

    def __init__(self, name, target, values):
        self.modalities = SyntheticScenes(1, 16, modalities=["sar"]).modalities
        self.ids = [str(i) for i in range(len(values))]
        self.present = {"sar": np.ones(len(values), bool)}
        self.targets, self.values = {name: target, "more": Target("scalar")}, values
        self.name = name

    def read(self, index):
        label = torch.as_tensor(self.values[index])
        return {"id": self.ids[index], "images": {}, "target": {self.name: label}}


@pytest.mark.parametrize(
    ("kind", "classes", "values", "expected"),
    [
        ("class", "bc", [0, 1, -1], [1, 2, -1]),
        ("class", "ab", [0, 1, -1], [0, 1, -1]),
        ("class", "cab", [0, 1, 2], [2, 0, 1]),
        ("multilabel", "cb", [[1.0, 0.0], [NAN, NAN]], [[0, 0, 1], [0, NAN, NAN]]),
        ("mask", "bc", [[[0, 1], [255, 1]]], [[[1, 2], [255, 2]]]),
        ("mask", "ab", [[[0, 1], [255, 1]]], [[[0, 1], [255, 1]]]),
    ],
)
def test_classes_are_matched_by_name(kind, classes, values, expected, caplog):
    caplog.set_level("INFO")
    task = make_task("y", Target(kind, tuple("abc")))
    data = Labelled("y", Target(kind, tuple(classes)), values)
    matched = match_label(data, task, "test_data")
    assert matched.targets == {"y": task.target}
    for row, label in enumerate(expected):
        found = matched[row]["target"]["y"]
        assert found.dtype == data[row]["target"]["y"].dtype
        np.testing.assert_array_equal(found, np.array(label))
    said = [line for line in caplog.messages if "matched by name" in line]
    assert len(said) == (classes != "ab")
    train = Labelled("y", task.target, values[:0]).only(targets=["y"])
    assert join(train, matched)[0]["target"]["y"].tolist() == matched[0]["target"]["y"].tolist()


@pytest.mark.parametrize("target", [Target("scalar"), Target("class", tuple("abc"))])
def test_a_label_that_another_sensor_tells_is_taken_as_it_is(target):
    task = make_task("y", Target(target.kind, target.classes, ("sar",)))
    matched = match_label(Labelled("y", target, [0.5 if target.kind == "scalar" else 2]), task, "x")
    assert matched.targets == {"y": task.target}
    assert matched[0]["target"]["y"] == (0.5 if target.kind == "scalar" else 2)


def test_masks_of_more_than_255_classes_have_another_value_for_unknown():
    many = tuple(map(str, range(300)))
    data = Labelled("y", Target("mask", many[1:3]), [[[0, 255]]])
    found = match_label(data, make_task("y", Target("mask", many)), "test_data")
    assert found[0]["target"]["y"].tolist() == [[1, -1]]


@pytest.mark.parametrize(
    ("kind", "other", "said"),
    [
        ("class", Target("class", ("b", "x")), "no class 'x' of 'y', only 'a', 'b', 'c'; label"),
        ("mask", Target("mask", ("a", "0")), "no class '0' of 'y', .*; name the classes .*txt"),
        ("class", Target("scalar"), "taken for number, .* for 3 classes; write y:class in the"),
        ("multilabel", Target("class", ("a",)), "write y:multilabel in the header"),
        ("mask", Target("class", ("a",)), "for 3 classes by pixel; label both alike"),
    ],
)
def test_labels_that_do_not_fit_are_refused(kind, other, said):
    task = make_task("y", Target(kind, tuple("abc")))
    with pytest.raises(DataError, match=f"^test_data: .*{said}"):
        match_label(Labelled("y", other, [0]), task, "test_data")


def test_a_label_or_a_column_that_is_not_there_is_named():
    data = Labelled("is_a", Target("class", ("0", "1")), [1])
    with pytest.raises(DataError, match=r"has no label 'y', .* there is is_a, more"):
        match_label(data, make_task("y", Target("scalar")), "test_data")
    with pytest.raises(DataError, match=r"has no column 'is_b', which 'is_\*' joins"):
        match_label(data, make_task("is_*", Target("multilabel", ("a", "b"))), "test_data")
