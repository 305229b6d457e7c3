"""Pretraining goes on from weights that there are."""

import logging

import pytest
import torch

from decur.encoders import EncoderSettings, build_encoder, save_encoder
from decur.errors import ConfigError
from decur.modality import Modality


def sensor(*bands, **changes):
    given = {"mean": [0.0] * len(bands), "std": [1.0] * len(bands), **changes}
    return Modality("s2", bands, **given)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("test_resnet", sensor("B02", "B03", "B04"))
    return encoder.eval(), save_encoder(encoder, tmp_path / "encoders" / "s2.safetensors")


def test_shared_bands_keep_their_filters_and_new_ones_get_the_mean(saved, caplog):
    old, path = saved
    wanted = sensor("B4", "B8", "B2")  # another order, another spelling, one of them new
    with caplog.at_level(logging.INFO, "decur"):
        new = EncoderSettings("test_resnet", weights=str(path)).build("s2", wanted).eval()
    x = torch.rand(2, 3, 32, 32)
    # As if the old encoder saw B2 and B4 as they are, and a third of B8 in every band.
    expected = torch.stack([x[:, 2], torch.zeros_like(x[:, 0]), x[:, 0]], 1) + x[:, 1:2] / 3
    torch.testing.assert_close(new(x), old(expected), rtol=1e-4, atol=1e-5)
    assert "2 of 3 bands keep their filters; B8 start from the mean of all" in caplog.text


def test_bands_without_names_are_taken_in_their_order(saved, caplog):
    old, path = saved
    with caplog.at_level(logging.INFO, "decur"):
        new = EncoderSettings("test_resnet", weights=str(path)).build("s2", sensor(*"123")).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(new(x), old(x))
    assert "3 of 3 bands keep their filters; 1, 2, 3 are taken for B2, B3, B4" in caplog.text


def test_a_runs_folder_gives_the_encoder_of_the_same_sensor(saved):
    old, path = saved
    for weights in (str(path.parent.parent), {"s2": str(path)}):
        new = EncoderSettings("test_resnet", weights=weights).build("s2", old.modality).eval()
        for key, value in old.state_dict().items():
            assert torch.equal(new.state_dict()[key], value)
    scratch = EncoderSettings("test_resnet", weights={"s1": str(path)}).build("s2", old.modality)
    assert not torch.equal(next(scratch.parameters()), next(old.parameters()))


def test_a_sensor_that_is_not_there_is_told(caplog):
    names = {"s2": "test_resnet", "s9": "test_resnet"}
    EncoderSettings(names, weights={"s1": "a", "s9": "b"}).tell_unused(["s1", "s2"])
    assert caplog.messages == [
        f"encoder.{key}: s9 is of no use, as the sensors are s1, s2" for key in ("name", "weights")
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "resnet10t"}, "holds a test_resnet, encoder.name is resnet10t"),
        ({"name": "test_resnet", "attention": "rda"}, "holds another test_resnet"),
        ({"name": "test_resnet", "weights": "nowhere"}, "nowhere: no such file"),
        ({"name": "test_resnet", "pretrained": True}, "leave it out beside encoder.weights"),
    ],
)
def test_what_does_not_fit_is_refused(saved, settings, said):
    old, path = saved
    with pytest.raises(ConfigError, match=said):
        EncoderSettings(**{"weights": str(path), **settings}).build("s2", old.modality)
