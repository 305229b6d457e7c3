"""Explanations look at samples that the run was not trained on, where there are any, and say so."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from make_raster import write_placed

from decur.data import BimodalTrifeature, PairedFolder, PairedScenes, SyntheticScenes
from decur.data.base import Derived
from decur.data.folds import without_fold
from decur.data.packed import PackedPairs, pack
from decur.errors import DataError
from decur.explain.settings import folds_of, unseen_part, was_trained_on
from decur.verdicts import Verdict

FIRST = np.array([0])
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
    others = shutil.copytree(root, tmp_path / "others")
    for file in others.glob("s?/*.npy"):
        np.save(file, np.random.default_rng(1).normal(size=(1, 16, 16)).astype(np.float32))
    assert was_trained_on(run, PairedFolder(others), range(4)) == NO  # the same names
    shutil.rmtree(root)
    assert was_trained_on(run, copied, range(4)) == UNTOLD


def test_packed_pictures_are_known_in_whatever_numbers_and_sizes(make_pairs, tmp_path):
    data = PairedFolder(make_pairs({"s1": 1, "s2": 3}, samples=4, size=16))

    def read(root, **changes):
        """Open a folder with other statistics, or in another size."""
        changed = {name: m.with_(**changes).to_dict() for name, m in data.modalities.items()}
        return PairedFolder(root, changed)

    packs = []
    for name, source, quantize in (
        ("float", data, False),
        ("bytes", data, True),
        ("stretched", read(data.root, scaling="image"), True),
        ("small", read(data.root, size=(12, 12)), True),
    ):
        pack(source, tmp_path / name, quantize=quantize)
        packs.append(PackedPairs(tmp_path / name))
    for one in (data, *packs):
        for two in (data, *packs):
            assert was_trained_on("", one, range(4), two) == YES
    other = shutil.copytree(data.root, tmp_path / "other")
    for at, file in enumerate(sorted(other.glob("s?/*.npy"))):
        np.save(file, np.random.default_rng(at).normal(size=np.load(file).shape))
    for one in (data, *packs[:3]):
        assert was_trained_on("", PairedFolder(other), range(4), one) == NO
    # of another size, so that they may be pieces of what was trained on
    assert was_trained_on("", read(other, size=(8, 8)), range(4), packs[0]) == UNTOLD


def test_pictures_without_contrast_cannot_be_compared(make_pairs, tmp_path):
    data = PairedFolder(make_pairs({"s1": 1}, samples=2, size=16))
    flat = shutil.copytree(data.root, tmp_path / "flat")
    for file in flat.glob("s?/*.npy"):
        np.save(file, np.ones_like(np.load(file)))
    modality = {"s1": {"bands": ["a"], "scaling": "range", "value_range": [0, 2]}}
    assert was_trained_on("", PairedFolder(flat, modality), range(2), data) == UNTOLD


def test_the_edge_that_two_places_share_makes_them_no_one_place(make_pairs, tmp_path):
    root = make_pairs({"s1": 3}, samples=2, size=16)
    other = shutil.copytree(root, tmp_path / "other")
    for at, file in enumerate(sorted([*root.glob("s1/*.npy"), *other.glob("s1/*.npy")])):
        picture = 5 + np.random.default_rng(at).normal(size=(3, 16, 16)).astype(np.float32)
        picture[:, np.tri(16, dtype=bool)] = 0  # beyond the edge of a swath
        np.save(file, picture)
    data = PairedFolder(root)
    assert was_trained_on("", PairedFolder(other), range(2), data) == NO
    pack(data, tmp_path / "packed", quantize=True)
    assert was_trained_on("", PackedPairs(tmp_path / "packed"), range(2), data) == YES


def test_the_same_pictures_under_other_names_were_trained_on(make_pairs, run_on, tmp_path):
    root = make_pairs({"s1": 1, "s2": 1}, samples=4, size=16)
    run, data = run_on("PairedFolder", root=str(root)), PairedFolder(root)

    def renamed(name, change=0):
        """Write the pictures elsewhere as NAME0.npy..., a sensor alone, changed by a number."""
        for i, id_ in enumerate(data.ids):
            file = tmp_path / name / "s1" / f"{name}{i}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.load(root / "s1" / f"{id_}.npy") + np.float32(change))
        return PairedFolder(tmp_path / name)

    assert was_trained_on(run, renamed("copies"), range(4)) == YES
    assert was_trained_on(run, renamed("others", 1), range(4)) == NO


def test_windows_of_a_scene_were_trained_on_where_they_overlap(tmp_path):
    for name in ("s1", "s2"):
        write_placed(tmp_path / name / "place.tif", np.ones((1, 64, 192), np.float32))
    modality = {"bands": ["a"], "scaling": "range", "value_range": [0, 1]}
    modalities = {"s1": modality, "s2": modality}
    windows = PairedScenes(tmp_path, modalities=modalities, window=64)  # three, side by side
    other = PairedScenes(tmp_path, modalities=modalities, window=64, stride=32)
    assert (
        was_trained_on("", other, [other.ids.index(windows.ids[1])], Derived(windows, FIRST)) == NO
    )
    between = [i for i, id_ in enumerate(other.ids) if id_ not in windows.ids]
    assert was_trained_on("", other, between[:1], Derived(windows, FIRST)) == YES
    assert was_trained_on("", other, between[1:], Derived(windows, FIRST)) == NO
    smaller = PairedScenes(tmp_path, modalities=modalities, window=32)  # some of the same names
    assert set(smaller.ids) & set(windows.ids)
    assert was_trained_on("", smaller, range(len(smaller)), windows) == YES


def test_samples_of_one_file_are_told_apart_by_their_names(tmp_path):
    class OneFile(SyntheticScenes):
        def files(self, index):
            return [tmp_path / "all.mat"]

    (tmp_path / "all.mat").write_bytes(b"everything")
    trained, other = OneFile(10, 32), OneFile(10, 32, start=50)
    assert was_trained_on("", other, range(10), trained) == NO
    assert was_trained_on("", OneFile(10, 16), range(10), trained) == YES  # of another size


def test_the_fold_that_a_run_left_out_is_held_out(make_pairs, run_on):
    root = make_pairs({"s1": 1, "s2": 1}, samples=10, size=16)
    run, data = run_on("PairedFolder", root=str(root)), PairedFolder(root)
    assert folds_of(run, data) == (data, None)
    config = Path(run) / "config.yaml"
    whole = config.read_text()
    config.write_text(f"{whole}\nwithout_fold: 1\nfolds: 5\nfold_seed: 3\n")
    trained, left_out = folds_of(run, data)
    assert trained.ids == without_fold(data, 1, 5, 3).ids
    assert sorted([*trained.ids, *left_out.ids]) == data.ids and len(left_out) == 2
    assert was_trained_on(run, left_out, [0, 1]) == NO
    assert was_trained_on(run, trained, [0, 1]) == YES
    config.write_text(f"{whole}\nwithout_fold: 9\n")
    with pytest.raises(DataError, match="without_fold: fold: must lie in 0 to 4"):
        folds_of(run, data)
