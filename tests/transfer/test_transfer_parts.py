"""Splits, draws, features and labels and their cache: each alone."""

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from make_bigearthnet_mm import make_bigearthnet_mm
from make_nyu import make_nyu
from make_sunrgbd import make_sunrgbd
from PIL import Image

from decur.data import SUNRGBD, BigEarthNetMM, NYUDepthV2, PairedFolder, SyntheticScenes, Target
from decur.data.folds import fold_split, without_fold
from decur.data.selection import select
from decur.digest import digest
from decur.encoders import TimmEncoder, build_encoder
from decur.errors import ConfigError, DataError
from decur.pretrain import LoaderSettings
from decur.transfer.evaluate import score_test_part
from decur.transfer.intervals import measure_intervals
from decur.transfer.settings import FitSettings, TransferSettings
from decur.transfer.splits import (
    Parts,
    choose_parts,
    draw_fraction,
    join,
    refuse_shared,
    shared_groups,
)
from decur.transfer.tasks import make_task
from decur.transfer.tasks.base import draw_confusion
from decur.transfer.trainee import rate_factor

HERE = LoaderSettings(workers=0)


def test_folds_never_split_a_group_and_test_every_sample_once():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 17, 200)]
    rows = np.sort(rng.choice(200, 150, replace=False))
    tested = []
    for fold in range(5):
        train, test = fold_split(rows, groups, 5, fold, seed=0)
        assert shared_groups(groups, train, test) == 0
        assert set(train) | set(test) == set(rows) and not set(train) & set(test)
        tested += test.tolist()
    assert sorted(tested) == rows.tolist()


def test_folds_without_groups_are_shuffled_by_seed():
    rows = np.arange(100)
    first, again, other = (fold_split(rows, None, 5, 1, seed)[1] for seed in (0, 0, 1))
    assert (first == again).all() and set(first) != set(other) and len(first) == 20
    assert first.tolist() != list(range(20, 40))


def test_a_fold_of_all_is_what_a_pretraining_leaves_out_whatever_the_seed():
    data = SyntheticScenes(30, 16, modalities=["optical", "sar"])
    task = make_task("cloud", data.targets["cloud"])
    labels = np.where(np.arange(30) % 3, 0.5, np.nan)
    seen = set(without_fold(data, 2, 4, 0).ids)
    for seed in (0, 1):
        settings = TransferSettings(folds=4, fold=2, folds_of="all", seed=seed)
        parts = choose_parts(data, data, task, labels, list(data.modalities), settings)
        test, train = set(parts.ids(parts.test)), set(parts.ids(parts.train))
        assert test and not test & seen and train <= seen and len(test | train) == 20


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("class", [0, 0, 1, 2]),
        ("multilabel", np.eye(3)[[0, 0, 1, 2]]),
        ("mask", np.eye(3)[[0, 1, 1, 2]]),
    ],
)
def test_what_is_held_out_leaves_each_class_a_sample_to_train_on(kind, labels, grouped, caplog):
    """Two units of ten show the last class, which some draws would hold out."""
    labels = np.repeat(np.array(labels), [3, 3, 2, 2], axis=0)
    labels = np.repeat(labels, 4 if grouped else 1, axis=0)
    data, test = (SyntheticScenes(n, 16, modalities=["sar"]) for n in (len(labels), 1))
    whole = join(data, test)
    whole.groups = [f"g{i // 4}" for i in range(len(whole))] if grouped else None
    task, everything = make_task("y", Target(kind, tuple("abc"))), np.append(labels, labels[:1], 0)
    for seed in range(12):
        settings = TransferSettings(val_fraction=0.3, seed=seed, freeze=False)
        parts = choose_parts(whole, data, task, everything, ["sar"], settings)
        assert not task.missing_classes(everything[parts.train]) and len(parts.val)
        assert shared_groups(whole.groups, parts.train, parts.val) == 0
        assert sorted([*parts.train, *parts.val]) == list(range(len(data)))
    assert "held out" not in caplog.text


def test_a_class_that_is_only_held_out_is_warned_of(caplog):
    """Of two groups one is held out, with all samples of one class or another."""
    whole = SyntheticScenes(9, 16, modalities=["sar"])
    whole.groups = list("ggggHHHHt")
    task, labels = (
        make_task("y", Target("class", tuple("abc"))),
        np.array([0, 1] * 2 + [2, 1] * 3)[:9],
    )
    settings = TransferSettings(val_fraction=0.3, freeze=False)
    data = SyntheticScenes(8, 16, modalities=["sar"])
    parts = choose_parts(whole, data, task, labels, ["sar"], settings)
    (lost,) = task.missing_classes(labels[parts.train])
    assert f"that show {lost!r} are held out to validate on; give" in caplog.text


@pytest.mark.parametrize(
    ("groups", "folds", "fold", "said"),
    [
        (None, 5, 5, "fold: must lie in 0 to 4"),
        (["a"] * 5 + ["b"] * 5, 3, 0, "needs 2 to 2 for 2 groups"),
        (None, 11, 0, "needs 2 to 10 for 10 samples"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(groups, folds, fold, said):
    with pytest.raises(ConfigError, match=said):
        fold_split(np.arange(10), groups, folds, fold, 0)


def test_a_fraction_is_drawn_without_replacement_by_seed_and_nested():
    rows = np.arange(1000) * 3
    tenth, again, other = (draw_fraction(rows, 0.1, seed) for seed in (0, 0, 1))
    assert len(np.unique(tenth)) == 100 and set(tenth) <= set(rows)
    assert (tenth == again).all() and set(tenth) != set(other)
    assert set(draw_fraction(rows, 0.01, 0)) < set(tenth)
    assert (draw_fraction(rows, 1.0, 0) == rows).all()


def test_a_fraction_keeps_every_class_and_says_so(caplog):
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    with caplog.at_level(logging.INFO):
        drawn = draw_fraction(np.arange(1000), 0.02, 0, labels, ("a", "b", "rare"))
    assert np.bincount(labels[drawn]).tolist() == [18, 2, 1]
    assert len(caplog.messages) == 1 and "'rare'" in caplog.messages[0]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ConfigError, match="label_fraction"):
        draw_fraction(np.arange(10), fraction, 0)


def test_encoders_run_once_for_the_same_weights_data_and_size(
    encoders, tmp_path, monkeypatch, features_of
):
    calls = []
    real = TimmEncoder.forward
    monkeypatch.setattr(
        TimmEncoder, "forward", lambda self, x: (calls.append(len(x)), real(self, x))[1]
    )

    def images_seen(target="cover", size=None, **options):
        calls.clear()
        data = SyntheticScenes(**{"samples": 20, "size": 32, **options}, modalities=list(encoders))
        features_of(data, target, encoders, tmp_path, HERE, size)
        return sum(calls)

    assert images_seen() == 40
    assert images_seen() == 0
    assert images_seen(target="moisture") == 0  # another label, the same features
    assert images_seen(size=48) == 40
    assert images_seen(seed=1) == 40
    assert images_seen(samples=19) == 38
    with torch.no_grad():
        next(encoders["sar"].parameters()).add_(1e-3)
    assert images_seen() == 20  # of one sensor only
    assert images_seen() == 0
    assert not list(tmp_path.glob(".*.tmp"))
    data = SyntheticScenes(samples=21, size=32, modalities=list(encoders))
    with ThreadPoolExecutor() as pool:  # at the same time: one computes, one waits for it
        both = [pool.submit(features_of, *(data, "cover", encoders, tmp_path, HERE)) for _ in "12"]
    assert sorted(one.result().computed for one in both) == [False, True]


def test_a_changed_labels_csv_is_read_again(label_folder, encoders, tmp_path, features_of):
    root = label_folder({0: "a", 1: "b"})
    first = features_of(PairedFolder(root), "kind", {}, tmp_path / "cache", HERE)
    (root / "labels.csv").write_text("id,kind:class\n0000,b\n0001,a\n")
    second = features_of(PairedFolder(root), "kind", {}, tmp_path / "cache", HERE)
    assert first.labels["kind"][:3].tolist() == [0, 1, -1] and second.labels["kind"][
        :3
    ].tolist() == [1, 0, -1]


def test_unreadable_samples_are_unknown_up_to_a_limit(label_folder, tmp_path, features_of):
    root = label_folder({i: "ab"[i % 2] for i in range(40)})
    (root / "s1" / "0003.npy").write_bytes(b"")
    data = PairedFolder(root)
    seen = features_of(data, "kind", {}, tmp_path, LoaderSettings(workers=0, max_bad=0.1))
    assert seen.labels["kind"][3] == -1 and (seen.labels["kind"][:3] >= 0).all()
    assert len(seen.bad) == 1 and "0003" in seen.bad[0][0]
    with pytest.raises(DataError, match=r"more than loader\.max_bad"):
        features_of(data, "kind", {}, tmp_path, HERE)


def test_what_another_label_needs_is_not_read(label_folder, tmp_path, features_of):
    root = label_folder({i: "ab"[i % 2] for i in range(40)})
    (root / "mask").mkdir()
    for i in range(40):
        Image.fromarray(np.full((32, 32), i % 2, np.uint8)).save(root / "mask" / f"{i:04d}.png")
    (root / "mask" / "0003.png").write_bytes(b"")
    data = PairedFolder(root)
    assert not features_of(data, "kind", {}, tmp_path, HERE).bad
    with pytest.raises(DataError, match=r"more than loader\.max_bad.*0003\.png"):
        features_of(data, "mask", {}, tmp_path, HERE)


def test_joined_data_reads_either_part():
    parts = SyntheticScenes(5, 32), SyntheticScenes(7, 32, start=100)
    both = join(*parts)
    assert len(both) == 12 and both.ids[5] == "0000100"
    for i in (0, 4, 5, 11):
        expected = parts[i > 4][i - 5 if i > 4 else i]
        assert torch.equal(both[i]["images"]["sar"], expected["images"]["sar"])
    with pytest.raises(DataError, match="differ in their modalities"):
        join(parts[0], SyntheticScenes(5, 32, modalities=["sar"]))


def test_schedules_and_defaults_are_the_papers():
    single, several, masks = (make_task("x", Target(k)) for k in ("class", "multilabel", "mask"))
    frozen = FitSettings().complete(several, freeze=True)
    assert (frozen.name, frozen.lr, frozen.weight_decay) == ("sgd", 0.5, 0)
    assert (frozen.momentum, frozen.epochs, frozen.crop) == (0.9, 100, (0.8, 1.0))
    factors = [rate_factor(done, frozen) for done in (0, 0.59, 0.6, 0.8)]
    assert factors == pytest.approx([1, 1, 0.1, 0.01])
    assert FitSettings().complete(single, freeze=False).lr == 0.05
    mask = FitSettings().complete(masks, freeze=True)
    assert (mask.name, mask.lr, mask.weight_decay) == ("adamw", 1e-4, 0.01)
    assert (mask.epochs, mask.crop, rate_factor(0.9, mask)) == (30, (0.2, 1.0), 1)
    poly = FitSettings(name="sgd", schedule="poly", steps=40000).complete(masks, freeze=False)
    assert (poly.lr, poly.weight_decay) == (0.01, 1e-5)
    assert rate_factor(0.5, poly) == pytest.approx(0.5**0.9)
    with pytest.raises(ConfigError, match=r"fit\.crop"):
        FitSettings(crop=(0.5, 1.2))


def test_what_was_mended_is_read_again_whatever_the_label(
    label_folder, encoders, tmp_path, features_of
):
    root, cache = label_folder({i: "ab"[i % 2] for i in range(40)}), tmp_path / "cache"
    table = (root / "labels.csv").read_text().replace("kind:class", "a:class,b:class")
    rows = [f"{line},{line[-1]}" if line[-1] in "ab" else line for line in table.splitlines()]
    (root / "labels.csv").write_text("\n".join([rows[0][:-2] + "ss", *rows[1:]]) + "\n")
    file = root / "s2" / "0003.npy"
    whole = file.read_bytes()
    file.write_bytes(b"")
    data = PairedFolder(root)
    encoder = build_encoder("test_resnet", data.modalities["s2"]).eval()
    loader = LoaderSettings(workers=0, max_bad=0.1)

    def seen(target):
        return features_of(PairedFolder(root), target, {"s2": encoder}, cache, loader)

    assert seen("a").labels["a"][3] == -1 and np.isnan(seen("b").features["s2"][3]).all()
    assert not seen("a").computed and len(seen("a").bad) == 1  # as it was: the pass is kept
    file.write_bytes(whole)
    for target in ("a", "b"):
        found = seen(target)
        assert found.labels[target][3] == 1 and not found.bad
        assert np.isfinite(found.features["s2"][3]).all()
        assert found.computed and not seen(target).computed


def test_every_setting_of_the_data_tells_it_apart(tmp_path):
    make_nyu(tmp_path / "nyu", range(1, 5), range(5, 7))
    rooms = [f"kv1/NYUdata/NYU{i:04d}" for i in range(1, 5)]
    make_sunrgbd(tmp_path / "sun", {"train": rooms[:2], "test": rooms[2:]})
    make_bigearthnet_mm(tmp_path / "big", [["Pastures"], ["Sea and ocean"]])
    root = str(tmp_path / "big")
    big, other = BigEarthNetMM(root), BigEarthNetMM(root, s1_folder="./BigEarthNet-S1-v1.0")
    assert digest(big) == digest(BigEarthNetMM(root, None)) != digest(other)
    for kind, folder in ((NYUDepthV2, "nyu"), (SUNRGBD, "sun")):
        one, same, raw = (
            kind(tmp_path / folder, size=(24, 32), filled=f) for f in (True, True, False)
        )
        assert digest(one) == digest(same) != digest(raw), kind
    scenes, moved = SyntheticScenes(5, 32), SyntheticScenes(5, 32, start=9)
    assert digest(scenes) == digest(pickle.loads(pickle.dumps(scenes)))
    assert digest(scenes) != digest(moved)
    chosen = [digest(select(data, ["sar"])) for data in (scenes, scenes, moved)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_link_to_nothing_in_the_data_is_no_error(label_folder):
    root = label_folder({i: "ab"[i % 2] for i in range(4)})
    before = digest(PairedFolder(root))
    (root / ".#labels.csv").symlink_to("user@host.1234")  # Emacs' lock
    assert digest(PairedFolder(root)) != before


def test_nothing_is_trained_on_and_tested_on(label_folder, tmp_path):
    root = label_folder({i: "ab"[i % 2] for i in range(40)})
    train, test, whole = (PairedFolder(root, split=s) for s in ("train", "test", None))
    refuse_shared(train, test)
    with pytest.raises(
        ConfigError, match="test_split: 10 samples are also trained on, such as '00"
    ):
        refuse_shared(whole, test)
    scenes = SyntheticScenes(5, 32)
    refuse_shared(scenes, SyntheticScenes(5, 32, seed=1))  # the same ids of other pictures
    with pytest.raises(ConfigError, match="5 samples"):
        refuse_shared(scenes, SyntheticScenes(5, 32))


@pytest.mark.parametrize("grouped", ["train", "test", "both"])
def test_parts_keep_their_groups_whether_or_not_the_others_have_some(grouped):
    train, test = (SyntheticScenes(4, 16, start=start, modalities=["sar"]) for start in (0, 90))
    train.groups = None if grouped == "test" else ["a", "a", "b", "b"]
    test.groups = None if grouped == "train" else ["x", "x", "y", "y"]
    whole = join(train, test)
    parts = Parts(whole, make_task("cloud", Target("scalar")), np.arange(4), np.arange(4, 8))
    assert parts.groups(parts.train) == train.groups
    assert parts.groups(parts.test) == test.groups
    assert len(set(whole.groups)) == (4 if grouped == "both" else 6)


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (range(4, 8), "sar is absent in all 4 samples to test on, and in 0 of 4 to train on: it"),
        (range(4), "sar is absent in all 4 samples to train on, and in 0 of 4 to test on: it"),
        (range(2, 6), None),
    ],
)
def test_a_sensor_that_a_part_lacks_is_told_of(lacking, said, caplog):
    data = SyntheticScenes(8, 16, modalities=["optical", "sar"])
    data.present["sar"][list(lacking)] = False
    task = make_task("moisture", Target("scalar"))
    parts = Parts(data, task, np.arange(4), np.arange(4, 8), modalities=["optical", "sar"])
    counts = {"train": len({*lacking} & {0, 1, 2, 3}), "test": len({*lacking} & {4, 5, 6, 7})}
    assert parts.absent == {"sar": counts}
    kept = task.keep(torch.tensor([[0.1], [0.2], [0.3], [0.5]]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    warnings = score_test_part(parts, kept, TransferSettings(bootstrap=0))["warnings"]
    assert [line.startswith(said) for line in warnings] == [True] if said else not warnings


def test_a_single_group_has_no_interval(caplog):
    task = make_task("y", Target("scalar"))
    kept = task.keep(torch.rand(6, 1), torch.rand(6))
    assert measure_intervals(task, kept, ["a"] * 6).limits == {}
    assert len(caplog.messages) == 1 and "a single group" in caplog.text
    assert measure_intervals(task, kept, ["a", "b"] * 3).limits == {}
    assert "2 groups, so its metrics have no interval; 3 groups are needed" in caplog.text
    assert set(measure_intervals(task, kept, ["a", "b", "c"] * 2).limits) == {"R2", "MAE"}


def test_names_of_classes_are_shown_as_they_are():
    figure = draw_confusion(np.eye(2), ("$x_{$", "a$b$"))
    figure.canvas.draw()  # where matplotlib would read formulas
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [r"\$x_{\$", r"a\$b\$"]
