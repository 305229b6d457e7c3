"""Feature maps of frozen encoders, kept on disk, against training on the pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from decur.data import PairedFolder
from decur.encoders import build_encoder
from decur.features import map_names
from decur.pretrain import EncoderSettings, LoaderSettings
from decur.runs import RunFolder
from decur.transfer import FCN, FitSettings, TransferSettings
from decur.transfer.engine import Engine
from decur.transfer.fit import train_on_maps, train_on_pictures
from decur.transfer.run import transfer
from decur.transfer.splits import Parts
from decur.transfer.tasks import make_task


@pytest.fixture
def flooded(make_pairs):
    """Twenty pairs with masks, one lacking a sensor, one without a mask."""
    root = make_pairs({"s1": 1, "s2": 3}, samples=20, size=32)
    (root / "mask").mkdir()
    for i in range(19):
        picture = np.load(root / "s2" / f"{i:04d}.npy")
        Image.fromarray((picture[0] > 0).astype(np.uint8)).save(root / "mask" / f"{i:04d}.png")
    (root / "s1" / "0003.npy").unlink()
    return PairedFolder(root)


@pytest.fixture
def frozen(flooded):
    torch.manual_seed(0)
    encoders = {n: build_encoder("test_resnet", m).eval() for n, m in flooded.modalities.items()}

    def make():
        torch.manual_seed(1)
        model = FCN(encoders, 2)
        model.freeze()
        return model

    return make


def test_training_on_stored_maps_is_training_on_pictures(flooded, frozen, tmp_path, features_of):
    task, loader = make_task("mask", flooded.targets["mask"]), LoaderSettings(6, workers=0)
    fit = FitSettings(augment=False, epochs=3, lr=0.01)
    settings = TransferSettings(fit=fit, loader=loader, size=48, seed=5).complete(task)
    parts = Parts(flooded, task, train=np.arange(12), test=np.arange(12, 19))
    kept, models = {}, {}
    for way in ("maps", "pictures"):
        model = models[way] = frozen()
        engine = Engine(RunFolder(tmp_path / way), Console(quiet=True), "cpu")
        if way == "maps":
            seen = features_of(
                flooded, "mask", model.encoders, tmp_path / "cache", loader, 48, maps=True
            )
            kept[way] = train_on_maps(model, seen, parts, settings, engine)
        else:
            kept[way] = train_on_pictures(model, parts, settings, engine)
    for a, b in zip(models["maps"].parameters(), models["pictures"].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not torch.equal(models["maps"].bias, frozen().bias)  # something was learned
    np.testing.assert_array_equal(kept["maps"]["confusion"], kept["pictures"]["confusion"])


def test_maps_and_masks_are_kept_and_found_again(flooded, frozen, tmp_path, features_of):
    model, loader = frozen(), LoaderSettings(6, workers=0)
    arguments = (flooded, "mask", model.encoders, tmp_path, loader)
    seen, again = features_of(*arguments, maps=True), features_of(*arguments, maps=True)
    assert seen.computed and not again.computed
    encoder = model.encoder("s2")
    x = flooded.modalities["s2"].scale(flooded[7]["images"]["s2"])[None]
    with torch.no_grad():
        maps = encoder.forward_features(x)[-3:]
    for key, expected in zip(map_names("s2", encoder), maps, strict=True):
        np.testing.assert_allclose(again.features[key][7], expected[0], rtol=1e-4, atol=1e-5)
    assert np.isnan(again.features["s1/0"][3]).all() and again.features["s1/0"][4].any()
    np.testing.assert_array_equal(again.masks["mask"][2], flooded[2]["target"]["mask"])
    assert (again.masks["mask"][19] == 255).all()
    vectors = features_of(*arguments)  # the same encoders' vectors are another matter
    assert vectors.computed and vectors.masks == {} and set(vectors.features) == {"s1", "s2"}


def test_the_command_runs_a_frozen_fcn_on_stored_maps(flooded, transferred):
    common = (f"--data.root={flooded.root}", "--target=mask", "--fit.epochs=2", "--folds=2")
    folder = transferred(*common, "--fit.augment=false")
    assert list((folder / "cache").glob("s1-0-*.npy")) and (folder / "model.safetensors").is_file()
    transferred(*common, "--fit.augment=false", "--keep_model=false")  # in the same folder
    assert (folder / "results.json").is_file() and not (folder / "model.safetensors").exists()
    other = transferred(*common, "--fit.augment=false", "--freeze=false", name="tuned")
    assert not list((other / "cache").glob("s1*.npy"))


def test_masks_of_several_sizes_are_scored_at_their_own(flooded, tmp_path):
    for i in (3, 4, 8, 12):
        file = flooded.root / "mask" / f"{i:04d}.png"
        Image.open(file).resize((24, 40), Image.Resampling.NEAREST).save(file)
    transfer(
        PairedFolder(flooded.root),
        encoders="random",
        encoder=EncoderSettings("test_resnet"),
        target="mask",
        folds=2,
        fit=FitSettings(epochs=1, lr=0.01, augment=False),
        loader=LoaderSettings(4, workers=0),
        run=str(tmp_path / "run"),
        bootstrap=0,
        device="cpu",
    )
    kept = np.load(tmp_path / "run" / "predictions.npz")
    assert kept["output"].shape[1:] == (40, 32)
    for id_, matrix, guess in zip(kept["ids"], kept["confusion"], kept["output"], strict=True):
        mask = np.array(Image.open(flooded.root / "mask" / f"{id_}.png"))
        guess = guess[: mask.shape[0], : mask.shape[1]]
        expected = [[((mask == a) & (guess == b)).sum() for b in (0, 1)] for a in (0, 1)]
        np.testing.assert_array_equal(matrix, expected)
