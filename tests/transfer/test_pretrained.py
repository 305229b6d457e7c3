"""Weights of others: bands by name, values as they want them, files where their carrier looks."""

import json
from functools import partial
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.v2 as T
from torch import nn
from torchvision.models._api import Weights, WeightsEnum

from decur.data import SyntheticScenes
from decur.encoders import build_encoder, pretrained
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.transfer import load_model
from decur.transfer.sources import gather_encoders
from decur.views import Views

S1 = Modality.preset("sentinel1").with_(name="s1")
S2 = Modality.preset("sentinel2-l2a").with_(name="s2")
DATA = {"s1": S1, "s2": S2}
L1C = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8a", "B9", "B10", "B11", "B12"]


def enum(**members):
    """Weights as torchgeo has them: (bands, transforms) by name."""
    made = {
        name: Weights(
            url=f"https://hf.co/none/{name.lower()}-0a1b2c3d.pth",
            transforms=nn.Sequential(T.Resize((256, 256)), T.CenterCrop(224), *steps),
            meta={"in_chans": len(bands) if bands else 5} | ({"bands": bands} if bands else {}),
        )
        for name, (bands, steps) in members.items()
    }
    return WeightsEnum("Tiny_Weights", made)


IMAGENET = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TINY = enum(
    SENTINEL2_ALL=(L1C, [T.Normalize([0], [10000])]),
    SENTINEL2_RGB=(["B04", "B03", "B02"], [T.Normalize([3, 2, 0], [85, 101, 129]), IMAGENET]),
    SENTINEL1_ALL=(["VV", "VH"], [T.Normalize([-12.59, -20.26], [5.26, 5.91])]),
    LANDSAT_TM=(["B1", "B2", "B3"], [T.Normalize([0], [255])]),
    UNNAMED=(None, []),
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """A carrier of tiny weights in torchgeo's place; returns where its files are looked for."""
    carrier = SimpleNamespace(
        list_models=lambda: ["test_resnet", "unreleased", "unet"],
        get_model_weights={"test_resnet": TINY, "unet": enum(ANY=(L1C, []))}.__getitem__,
    )
    monkeypatch.setattr(pretrained, "require_torchgeo", lambda: carrier)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    home = tmp_path / "hub" / "checkpoints"
    home.mkdir(parents=True)
    return home


@pytest.fixture
def put(tiny):
    """Put weights where they are looked for; returns the model that has them."""

    def make(weights):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", in_chans=weights.meta["in_chans"], num_classes=7)
        torch.save(model.state_dict(), tiny / weights.url.rsplit("/", 1)[-1])
        model.reset_classifier(0)
        return model.eval()

    return make


@pytest.fixture
def raw():
    """Raw values of two places, those of S2 in DN."""
    torch.manual_seed(1)
    return {"s1": torch.randn(2, 2, 32, 32) * 9 - 15, "s2": torch.rand(2, 12, 32, 32) * 9000}


def vector(encoder, raw):
    return encoder(encoder.modality.scale(raw))


# -- which sensor, which bands, which values -------------------------------------------------------


@torch.no_grad()
def test_raw_values_become_what_the_weights_own_transforms_make_of_them(put, raw):
    model = put(TINY.SENTINEL2_ALL)
    name = "torchgeo:Tiny_Weights.SENTINEL2_ALL"
    found = gather_encoders(name, DATA, missing_bands="empty")
    assert list(found) == ["s2"] and not found["s2"].training
    x = raw["s2"]
    inserted = torch.cat([x[:, :10], torch.zeros(2, 1, 32, 32), x[:, 10:]], 1) / 10000
    assert torch.allclose(vector(found["s2"], x), model(inserted), atol=1e-5)
    maps = found["s2"].forward_features(found["s2"].modality.scale(x))
    assert [m.shape[1] for m in maps] == found["s2"].channels
    again = found["s2"].modality.scale(torch.full((1, 12, 4, 4), torch.nan))
    assert torch.equal(again, torch.zeros(1, 12, 4, 4))  # the mean of the weights


@torch.no_grad()
def test_bands_are_found_by_name_whatever_their_order(put, raw):
    model = put(TINY.SENTINEL2_ALL)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2)).tolist()
    names = [S2.bands[i].replace("B8A", "b8a").replace("B3", "B03") for i in order]
    mixed = S2.with_(bands=names, mean=[S2.mean[i] for i in order], std=[S2.std[i] for i in order])
    name = "torchgeo:Tiny_Weights.SENTINEL2_ALL"
    found = gather_encoders(name, {"s2": mixed}, missing_bands="empty")["s2"]
    x = raw["s2"]
    inserted = torch.cat([x[:, :10], torch.zeros(2, 1, 32, 32), x[:, 10:]], 1) / 10000
    assert torch.allclose(vector(found, x[:, order]), model(inserted), atol=1e-5)


@torch.no_grad()
def test_the_datas_scaling_can_be_kept_and_then_imagenets_statistics_follow(put, raw):
    model = put(TINY.SENTINEL2_RGB)
    x = raw["s2"]
    own = gather_encoders("torchgeo:Tiny_Weights.SENTINEL2_RGB", DATA)["s2"]
    rgb = TINY.SENTINEL2_RGB.transforms[2](x[:, [3, 2, 1]])
    assert torch.allclose(vector(own, x), model(IMAGENET(rgb)), rtol=1e-4, atol=1e-2)
    kept = gather_encoders("torchgeo:Tiny_Weights.SENTINEL2_RGB@data", DATA)["s2"]
    assert kept.modality == S2
    assert torch.allclose(vector(kept, x), model(IMAGENET(S2.scale(x)[:, [3, 2, 1]])), atol=1e-5)


@torch.no_grad()
def test_each_sensor_has_its_own_weights_and_one_of_them_may_be_a_file(put, raw, encoders):
    radar, optical = put(TINY.SENTINEL1_ALL), put(TINY.SENTINEL2_RGB)
    sources = ["s2=torchgeo:Tiny_Weights.SENTINEL2_RGB", "torchgeo:Tiny_Weights.SENTINEL1_ALL"]
    found = gather_encoders(sources, DATA)
    assert list(found) == ["s1", "s2"]
    mean, std = torch.tensor([-12.59, -20.26]), torch.tensor([5.26, 5.91])
    x = (raw["s1"] - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(vector(found["s1"], raw["s1"]), radar(x), atol=1e-5)
    assert found["s1"].modality.cut == 0 and found["s2"].dim == optical.num_features
    with pytest.raises(ConfigError, match=r"are both for 's1'; give one"):
        gather_encoders([sources[1], "s1=timm:resnet18"], DATA)


def test_where_it_is_not_clear_whose_weights_they_are_one_line_says_so(put):
    put(TINY.SENTINEL2_ALL)
    all_, rgb = "torchgeo:Tiny_Weights.SENTINEL2_ALL", "torchgeo:Tiny_Weights.SENTINEL2_RGB"
    twice = {"winter": S2.with_(name="winter"), "summer": S2.with_(name="summer")}
    with pytest.raises(ConfigError, match=f"winter or summer; say which, as in winter={rgb}"):
        gather_encoders(rgb, twice)
    with pytest.raises(ConfigError, match="there is no sensor 'dem'; choose from s1, s2"):
        gather_encoders(f"dem={rgb}", DATA)
    with pytest.raises(DataError, match=f"s1={rgb} is not for 's1', which has VV, VH"):
        gather_encoders(f"s1={rgb}", DATA)
    with pytest.raises(ConfigError, match=r"is for B1, B2, B3, and no sensor .*s2 B1, B2"):
        gather_encoders("torchgeo:Tiny_Weights.LANDSAT_TM", DATA)  # though the names are alike
    with pytest.raises(DataError, match="'s2' has no B10; with --missing_bands empty, B10 counts"):
        gather_encoders(all_, DATA)
    with pytest.raises(ConfigError, match=r"is for 5 bands, and no sensor"):
        gather_encoders("torchgeo:Tiny_Weights.UNNAMED", DATA)
    with pytest.raises(ConfigError, match=r"did you mean Tiny_Weights.SENTINEL2_ALL or"):
        gather_encoders("torchgeo:Tiny_Weights.SENTINEL2_AL", DATA)
    with pytest.raises(ConfigError, match=r"did you mean Tiny_Weights.SENTINEL2_ALL\?"):
        gather_encoders("torchgeo:SENTINEL2_ALL", DATA)
    with pytest.raises(ConfigError, match="is for another architecture"):
        gather_encoders("torchgeo:Tiny_Weights.ANY", DATA)
    with pytest.raises(ConfigError, match="needs the projector of a run"):
        gather_encoders(rgb, DATA, representation="common")
    with pytest.raises(ConfigError, match="leave @data out"):
        gather_encoders("s2=timm:resnet18@data", DATA)


def test_a_download_that_is_impossible_says_which_file_goes_where(tiny, monkeypatch, put):
    def offline(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConfigError) as caught:
        gather_encoders("torchgeo:Tiny_Weights.SENTINEL1_ALL", DATA)
    file = tiny / "sentinel1_all-0a1b2c3d.pth"
    assert f"put https://hf.co/none/{file.name} into {file}" in str(caught.value)
    put(TINY.SENTINEL1_ALL)
    gather_encoders("torchgeo:Tiny_Weights.SENTINEL1_ALL", DATA)  # nothing is downloaded
    torch.save({"other": torch.zeros(3)}, file)
    with pytest.raises(DataError, match=r"1_all-0a1b2c3d\.pth: not the weights .*; remove it"):
        gather_encoders("torchgeo:Tiny_Weights.SENTINEL1_ALL", DATA)
    torch.save({"conv1.weight": Modality}, file)  # no tensor: not unpickled
    with pytest.raises(DataError, match=r"not the weights of .*; remove it"):
        gather_encoders("torchgeo:Tiny_Weights.SENTINEL1_ALL", DATA)


def test_without_torchgeo_the_line_says_what_to_install(monkeypatch):
    from decur.encoders import geo

    monkeypatch.setattr(pretrained, "require_torchgeo", geo.require_torchgeo)
    monkeypatch.setitem(__import__("sys").modules, "torchgeo", None)
    monkeypatch.setitem(__import__("sys").modules, "torchgeo.models", None)
    with pytest.raises(ConfigError, match=r"pip install 'decur\[geo\]'"):
        gather_encoders("torchgeo:Tiny_Weights.SENTINEL1_ALL", DATA)


def test_views_are_not_made_of_pictures_that_are_not_in_0_to_1():
    with pytest.raises(ConfigError, match="'s1' has scaling 'zscore'"):
        Views({"s1": S1.with_(scaling="zscore")})


# -- timm's, for three bands -----------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("bands", [("R", "G", "B"), ("B2", "B3", "B4"), ("x", "y", "z")])
def test_timms_weights_get_their_mean_and_deviation_on_three_bands(bands, monkeypatch):
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    state = timm.create_model("test_resnet").state_dict() | model.state_dict()
    builder = timm.models._builder
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *a, **k: dict(state))
    data = {"rgb": Modality("rgb", bands, scaling="range"), "s1": S1}
    found = gather_encoders("timm:test_resnet.r160_in1k", data)
    x = torch.rand(2, 3, 32, 32)
    colours = x.flip(1) if bands[0] == "B2" else x
    mean, std = (model.pretrained_cfg[key] for key in ("mean", "std"))
    expected = model(T.functional.normalize(colours, mean, std))
    assert torch.allclose(found["rgb"](x), expected, atol=1e-5)
    assert found["s1"].name == "test_resnet.r160_in1k"  # two bands are no colours
    alone = gather_encoders("rgb=timm:test_resnet.r160_in1k", data)
    assert list(alone) == ["rgb"] and torch.allclose(alone["rgb"](x), expected, atol=1e-5)


# -- whole commands --------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("freeze", [True, False])
def test_a_transfer_scales_as_the_weights_want_and_its_model_says_so(
    freeze, put, transferred, monkeypatch
):
    put(TINY.SENTINEL2_ALL)
    scenes = SyntheticScenes(60, 32, modalities=["optical", "sar"])
    names = dict(zip(scenes.modalities["optical"].bands, L1C, strict=False))
    known = enum(OPTICAL=(list(names), [T.Normalize([2], [5])]))
    carrier = SimpleNamespace(
        list_models=lambda: ["test_resnet"], get_model_weights={"test_resnet": known}.__getitem__
    )
    monkeypatch.setattr(pretrained, "require_torchgeo", lambda: carrier)
    model = put(known.OPTICAL)
    folder = transferred(
        *("--data=SyntheticScenes", "--data.samples=60", "--data.size=32", "--target=cover"),
        *("--data.modalities=[optical,sar]", "--encoders=torchgeo:Tiny_Weights.OPTICAL"),
        *(f"--freeze={str(freeze).lower()}", "--fit.epochs=1", "--fit.augment=false"),
    )
    saved, _ = load_model(folder / "model.safetensors")
    assert list(saved.encoders) == ["optical"]
    own = saved.encoder("optical").modality
    assert own.scaling == "zscore" and set(own.std) == {5}
    assert json.loads((folder / "results.json").read_text())["modalities"] == ["optical"]
    kept = np.load(folder / "predictions.npz")
    sample = scenes[scenes.ids.index(str(kept["ids"][1]))]["images"]["optical"]
    x = own.scale(sample)[None]
    assert np.allclose(saved({"optical": x})[0].detach(), kept["output"][1], atol=1e-3)
    if freeze:
        (file,) = (folder / "cache").glob("optical-*.npy")
        pictures = torch.stack([scenes[i]["images"]["optical"] for i in range(4)])
        expected = model((pictures.float() - 2) / 5)
        assert np.allclose(np.load(file)[:4], expected, atol=1e-4)


# -- torchgeo itself -------------------------------------------------------------------------------


@pytest.fixture
def geo(monkeypatch):
    """The real torchgeo's models."""
    models = pytest.importorskip("torchgeo.models")
    monkeypatch.setattr(pretrained, "require_torchgeo", lambda: models)
    return models


def test_all_weights_for_pictures_alone_are_understood(geo):
    for name, members in pretrained.weights_by_architecture():
        for weights in members:
            if not pretrained.is_known_architecture(name):
                continue
            assert pretrained.find_weights(str(weights)) is weights
            bands = weights.meta.get("bands") or S2.bands
            modality = Modality("any", tuple(bands), scaling="range")
            if weights.meta.get("in_chans", len(bands)) == len(bands):
                count = len(pretrained.bands_of(weights, modality))
                raw, unit = pretrained.normalisations(weights, count)
                assert all(len(part) == count for step in (*raw, *unit) for part in step)


@torch.no_grad()
def test_croma_gives_what_torchgeos_does(geo, tiny, raw, monkeypatch):
    torch.manual_seed(0)
    small = {"encoder_dim": 64, "encoder_depth": 8, "num_heads": 16}
    monkeypatch.setattr(geo, "croma_base", partial(geo.CROMA, **small))
    model = geo.croma_base(image_size=32).eval()
    weights = geo.CROMABase_Weights.CROMA_VIT
    parts = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")
    state = {part: getattr(model, part).state_dict() for part in parts}
    torch.save(state, tiny / weights.url.rsplit("/", 1)[-1])
    expected = model(S1.scale(raw["s1"]), S2.scale(raw["s2"]))
    found = gather_encoders([f"s1=torchgeo:{weights}", f"s2=torchgeo:{weights}"], DATA)
    assert torch.allclose(vector(found["s1"], raw["s1"]), expected["sar_GAP"], atol=1e-5)
    assert torch.allclose(vector(found["s2"], raw["s2"]), expected["optical_GAP"], atol=1e-5)
    maps = found["s2"].forward_features(torch.rand(1, 12, 32, 32))
    assert [m.shape for m in maps] == [(1, 64, 4, 4)] * 4
    again = build_encoder(found["s2"].name, S2, **found["s2"].options)
    again.load_state_dict(found["s2"].state_dict())
    assert torch.equal(vector(again.eval(), raw["s2"]), vector(found["s2"], raw["s2"]))
    with pytest.raises(ConfigError, match="could be for s1 or s2; say which"):
        gather_encoders(f"torchgeo:{weights}", DATA)
    with pytest.raises(DataError, match="square pictures of a multiple of 8 px"):
        found["s2"](torch.rand(1, 12, 32, 36))


@torch.no_grad()
def test_dofa_gives_what_torchgeos_does(geo, tiny, monkeypatch):
    torch.manual_seed(0)
    small = {"patch_size": 16, "embed_dim": 64, "depth": 4, "num_heads": 4}
    monkeypatch.setattr(geo, "dofa_base_patch16_224", partial(geo.DOFA, **small))
    model = geo.dofa_base_patch16_224(num_classes=0).eval()
    weights = geo.DOFABase16_Weights.DOFA_MAE
    state = {key: value for key, value in model.state_dict().items() if "fc_norm" not in key}
    torch.save(state, tiny / weights.url.rsplit("/", 1)[-1])
    x = torch.rand(1, 12, 224, 224) * 5000
    waves = [0.443, 0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865, 0.945, 1.61, 2.19]
    found = gather_encoders(f"s2=torchgeo:{weights}", DATA)["s2"]
    z = ((x.movedim(1, -1) - torch.tensor(S2.mean)) / torch.tensor(S2.std)).movedim(-1, 1)
    assert torch.allclose(vector(found, x), model(z.clamp(-2, 2), waves), atol=1e-4)
    assert [m.shape for m in found.forward_features(x[:, :, :120, :120])] == [(1, 64, 7, 7)] * 4
