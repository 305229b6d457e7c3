"""The MLP encoder: the network it says it is, through files and commands like any other."""

import numpy as np
import pytest
import torch

from decur import Modality
from decur.encoders import Encoder, build_encoder, list_encoders, load_encoder, save_encoder
from decur.errors import ConfigError, DataError

X = Modality(name="x", bands=("p", "q", "r"), scaling="range")


def trained(**options):
    """An encoder whose batch statistics are not the initial ones."""
    torch.manual_seed(0)
    encoder = build_encoder("mlp", X, **options)
    encoder(torch.rand(64, 3, 4, 4))
    return encoder.eval()


def test_it_is_a_perceptron_on_the_mean_pixel():
    encoder = trained(width=8, layers=3)
    x = torch.rand(5, 3, 4, 6)
    state = {key: value.double().numpy() for key, value in encoder.state_dict().items()}
    h = x.double().numpy().mean((2, 3))
    for i in range(3):
        h = h @ state[f"layers.{i}.0.weight"][:, :, 0, 0].T
        mean, var = state[f"layers.{i}.1.running_mean"], state[f"layers.{i}.1.running_var"]
        h = (h - mean) / np.sqrt(var + 1e-5)
        h = np.maximum(h * state[f"layers.{i}.1.weight"] + state[f"layers.{i}.1.bias"], 0)
    np.testing.assert_allclose(encoder(x).detach().numpy(), h, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_shapes_are_those_promised(size):
    encoder = trained(width=16, layers=2)
    assert isinstance(encoder, Encoder)
    x = torch.rand(5, 3, *size)
    with torch.no_grad():
        maps, pooled = encoder.forward_features(x), encoder(x)
    assert [tuple(m.shape) for m in maps] == [(5, 16, *size)] * 2
    assert (encoder.channels, encoder.strides, encoder.dim) == ([16, 16], [1, 1], 16)
    assert pooled.shape == (5, 16)
    if size == (1, 1):
        assert torch.equal(maps[-1][..., 0, 0], pooled)


def test_where_a_pixel_lies_does_not_matter():
    encoder = trained(width=16)
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(encoder(x), encoder(x.flip(2).transpose(2, 3)), atol=1e-6)


def test_it_goes_through_a_file(tmp_path):
    encoder = trained(width=24, layers=3)
    loaded = load_encoder(save_encoder(encoder, tmp_path / "x.safetensors"), X)
    assert (loaded.name, loaded.options) == ("mlp", {"width": 24, "layers": 3})
    assert loaded.modality == X
    x = torch.rand(4, 3, 2, 2)
    assert torch.equal(loaded(x), encoder(x))
    with pytest.raises(DataError, match="bands"):
        load_encoder(tmp_path / "x.safetensors", X.with_(bands=("p", "r", "q")))


def test_it_is_listed():
    assert list_encoders("m?p") == ["mlp"]
    assert "mlp" in list_encoders() and "mlp" not in list_encoders("resnet*")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, "width and layers must be 1 or more"),
        ({"layers": 0}, "width and layers must be 1 or more"),
        ({"depth": 3}, "depth.*its options are width and layers"),
        ({"width": "wide"}, "its options are width and layers"),
        ({"pretrained": True}, "no pretrained weights"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ConfigError, match=match) as caught:
        build_encoder("mlp", 3, **options)
    assert "\n" not in str(caught.value)
