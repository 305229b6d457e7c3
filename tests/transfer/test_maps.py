"""Feature maps of frozen encoders, kept on disk, against training on the pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from decur.data import PairedFolder
from decur.encoders import build_encoder
from decur.errors import ConfigError
from decur.features import map_names, scaled
from decur.pretrain import EncoderSettings, LoaderSettings
from decur.runs import RunFolder
from decur.transfer import FCN, FitSettings, TransferSettings, fit
from decur.transfer.engine import Engine
from decur.transfer.fit import train_on_maps, train_on_pictures
from decur.transfer.run import transfer
from decur.transfer.splits import Parts
from decur.transfer.tasks import make_task
from decur.transfer.tasks.segmentation import confusion_of_masks


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


def test_standardised_maps_make_the_size_of_maps_irrelevant(flooded, frozen, tmp_path, features_of):
    task, loader = make_task("mask", flooded.targets["mask"]), LoaderSettings(6, workers=0)
    parts = Parts(flooded, task, train=np.arange(12), test=np.arange(12, 19))
    model = frozen()
    seen = features_of(flooded, "mask", model.encoders, tmp_path / "cache", loader, 48, maps=True)
    larger = replace(seen, features={key: 50 * maps for key, maps in seen.features.items()})

    def learn(maps, name, standardise=True):
        fit = FitSettings(augment=False, epochs=3, lr=0.01, standardise=standardise)
        settings = TransferSettings(fit=fit, loader=loader, seed=5).complete(task)
        engine, model = Engine(RunFolder(tmp_path / name), Console(quiet=True), "cpu"), frozen()
        return train_on_maps(model, maps, parts, settings, engine)["confusion"], model

    (told, first), (again, second) = learn(seen, "seen"), learn(larger, "larger")
    np.testing.assert_array_equal(told, again)
    assert (told != learn(larger, "plain", standardise=False)[0]).any()
    keys = {name: map_names(name, model.encoder(name)) for name in model.encoders}
    maps = {n: [torch.tensor(seen.features[k][12:15]) for k in keys[n]] for n in keys}
    with torch.no_grad():
        a = first.classify(maps, (8, 8), batch=3)
        b = second.classify({n: [50 * x for x in maps[n]] for n in maps}, (8, 8), batch=3)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    # what is saved takes pictures as they are
    raw, sensors = flooded[14]["images"], flooded.modalities
    images = {name: scaled(raw[name][None], sensors[name], size=48) for name in sensors}
    with torch.no_grad():
        guess = first.eval()(images, size=(32, 32)).argmax(1)
    truth = flooded[14]["target"]["mask"][None]
    assert truth.shape == guess.shape and (confusion_of_masks(guess, truth, 2)[0] == told[2]).all()


def test_convolutions_of_standardised_maps_take_maps_as_they_are(frozen):
    model = frozen()
    shapes = {n: model.encoder(n).channels[-3:] for n in model.encoders}
    maps = {n: [3 + 2 * torch.randn(4, c, 6, 6) for c in shapes[n]] for n in shapes}
    moments = {n: [(x.mean((0, 2, 3)), x.std((0, 2, 3))) for x in maps[n]] for n in maps}
    plain = {
        n: [
            (x - m[:, None, None]) / s[:, None, None]
            for x, (m, s) in zip(maps[n], moments[n], strict=True)
        ]
        for n in maps
    }
    with torch.no_grad():
        expected = model.classify(plain, (12, 12), batch=4)
        model.unstandardise(moments)
        torch.testing.assert_close(
            model.classify(maps, (12, 12), batch=4), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("more", [{"freeze": False}, {}, {"augment": False, "test_flip": True}])
def test_standardising_what_is_not_kept_is_refused(flooded, more):
    more = dict(more)
    fit = FitSettings(standardise=True, augment=more.pop("augment", None))
    task = make_task("mask", flooded.targets["mask"])
    with pytest.raises(ConfigError, match=r"fit\.standardise: is for the maps of frozen encoders"):
        TransferSettings(fit=fit, **more).complete(task)


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


def test_maps_are_standardised_by_the_samples_that_have_the_sensor():
    rng = np.random.default_rng(0)
    maps = rng.normal(3, 2, (200, 4, 2, 3)).astype(np.float32)
    maps[:, 1] = 7  # always the same
    maps[:80] = np.nan  # more than is looked at together
    mean, std = fit._moments(maps, np.arange(150))
    np.testing.assert_allclose(mean, maps[80:150].mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(
        std, np.where(np.arange(4) == 1, 1, maps[80:150].std((0, 2, 3))), rtol=1e-5
    )
    assert fit._moments(maps, np.arange(80))[1].tolist() == [1, 1, 1, 1]
