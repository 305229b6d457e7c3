"""The whole command: what it leaves, what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, average_precision_score, r2_score

from decur.cli import main
from decur.data import PairedFolder, SyntheticScenes
from decur.encoders import TimmEncoder, save_encoder
from decur.errors import ConfigError
from decur.modality import Modality
from decur.pretrain import EncoderSettings, LoaderSettings
from decur.transfer import FitSettings, TransferSettings, load_model, transfer

SCENES = [
    *("--data=SyntheticScenes", "--data.samples=60", "--data.size=32"),
    "--data.modalities=[optical,sar]",
]
SHORT = ["--fit.epochs=1", "--loader.batch_size=16"]
LEFT = ("results.json", "predictions.npz", "model.safetensors", "train_ids.txt", "report.html")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def weights_of(folder, part="encoders."):
    state = load_file(folder / "model.safetensors")
    return {key: value for key, value in state.items() if key.startswith(part)}


@pytest.mark.parametrize(
    ("target", "metrics"),
    [("cover", {"mAP_micro", "mAP_macro"}), ("moisture", {"R2", "MAE"})],
)
@pytest.mark.parametrize("how", [["--freeze=true"], ["--freeze=false", *SHORT]])
def test_labels_of_pictures(target, metrics, how, transferred, run_folder, drawing):
    given = (f"--encoders={run_folder}", f"--target={target}", "--bootstrap=1")
    folder = transferred(*SCENES, *given, *how)
    for name in (*LEFT, "config.yaml", "figures/transfer.png"):
        assert (folder / name).stat().st_size > 0, name
    found = results_of(folder)
    assert set(found["metrics"]) == metrics and found["modalities"] == ["optical", "sar"]
    assert (found["train"], found["test"], found["groups"]) == (48, 12, None)
    for value in found["metrics"].values():
        low, high = value["interval"]
        assert low <= high
    kept = np.load(folder / "predictions.npz")
    score = (
        average_precision_score(kept["truth"], kept["output"], average="micro")
        if target == "cover"
        else r2_score(kept["truth"].astype(float), kept["output"].astype(float))
    )
    assert score == pytest.approx(
        found["metrics"]["mAP_micro" if target == "cover" else "R2"]["value"]
    )

    # the saved model gives what was tested, and the truth is the data's
    model, about = load_model(folder / "model.safetensors")
    scenes = SyntheticScenes(60, 32, modalities=["optical", "sar"])
    row = scenes.ids.index(str(kept["ids"][3]))
    sample = scenes[row]
    images = {n: scenes.modalities[n].scale(x)[None] for n, x in sample["images"].items()}
    with torch.no_grad():
        output = model(images)[0].numpy()
    assert np.allclose(output, kept["output"][3], atol=1e-3, rtol=1e-3)
    assert np.allclose(sample["target"][target], kept["truth"][3])
    assert about["classes"] == list(scenes.targets[target].classes)

    ids = (folder / "train_ids.txt").read_text().split()
    assert not set(ids) & set(kept["ids"].tolist()) and len(ids) == 48
    original = {
        f"encoders.{n}.{key}": value
        for n in ("optical", "sar")
        for key, value in load_file(run_folder / "encoders" / f"{n}.safetensors").items()
    }
    same = [torch.equal(original[key], value) for key, value in weights_of(folder).items()]
    assert all(same) if how == ["--freeze=true"] else np.mean(same) < 0.1


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_masks(freeze, transferred, run_folder):
    folder = transferred(
        *(*SCENES, f"--encoders={run_folder}", "--target=mask", f"--freeze={freeze}"), *SHORT
    )
    found, kept = results_of(folder), np.load(folder / "predictions.npz")
    matrix = kept["confusion"].sum(0)
    truth, guess = kept["truth"], kept["output"]
    assert truth.shape == (12, 32, 32) and matrix.sum() == truth.size
    assert found["metrics"]["overall_accuracy"]["value"] == accuracy_score(
        truth.ravel(), guess.ravel()
    )
    inter = [((truth == c) & (guess == c)).sum() for c in range(6)]
    union = [((truth == c) | (guess == c)).sum() for c in range(6)]
    ious = [i / u for i, u in zip(inter, union, strict=True) if u]
    assert found["metrics"]["mIoU"]["value"] == pytest.approx(np.mean(ious))
    assert set(found["by_class"]) == {"water", "forest", "crop", "grass", "bare", "built"}
    original = load_file(run_folder / "encoders" / "sar.safetensors")
    same = [
        torch.equal(original[key.removeprefix("encoders.sar.")], value)
        for key, value in weights_of(folder, "encoders.sar.").items()
    ]
    assert all(same) if freeze == "true" else np.mean(same) < 0.1
    assert (folder / "metrics.csv").read_text().startswith("epoch,step,loss\n1,3,")


@pytest.mark.parametrize("probe", ["ridge", "sgd"])
def test_a_planted_class_is_found_by_splits(probe, bright, transferred):
    folder = transferred(
        *(f"--data.root={bright}", "--modalities", "s1"),
        *(f"--probe={probe}", "--train_split=train", "--test_split=test"),
    )
    found = results_of(folder)
    assert found["metrics"]["accuracy"]["value"] == 1.0
    assert (found["train"], found["test"]) == (30, 10)
    ids = {int(i) for i in (folder / "train_ids.txt").read_text().split()}
    assert ids == {i for i in range(40) if i % 4}
    assert found["modalities"] == ["s1"] and set(found["by_class"]) == {"bright", "dark"}

    again = folder.with_name("again")
    main(["transfer", "--config", str(folder / "config.yaml"), f"--run={again}"])
    assert results_of(again)["metrics"] == found["metrics"]


def test_groups_stay_whole_and_are_what_is_resampled(bright, transferred):
    folder = transferred(f"--data.root={bright}", "--folds=4", "--fold=1")
    found = results_of(folder)
    train = {int(i) // 4 for i in (folder / "train_ids.txt").read_text().split()}
    test = {int(i) // 4 for i in np.load(folder / "predictions.npz")["ids"]}
    assert not train & test and train | test == set(range(10))
    assert found["groups"] == len(test)


def test_a_missing_sensor_and_absent_pictures(bright, transferred, caplog):
    for i in range(0, 40, 5):
        (bright / "s1" / f"{i:04d}.npy").unlink()
    both = transferred(f"--data.root={bright}")
    assert results_of(both)["train"] + results_of(both)["test"] == 40
    assert np.isfinite(np.load(both / "predictions.npz")["output"]).all()
    one = transferred(f"--data.root={bright}", "--modalities", "s1", name="one")
    assert results_of(one)["train"] + results_of(one)["test"] == 32
    tuned = transferred(f"--data.root={bright}", "--freeze=false", *SHORT, name="tuned")
    assert np.isfinite(np.load(tuned / "predictions.npz")["output"]).all()


def test_a_second_run_takes_the_vectors_of_the_first(transferred, run_folder, monkeypatch):
    calls = []
    real = TimmEncoder.forward

    def forward(self, x):
        calls.append(len(x) if x.any() else 0)  # black pictures are tried before
        return real(self, x)

    monkeypatch.setattr(TimmEncoder, "forward", forward)
    common = [*SCENES, f"--encoders={run_folder}", "--target=cover"]
    folder = transferred(*common)
    assert sum(calls) == 120 and not results_of(folder)["seconds"]["cached"]
    cache = f"--cache={folder / 'cache'}"
    for change in (["--label_fraction=0.25"], ["--seed=3"], ["--probe=sgd", "--fit.epochs=2"]):
        other = transferred(*common, cache, *change, name="other")
        assert sum(calls) == 120 and results_of(other)["seconds"]["cached"]
        assert not (other / "cache").exists()


def test_a_fraction_is_drawn_and_a_run_repeats(transferred, run_folder):
    common = [*SCENES, f"--encoders={run_folder}", "--target=mask", "--label_fraction=0.5"]
    runs = [
        transferred(*common, *SHORT, "--freeze=false", *more, name=name)
        for name, more in (("a", []), ("b", []), ("c", ["--seed=1"]))
    ]
    states = [load_file(folder / "model.safetensors") for folder in runs]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert results_of(runs[0])["train"] == 24


def test_python_takes_data_to_test_on(encoders, run_folder, tmp_path):
    train, test = (
        SyntheticScenes(n, 32, modalities=["sar"], start=start) for n, start in ((40, 0), (10, 900))
    )
    done = transfer(
        train,
        test_data=test,
        encoders=str(run_folder),
        target="moisture",
        run=str(tmp_path / "run"),
        loader=LoaderSettings(workers=0),
        fit=FitSettings(),
        bootstrap=0,
        device="cpu",
    )
    assert done.results["test"] == 10 and done.results["modalities"] == ["sar"]
    assert "interval" not in done.results["metrics"]["R2"]
    assert yaml.safe_load((tmp_path / "run" / "results.json").read_text()) == done.results


def test_python_takes_settings_and_options_over_them(scenes, tmp_path):
    fast = TransferSettings(
        target="cover",
        encoder=EncoderSettings("test_resnet"),
        loader=LoaderSettings(workers=0),
        bootstrap=0,
        device="cpu",
        folds=4,
    )
    done = transfer(scenes, fast, run=str(tmp_path / "run"), folds=3, modalities=["sar"])
    assert done.results["test"] == 20 and done.results["modalities"] == ["sar"]
    with pytest.raises(ConfigError, match=r"encoder_: unknown option .*; did you mean encoders?\?"):
        transfer(scenes, fast, encoder_="random")


def test_encoders_are_refused_where_they_do_not_fit(refused, run_folder, encoders, tmp_path):
    cover = [*SCENES, "--target=cover"]
    three = [*SCENES[:-1], f"--encoders={run_folder}", "--target=cover"]
    line = refused(*three, "--modalities", "elevation")
    assert "none for modality 'elevation'" in line and "optical, sar" in line
    assert "has no 's3'; choose from optical, sar" in refused(*cover, "--modalities", "s3")
    assert "no such file or folder" in refused(*cover, "--encoders=/no/where")
    assert "no encoders/*.safetensors" in refused(*cover, f"--encoders={tmp_path}")
    other = encoders["sar"]
    other.modality = other.modality.with_(bands=("VH", "HH"))
    file = save_encoder(other, tmp_path / "other.safetensors")
    line = refused(*cover, "--encoders", str(file))
    assert "bands: ('VH', 'HH') != ('VV', 'VH')" in line and "other.safetensors" in line
    other.modality = other.modality.with_(bands=("VH", "VV"))  # in this order, with VV's numbers
    save_encoder(other, file)
    assert "mean: " in refused(*cover, "--encoders", str(file))
    twice = [str(run_folder), str(file)]
    assert "are both for 'sar'; give one" in refused(*cover, "--encoders", *twice)
    other.modality = Modality("radar", ("VV", "VH"), scaling="range")
    save_encoder(other, file)
    assert "which has radar" in refused(*cover, "--encoders", str(file))


@pytest.mark.parametrize("header", ['{"format": 1, "enc', "[]", '{"format": 1}'])
def test_a_damaged_header_of_an_encoder_is_refused(header, refused, run_folder):
    file = run_folder / "encoders" / "sar.safetensors"
    save_file(load_file(file), file, {"decur": header})
    line = refused(*SCENES, "--target=cover", f"--encoders={file}")
    assert "sar.safetensors: its header " in line and line.endswith("copy it anew")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "several labels, choose from cover (multilabel), mask (mask)"),
        (["--target=clouds"], "no label 'clouds'; choose from cover (multilabel)"),
        (["--target=cover", "--label_fraction=0"], "label_fraction: a share in (0, 1], is 0"),
        (["--target=cover", "--label_fraction=1.2"], "label_fraction"),
        (["--target=cover", "--size=0"], "size: must be from 1 to 16,384, is 0"),
        (["--target=cover", "--precision=8"], "precision"),
        (["--target=cover", "--fold=7"], "fold: must lie in 0 to 4"),
        (["--target=cover", "--fit.lr=-1"], "fit.lr: must be from 0 to"),
        (["--target=cover", "--probe=svm"], "probe"),
        (["--target=cover", "--test_split=test"], "train_split: is missing"),
        (["--target=cover", "--train_split=a", "--test_split=b"], "has no splits"),
        (["--target=moisture", "--probe=sgd"], "a scalar takes ridge"),
        (["--target=cover", "--encoder.name=resnet_18"], "did you mean"),
        (["--target=cover", "--fitt.lr=1"], "fitt.lr: unknown key"),
        (["--target=cover", "--encoder=resnet18"], "did you mean --encoder.name resnet18?"),
        (["--target=cover", "--fit=3"], "fit: has keys of its own, such as fit.name; 3 is no"),
        (["--target=cover", "--data=/some/folder"], "data: names a class, not a folder; give --da"),
        (["--target=cover", "--cache=/dev/null/x"], "--cache /dev/null/x: cannot be made"),
        (["--target=mask", "--encoder.name=vit_tiny_patch16_224", "--size=40"], "pixels (size)"),
        (
            [
                *("--target=mask", "--encoder.name=vit_tiny_patch16_224", "--size=224"),
                "--test_scales=[1.0,0.9]",
            ],
            "pixels (test_scales)",
        ),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(arguments, said, refused):
    assert said in refused(*SCENES, *arguments)


def test_labels_are_refused_where_they_do_not_suffice(label_folder, refused, transferred):
    some = {i: "ab"[i % 2] for i in range(40)}
    root = label_folder({**some, 4: "rare", 8: "rare"})
    by_split = ["--train_split=train", "--test_split=test"]
    line = refused(f"--data.root={root}", *by_split)
    assert "class 'rare' of 'kind' has 2 test samples and none to train on" in line
    assert "choose from test, train" in refused(
        f"--data.root={root}", "--train_split=train", "--test_split=val"
    )
    (root / "labels.csv").write_text("id,kind:class\n0001,a\n0002,b\n0003,a\n")
    assert "the test part is empty" in refused(f"--data.root={root}", *by_split)
    (root / "labels.csv").write_text("id,kind:class\nelsewhere,a\n0002,\n")
    assert "no sample has a known label 'kind'" in refused(f"--data.root={root}")
    (root / "labels.csv").write_text("id,kind\n" + "".join(f"{i:04d},a\n" for i in range(40)))
    assert "'kind' is 'a' in all samples to train on (32)" in refused(f"--data.root={root}")
    (root / "labels.csv").unlink()
    (root / "mask").mkdir()
    for i in range(40):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "mask" / f"{i:04d}.png")
    assert "'mask' is '0' in all samples to train on" in refused(f"--data.root={root}")
    shutil.rmtree(root / "mask")
    assert "the data has no labels" in refused(f"--data.root={root}")


def test_what_cannot_be_begun_leaves_earlier_results_alone(transferred):
    folder = transferred(*SCENES, "--target=cover")
    before = (folder / "results.json").read_text(), (folder / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        transferred(*SCENES, "--target=cover", "--fold=9")
    assert before == ((folder / "results.json").read_text(), (folder / "config.yaml").read_text())


def test_a_pretraining_run_is_not_written_over(refused, run_folder, tmp_path):
    line = refused(*SCENES, "--target=cover", f"--run={run_folder}")
    assert "holds a pretraining run" in line
    assert not (run_folder / "config.yaml").exists()


def test_a_loss_that_is_not_finite_stops_the_run(transferred, capsys):
    with pytest.raises(SystemExit) as stopped:
        transferred(*SCENES, "--target=moisture", "--freeze=false", *SHORT, "--fit.lr=1e30")
    assert stopped.value.code == 3
    assert "non-finite loss in epoch 1: lower fit.lr" in capsys.readouterr().err


def test_groups_on_both_sides_are_said(bright, transferred, caplog):
    transferred(f"--data.root={bright}", "--train_split=train", "--test_split=test")
    assert "10 groups are in the training and in the test part" in caplog.text
    assert PairedFolder(bright).groups is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fit: null", "fit: has keys of its own, such as fit.name; null is no mapping"),
        ("fit: 3", "fit: has keys of its own, such as fit.name; 3 is no mapping"),
        ("loader: 4", "loader: has keys of its own, such as loader.batch_size; 4 is no mapping"),
        ("encoder: resnet18", "did you mean --encoder.name resnet18?"),
        ("data: /some/folder", "data: names a class, not a folder; give --data.root /some/folder"),
        ("base: 3", "base: must be a file or a recipe's name, is 3"),
        ("base: {file}", "{file} > {file}: is based on itself"),
        ("modalities: s3", "the data has no 's3'"),
        ("encoders: no/where", "no/where: no such file or folder"),
    ],
)
def test_a_wrong_file_ends_in_one_line(text, said, refused, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(text.format(file=file))
    assert said.format(file=file) in refused(*SCENES, "--target=cover", f"--config={file}")


def test_a_single_group_leaves_no_interval(bright, transferred, capsys):
    names = ["id,split,group", *(f"{i:04d},{'test' if i < 8 else 'train'},g" for i in range(40))]
    (bright / "splits.csv").write_text("\n".join(names) + "\n")
    folder = transferred(
        f"--data.root={bright}", "--modalities=s1", "--train_split=train", "--test_split=test"
    )
    assert "interval" not in results_of(folder)["metrics"]["accuracy"]
    assert "95 %" not in capsys.readouterr().out
    assert "95 %" not in (folder / "report.html").read_text()


def test_splits_that_share_samples_are_refused(bright, refused):
    line = refused(f"--data.root={bright}", "--train_split=train", "--test_split=train")
    assert "test_split: 30 samples are also trained on, such as '0001'; choose another" in line


def test_data_without_statistics_takes_those_of_the_encoders(bright, transferred, capsys, caplog):
    caplog.set_level("INFO")
    (bright / "modalities.yaml").unlink()
    tiny = ["--encoder.name=test_resnet", "--projector.width=16", "--views.size=16"]
    tiny += ["--loader.batch_size=8", "--loader.workers=0", "--trainer.accelerator=cpu"]
    run = bright.parent / "pretrained"
    main(
        ["pretrain", f"--data.root={bright}", f"--run={run}", *tiny, "--monitor.every_epochs=0"]
        + ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    )
    for file in (bright / "s1").iterdir():  # other pictures of the same sensor
        np.save(file, np.load(file) + np.float32(0.1))
    given = (f"--data.root={bright}", f"--encoders={run}", "--modalities=s1")
    transferred(*given)
    assert "modality 's1': nobody gave its scaling, so it is that of the encoder's" in caplog.text
    other = shutil.copytree(bright, bright.parent / "other")
    for file in (other / "s1").iterdir():
        np.save(file, np.load(file) - np.float32(0.1))
    found = transferred(*given, f"--test_data.root={other}", name="elsewhere")
    assert json.loads((found / "results.json").read_text())["test"] == 40
    main(["stats", str(bright)])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        transferred(*given, name="given")
    said = capsys.readouterr().err
    assert "differs in mean" in said and "as --data.modalities FILE" in said
