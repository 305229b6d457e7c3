"""Pretraining starts from weights of timm, torchgeo and the hub; the carriers are stood in for."""

import logging
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision.transforms.v2 as T
from torch import nn
from torchvision.models._api import Weights, WeightsEnum

from decur.encoders import EncoderSettings, build_encoder, load_encoder, save_encoder
from decur.encoders import pretrained as carrier_of_torchgeo
from decur.errors import ConfigError
from decur.modality import Modality
from decur.registry import refuse_foreign

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
S2 = Modality("s2", ("B02", "B03", "B04"), mean=(900, 1000, 1100), std=(300, 400, 500))


@pytest.fixture
def photographs(monkeypatch):
    """A model of timm's in place of one that would be downloaded."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD}
    real = timm.create_model

    def create(name, **options):
        return model if options.get("pretrained") else real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return model


def normalised(x):
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (x - mean) / std


@torch.no_grad()
@pytest.mark.parametrize("source", ["timm:test_resnet.r160_in1k", "hf-hub:someone/photographs"])
def test_timms_weights_see_colours_as_in_their_training(
    source, photographs, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr("decur.encoders.continued.encoder_files", lambda source: {})
    with caplog.at_level(logging.INFO, "decur"):
        encoder = EncoderSettings("test_resnet", weights=source).build("s2", S2).eval()
    x = torch.rand(2, 3, 32, 32)  # B2, B3, B4: blue, green, red
    expected = photographs(normalised(x.flip(1)))
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)
    assert "3 of 3 bands keep their filters; pictures are normalised as in its" in caplog.text
    again = load_encoder(save_encoder(encoder, tmp_path / "s2.safetensors"))
    torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_new_bands_start_from_the_mean_of_all(photographs, caplog):
    wanted = Modality("s2", ("B4", "B3", "B2", "B8"), mean=(0,) * 4, std=(1,) * 4)
    with caplog.at_level(logging.INFO, "decur"):
        weights = {"s2": "timm:test_resnet"}
        encoder = EncoderSettings("test_resnet", weights=weights).build("s2", wanted).eval()
    x = torch.rand(2, 4, 32, 32)
    seen = normalised(x[:, :3]) + (x[:, 3:] - 0.5) / 0.25 / 3
    torch.testing.assert_close(encoder(x), photographs(seen), rtol=1e-4, atol=1e-5)
    assert "3 of 4 bands keep their filters; B8 start from the mean of all" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize(
    ("scaling", "raw"),
    [
        ({"scaling": "standard"}, lambda y: 1000 - 2 * 400 + 4 * 400 * y),
        ({"scaling": "range", "value_range": (0.0, 8000.0)}, lambda y: 8000 * y),
        ({"scaling": "zscore"}, lambda y: 1000 + 400 * y),
    ],
)
def test_torchgeos_weights_see_the_raw_values_that_they_know(scaling, raw, monkeypatch):
    model = timm.create_model("test_resnet", in_chans=2, num_classes=0).eval()
    tiny = WeightsEnum(
        "Tiny_Weights",
        {
            "S2": Weights(
                url="https://hf.co/none/tiny.pth",
                transforms=nn.Sequential(T.Normalize([700, 600], [3000, 2000])),
                meta={"in_chans": 2, "bands": ["B3", "B4"]},
            )
        },
    )
    carrier = SimpleNamespace(
        list_models=lambda: ["test_resnet"], get_model_weights={"test_resnet": tiny}.__getitem__
    )
    monkeypatch.setattr(carrier_of_torchgeo, "require_torchgeo", lambda: carrier)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **how: dict(model.state_dict()))
    wanted = Modality("s2", ("B04", "B03"), **{"mean": (1000,) * 2, "std": (400,) * 2, **scaling})
    settings = EncoderSettings("test_resnet", weights="torchgeo:Tiny_Weights.S2")
    encoder = settings.build("s2", wanted).eval()
    y = torch.rand(2, 2, 32, 32)
    mean, std = (
        torch.tensor([700.0, 600])[:, None, None],
        torch.tensor([3000.0, 2000])[:, None, None],
    )
    expected = model((raw(y).flip(1) - mean) / std)
    torch.testing.assert_close(encoder(y), expected, rtol=1e-3, atol=1e-4)


def test_encoders_of_the_hub_are_taken_by_sensor(monkeypatch, tmp_path):
    encoder = build_encoder("test_resnet", S2)
    path = save_encoder(encoder, tmp_path / "model.safetensors")
    monkeypatch.setattr("decur.encoders.continued.encoder_files", lambda source: {"s2": path})
    settings = EncoderSettings("test_resnet", weights="hf-hub:someone/encoders")
    again = settings.build("s2", S2)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in encoder.state_dict().items())
    with pytest.raises(ConfigError, match="has encoders of s2 alone"):
        settings.build("s1", S2.with_(name="s1"))


def test_what_cannot_be_had_is_refused_in_one_line(photographs, monkeypatch):
    with pytest.raises(ConfigError, match=r"give --encoder\.name test_resnet"):
        EncoderSettings("resnet18", weights="timm:test_resnet").build("s2", S2)

    def offline(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"timm:test_resnet cannot be had \(no network\)"):
        from decur.encoders.continued import start_from

        encoder = SimpleNamespace(modality=S2, name="test_resnet")
        start_from(encoder, "timm:test_resnet")


def test_a_kept_configuration_may_name_weights_and_no_builder():
    refuse_foreign({"encoder": {"weights": {"s1": "timm:resnet50", "s2": "hf-hub:a/b"}}}, "file")
    with pytest.raises(ConfigError, match="--trust"):
        refuse_foreign({"encoder": {"name": "somewhere:network"}}, "file")
