"""How a training on labels may differ from the paper's: weights, rates, validation, other data."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.functional import cross_entropy

from decur.cli import main
from decur.data import SyntheticScenes, Target
from decur.encoders import build_encoder
from decur.errors import ConfigError
from decur.transfer import CMX, FitSettings, LateFusion, TransferSettings, evaluate, trainee
from decur.transfer.engine import Best
from decur.transfer.tasks import make_task
from decur.transfer.trainee import fine_tuning_groups

SCENES = [
    *("--data=SyntheticScenes", "--data.samples=60", "--data.size=32"),
    "--data.modalities=[optical,sar]",
]
TUNED = [*SCENES, "--target=cover", "--freeze=false"]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


# -- weights of classes ----------------------------------------------------------------------------


def test_balanced_weights_of_classes_are_those_of_scikit_learn():
    task = make_task("kind", Target("class", ("a", "b", "c")))
    labels = np.array([0] * 6 + [1] * 3 + [2])
    torch.manual_seed(0)
    output, batch = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 0])
    plain = task.loss(output, batch)
    task.weigh(labels)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    expected = cross_entropy(output, batch, torch.tensor(weights, dtype=torch.float32))
    assert torch.allclose(task.loss(output, batch), expected) and not torch.allclose(
        plain, expected
    )


def test_balanced_labels_count_present_and_absent_alike():
    task = make_task("cover", Target("multilabel", ("a", "b")))
    labels = np.array([[1, 1]] + [[0, 1]] * 3, np.float32)  # b has no absent sample
    task.weigh(labels)
    output = torch.zeros(4, 2)
    # every decision costs log 2; of class a, one present counts as much as three absent
    each = np.array([[2.0, 1], [2 / 3, 1], [2 / 3, 1], [2 / 3, 1]])
    expected = np.log(2) * each.mean()
    assert float(task.loss(output, torch.from_numpy(labels))) == pytest.approx(expected, rel=1e-6)


def test_balanced_pixels_leave_unknown_ones_out():
    task = make_task("mask", Target("mask", ("a", "b", "c")))
    task.weigh(np.array([[6, 0, 0], [0, 2, 0]]))  # nothing shows c
    torch.manual_seed(0)
    output, mask = torch.randn(1, 3, 1, 3), torch.tensor([[[0, 1, 255]]])
    weights = torch.tensor([8 / 2 / 6, 8 / 2 / 2, 0.0])
    expected = cross_entropy(output, mask, weights, ignore_index=255)
    assert torch.allclose(task.loss(output, mask), expected)
    assert float(task.loss(output, torch.full_like(mask, 255))) == 0


# -- rates and decay -------------------------------------------------------------------------------


CLASS, MASK = (make_task("label", Target(kind)) for kind in ("class", "mask"))


def rates_of(model, **options):
    settings = FitSettings(name="adamw", lr=1.0, weight_decay=0.1, **options)
    groups = fine_tuning_groups(
        model, settings.complete(CLASS, False, head=options.pop("head", "fcn"))
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_layers_decay_as_in_timm(name):
    data = SyntheticScenes(4, 32, modalities=["sar"]).modalities
    model = LateFusion({"sar": build_encoder(name, data["sar"])}, 3)
    plain = timm.create_model(name, in_chans=2, num_classes=3)
    scales = {}  # of timm's layers, whose last one is the head
    for group in param_groups_layer_decay(plain, 0.0, layer_decay=0.5):
        scales |= {id(p): group["lr_scale"] for p in group["params"]}
    theirs = {n: scales[id(p)] for n, p in plain.named_parameters()}
    own = rates_of(model, layer_decay=0.5, head_lr=3.0)
    assert own["head.weight"] == own["head.bias"] == (3.0, 0.1)
    body = {k.removeprefix("encoders.sar.backbone."): r for k, (r, _) in own.items()}
    body = {key: rate for key, rate in body.items() if not key.startswith("head.")}
    ratio = {body[key] / theirs[key] for key in body}
    assert len(set(body.values())) > 2 and len(ratio) == 1  # up to where the head stands


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0"])
@pytest.mark.parametrize("attention", ["rda", "cbam"])
def test_an_attention_has_the_rate_of_its_stage(name, attention):
    modality = SyntheticScenes(1, 32, modalities=["sar"]).modalities["sar"]
    plain, own = (
        rates_of(
            LateFusion({"sar": build_encoder(name, modality, attention=given)}, 3), layer_decay=0.5
        )
        for given in (None, attention)
    )
    added = own.keys() - plain.keys()
    assert added and {key: own[key] for key in plain} == plain
    for key in added:
        stage = key.partition("attention")[0]
        assert own[key] == max(rate for other, rate in plain.items() if other.startswith(stage))
    assert len({own[key] for key in added}) == 2  # of the last two stages


def test_biases_and_normalisations_are_spared_with_cmx():
    sensors = SyntheticScenes(4, 32, modalities=["optical", "sar"]).modalities
    model = CMX({name: build_encoder("mit_b0", m) for name, m in sensors.items()}, 3)
    settings = FitSettings(name="adamw", lr=1.0, weight_decay=0.1)
    decays = {}
    for group in fine_tuning_groups(model, settings.complete(MASK, False, head="cmx")):
        decays |= {id(p): group["weight_decay"] for p in group["params"]}
    for module in model.modules():  # as the public code tells them apart
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert decays[id(module.weight)] == 0.1
            assert module.bias is None or decays[id(module.bias)] == 0
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert decays[id(module.weight)] == decays[id(module.bias)] == 0
    assert len(decays) == len(list(model.parameters()))
    (alone,) = fine_tuning_groups(model, settings.complete(MASK, False))  # the paper's: all alike
    assert alone["weight_decay"] == 0.1 and len(alone["params"]) == len(decays)
    stages = rates_of(model, layer_decay=0.5)
    assert stages["encoders.sar.block4.0.norm1.weight"][0] == 0.5
    assert stages["encoders.sar.patch_embed1.proj.weight"][0] == 0.5**4


def test_a_sensor_may_stay_as_it_is(transferred, run_folder, refused):
    common = [*TUNED, f"--encoders={run_folder}", "--fit.epochs=1"]
    folder = transferred(*common, "--freeze_modalities=[sar]", "--fit.head_lr=0.01")
    state = load_file(folder / "model.safetensors")
    for name, stays in (("sar", True), ("optical", False)):
        start = load_file(run_folder / "encoders" / f"{name}.safetensors")
        same = [torch.equal(v, state[f"encoders.{name}.{key}"]) for key, v in start.items()]
        assert all(same) == stays
    assert "there is no 'dem'; choose from optical, sar" in refused(
        *common, "--freeze_modalities=[dem]"
    )
    assert "names all sensors" in refused(*common, "--freeze_modalities=[sar,optical]")


# -- validation ------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept_and_patience_runs_out():
    model, best = nn.Linear(1, 1), Best("accuracy", 2, 10)
    for epoch, score in enumerate([0.5, 0.8, 0.8, 0.7], start=1):
        nn.init.constant_(model.weight, epoch)
        assert not best.is_over
        best.look(epoch, score, model)
    assert best.is_over and best.plain()["best_epoch"] == 2
    again = Best("accuracy", 2, 10)
    again.load(best.saved())
    again.restore(model)
    assert again.is_over and float(model.weight.detach()) == 2
    undefined = Best("R2", None, 10)
    undefined.look(1, float("nan"), model)
    undefined.look(2, -3.0, model)
    assert undefined.epoch == 2 and not undefined.is_over


@pytest.mark.parametrize("how", [["--freeze=false"], ["--freeze=true", "--probe=sgd"]])
def test_a_validation_part_is_neither_trained_nor_tested_on(bright, transferred, how):
    """Rates that destroy what the first epochs learn: the last epoch would be the worst."""
    folder = transferred(
        *(f"--data.root={bright}", "--modalities=s1", "--folds=4", *how),
        *("--val_fraction=0.25", "--fit.epochs=6", "--fit.patience=3", "--fit.augment=false"),
    )
    found, metrics = (
        results_of(folder),
        np.genfromtxt(folder / "metrics.csv", names=True, delimiter=","),
    )
    part, scores = found["validation"], np.atleast_1d(metrics["valaccuracy"])
    train = (folder / "train_ids.txt").read_text().split()
    test = np.load(folder / "predictions.npz")["ids"].tolist()
    assert len(train) + part["samples"] + len(test) == 40 and part["samples"] > 0
    assert f"{len(train)} samples to train on and {part['samples']} to validate on (100 %" in (
        evaluate.sentence(found)
    )
    groups = [{int(i) // 4 for i in ids} for ids in (train, test)]
    assert not groups[0] & groups[1] and len(groups[0]) * 4 == len(train)
    assert part["best_epoch"] == int(scores.argmax()) + 1 and part["value"] == scores.max()
    assert part["last_epoch"] == len(scores) == min(6, part["best_epoch"] + 3)


def test_a_split_of_its_own_validates(label_folder, transferred, refused):
    names = ["train", "val", "test", "train"]
    root = label_folder(
        {i: float(i) for i in range(40)}, column="y:scalar", split=lambda i: names[i % 4]
    )
    common = [f"--data.root={root}", "--freeze=false", "--fit.epochs=2"]
    splits = ["--train_split=train", "--test_split=test", "--val_split=val"]
    folder = transferred(*common, *splits)
    found = results_of(folder)
    assert (found["train"], found["test"], found["validation"]["samples"]) == (20, 10, 10)
    assert found["validation"]["metric"] == "R2"
    rows = np.genfromtxt(folder / "metrics.csv", names=True, delimiter=",")
    assert (rows["valR2"] > -50).all()  # in the label's units, not in those of the loss
    assert "val_split: 20 samples are also trained on" in refused(
        *common, *splits[:2], "--val_split=train"
    )
    assert "train_split: is missing" in refused(*common, "--val_split=val")
    assert "there is a validation part of its own" in refused(
        *common, *splits, "--val_fraction=0.2"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--val_fraction=0.2"], "the probe ridge is solved without epochs; take --probe sgd"),
        (["--fit.class_weights=balanced"], "not for the probe ridge"),
        (["--freeze=false", "--fit.patience=2"], "fit.patience: needs a validation part"),
        (["--freeze=true", "--probe=sgd", "--fit.head_lr=1"], "fit.head_lr: is for fine-tuning"),
        (["--freeze=false", "--fit.layer_decay=2"], "fit.layer_decay: a factor in (0, 1], is 2"),
        (["--freeze=false", "--val_fraction=1"], "val_fraction: a share in [0, 1), is 1"),
        (["--freeze=true", "--freeze_modalities=[sar]"], "freeze_modalities: freeze is on"),
    ],
)
def test_what_would_not_be_done_is_refused(arguments, said, refused):
    assert said in refused(*SCENES, "--target=cover", *arguments)


@pytest.mark.parametrize(
    ("kind", "options", "fit", "said"),
    [
        ("class", {"probe": "logistic"}, {"lr": 0.1, "steps": 3}, "fit.lr, fit.steps: .*logistic"),
        ("scalar", {"probe": "auto"}, {"crop": (0.5, 1.0)}, "fit.crop: .* probe ridge"),
        ("class", {"probe": "logistic"}, {"momentum": 0.9, "milestones": (0.6, 0.8)}, None),
        ("class", {"probe": "sgd"}, {"lr": 0.1, "momentum": 0.5, "milestones": (0.5,)}, None),
        ("class", {"probe": "sgd"}, {"crop": (0.5, 1.0)}, "fit.crop: .*not augmented"),
        ("class", {"probe": "sgd"}, {"crop": (0.5, 1.0), "augment": True}, None),
        ("mask", {}, {"crop": (0.5, 1.0)}, None),
        (
            "mask",
            {},
            {"scales": (2.0,), "piece": (8, 8), "augment": False},
            "fit.scales, fit.piece",
        ),
        ("mask", {}, {"milestones": (0.5,)}, "fit.milestones: .*--fit.schedule steps"),
        ("mask", {}, {"momentum": 0.5}, "fit.momentum: .*AdamW"),
        ("class", {"freeze": False, "probe": "logistic"}, {"lr": 0.1}, "probe: logistic"),
        ("class", {"freeze": False, "probe": "sgd"}, {"lr": 0.1}, None),
        ("class", {"freeze": False, "probe": "auto"}, {"lr": 0.1}, None),
        ("mask", {"probe": "sgd"}, {}, "probe: sgd .*'label' is a mask"),
        ("mask", {"freeze": False, "probe": "sgd"}, {}, "probe: sgd .*'label' is a mask"),
        ("mask", {"probe": "auto"}, {}, None),
    ],
)
def test_what_has_no_effect_is_warned_of_in_a_line(kind, options, fit, said, caplog):
    """It is not refused: version 0.1 took it, and the tasks of a comparison may share it."""
    task = make_task("label", Target(kind, () if kind == "scalar" else ("a", "b")))
    TransferSettings(fit=FitSettings(**fit), **options).complete(task)
    assert len(caplog.messages) == (said is not None)
    assert said is None or re.match(said, caplog.messages[0])


def test_folds_beside_data_of_their_own_are_warned_of(caplog):
    task = make_task("label", Target("scalar"))
    for tested in (False, True):
        TransferSettings(fold=1, folds_of="all").complete(task, tested=tested)
        assert ("fold, folds_of: without effect beside test_split" in caplog.text) == tested


# -- other data to test on -------------------------------------------------------------------------


def test_another_folder_is_tested_on_from_the_command_line(bright, transferred, refused, tmp_path):
    """Sensors that stand inline hold for both; a folder elsewhere has other pictures and labels.

    It shows one of the two classes, which has another number there, and has a label more.
    """
    other = tmp_path / "elsewhere"
    (other / "s1").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(6):
        np.save(other / "s1" / f"x{i}.npy", rng.random((1, 32, 32), np.float32))
    names = [f"x{i},dark,{i}" for i in range(6)]
    (other / "labels.csv").write_text("\n".join(["id,kind:class,height:number", *names]) + "\n")
    sensors = "--data.modalities={s1: {bands: [a], scaling: range, value_range: [0, 3]}}"
    common = [f"--data.root={bright}", sensors]
    folder = transferred(*common, f"--test_data.root={other}", "--fit.augment=false")
    kept, found = np.load(folder / "predictions.npz"), results_of(folder)
    assert kept["ids"].tolist() == [f"x{i}" for i in range(6)] and found["train"] == 40
    assert kept["truth"].tolist() == [1] * 6  # "dark" comes after "bright"
    guess = kept["output"].argmax(1)
    assert found["metrics"]["accuracy"]["value"] == accuracy_score(kept["truth"], guess)
    again = tmp_path / "again"
    main(["transfer", "--config", str(folder / "config.yaml"), f"--run={again}"])
    assert results_of(again)["metrics"] == found["metrics"]
    split = transferred(*common, "--train_split=train", f"--test_data.root={other}", name="split")
    assert results_of(split)["train"] == 30
    assert "test_data.rot: PairedFolder takes no such key" in refused(*common, "--test_data.rot=x")
    assert "also trained on" in refused(*common, f"--test_data.root={bright}")


# -- augmented pictures under a linear probe -------------------------------------------------------


def test_a_linear_probe_sees_augmented_pictures_only_where_it_is_asked_to(
    transferred, run_folder, monkeypatch
):
    seen, real = [], trainee.crop_and_flip
    monkeypatch.setattr(
        trainee,
        "crop_and_flip",
        lambda images, mask, crop: seen.append(crop) or real(images, mask, crop),
    )
    common = [*SCENES, "--target=cover", "--probe=sgd", f"--encoders={run_folder}"]
    plain = transferred(*common, "--fit.epochs=2", name="plain")
    assert not seen and results_of(plain)["fit"]["augment"] is False
    asked = transferred(*common, "--fit.epochs=2", "--fit.augment=true", name="asked")
    assert seen and set(seen) == {(0.8, 1.0)} and results_of(asked)["fit"]["augment"] is True
    state = load_file(asked / "model.safetensors")  # the encoders stay what they were
    start = load_file(run_folder / "encoders" / "sar.safetensors")
    assert all(torch.equal(v, state[f"encoders.sar.{key}"]) for key, v in start.items())
    heads = [load_file(f / "model.safetensors")["head.weight"] for f in (plain, asked)]
    assert not torch.allclose(*heads)


@pytest.mark.parametrize(
    ("kind", "options", "used"),
    [
        ("class", {"probe": "ridge"}, False),
        ("class", {"probe": "logistic"}, False),
        ("class", {"probe": "auto"}, False),
        ("scalar", {}, False),
        ("class", {"probe": "sgd"}, True),
        ("class", {"probe": "ridge", "freeze": False}, True),
        ("mask", {}, True),
    ],
)
def test_augmentation_that_would_not_be_done_is_refused(kind, options, used):
    task = make_task("label", Target(kind, () if kind == "scalar" else ("a", "b")))
    settings = TransferSettings(fit=FitSettings(augment=True), **options)
    if used:
        assert settings.complete(task).fit.augment
        return
    with pytest.raises(ConfigError, match=r"fit\.augment: .* the probe \w+ .* take --probe sgd"):
        settings.complete(task)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("key", ["seed", "fold_seed"])
def test_seeds_that_numpy_does_not_take_are_refused(key, seed):
    with pytest.raises(ConfigError, match=f"{key}: must be from 0"):
        TransferSettings(**{key: seed})
