"""Explanations look at samples that the run was not trained on, where there are any, and say so."""

import shutil
from types import SimpleNamespace

import pytest
import yaml

from decur.data import BimodalTrifeature, PairedFolder, SyntheticScenes
from decur.explain.settings import unseen_part, was_trained_on
from decur.verdicts import Verdict

YES, NO, UNTOLD = Verdict.YES, Verdict.NO, Verdict.UNTOLD


@pytest.fixture
def run_on(tmp_path):
    """Make a folder with the configuration of a run on a data set."""

    def run_on(name: str, **options) -> str:
        data = {"class_path": name, "init_args": options}
        parts = {"data": data, "objective": {}, "views": {}}
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(parts))
        return str(tmp_path / "run")

    return run_on


def test_generated_data_goes_on_elsewhere():
    trained = SyntheticScenes(50, 32, seed=3)
    other = unseen_part(trained)
    assert not set(other.ids) & set(trained.ids) and len(other) == 50
    assert other.made_of | {"start": 0} == trained.made_of


def test_another_split_is_taken_where_there_is_one(make_pairs):
    root = make_pairs({"s1": 1, "s2": 1}, samples=6, size=16)
    ids = PairedFolder(root).ids
    rows = [f"{name},{'train' if i < 4 else 'test'}" for i, name in enumerate(ids)]
    (root / "splits.csv").write_text("\n".join(["id,split", *rows]) + "\n")
    assert unseen_part(PairedFolder(root, split="train")).ids == ids[4:]
    assert unseen_part(PairedFolder(root, split="test")) is None
    assert unseen_part(PairedFolder(root)) is None
    assert unseen_part(BimodalTrifeature(20, split="train")).split != "train"


def test_pictures_tell_what_was_trained_on(make_pairs, run_on, tmp_path):
    root = make_pairs({"s1": 1, "s2": 1}, samples=4, size=16)
    run, data = run_on("PairedFolder", root=str(root)), PairedFolder(root)
    assert was_trained_on(run, data, range(4)) == YES
    copied = PairedFolder(shutil.copytree(root, tmp_path / "copied"))
    assert was_trained_on(run, copied, [3]) == YES
    other = SimpleNamespace(
        ids=data.ids, read=lambda i: {"images": {"s1": data[i]["images"]["s1"] + 1}}
    )
    assert was_trained_on(run, other, range(4)) == NO  # the same names, of other pictures
    assert was_trained_on(run, SimpleNamespace(ids=["new"]), [0]) == NO
    shutil.rmtree(root)
    assert was_trained_on(run, copied, range(4)) == UNTOLD
