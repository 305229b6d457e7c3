"""Encoders: shapes as promised, timm's keys, any number of bands, clear refusals."""

from types import SimpleNamespace

import pytest
import timm
import torch

from decur import Modality
from decur.encoders import (
    Projector,
    base,
    build_encoder,
    geo,
    list_encoders,
    load_encoder,
    save_encoder,
)
from decur.errors import ConfigError, DataError

NAMES = ["resnet18", "resnet50", "vit_small_patch16_224"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bands", [1, 13])
def test_shapes_are_those_promised(name, bands):
    encoder = build_encoder(name, bands).eval()
    x = torch.rand(2, bands, 64, 96)
    with torch.no_grad():
        maps, pooled = encoder.forward_features(x), encoder(x)
    assert [m.shape[1] for m in maps] == encoder.channels
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(s, s) for s in encoder.strides]
    assert pooled.shape == (2, encoder.dim)
    assert len(maps) >= 4


def test_the_width_is_that_of_the_vector_where_layers_follow_the_last_map():
    encoder = build_encoder("mobilenetv3_small_050", 2).eval()
    assert encoder(torch.rand(1, 2, 32, 32)).shape == (1, encoder.dim)


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_224"])
def test_state_dict_is_timms_own(name):
    encoder = build_encoder(name, 5)
    plain = timm.create_model(name, in_chans=5, num_classes=0, **encoder.options)
    plain.load_state_dict(encoder.state_dict(), strict=True)
    torch.nn.init.normal_(next(plain.parameters()))
    encoder.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(1, 5, 224, 224)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x), plain.eval()(x))


def test_a_nested_encoder_keeps_its_keys_apart():
    both = torch.nn.ModuleDict({"s1": build_encoder("resnet18", 2)})
    keys = set(both.state_dict())
    assert "s1.conv1.weight" in keys and not any("backbone" in key for key in keys)
    both.load_state_dict(both.state_dict(), strict=True)


def test_unknown_name_suggests():
    with pytest.raises(ConfigError, match="resnet50"):
        build_encoder("resnet_50", 3)
    assert "resnet50" in list_encoders("resnet5*")


def test_another_sensor_is_refused():
    encoder = build_encoder("resnet18", Modality.preset("sentinel1"))
    encoder.check(Modality.preset("sentinel1"))
    with pytest.raises(DataError, match="bands"):
        encoder.check(Modality.preset("sentinel2-l1c"))


def test_croma_takes_pictures_after_their_size_was_tried_on_shapes_alone(monkeypatch):
    class Biased(torch.nn.Linear):
        def forward(self, y, bias=None):
            return super().forward(y) if bias is None else super().forward(y) + bias.mean()

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear_input = torch.nn.Linear(2 * 8 * 8, 4)
            self.transformer = torch.nn.Module()
            pairs = [torch.nn.ModuleList([Biased(4, 4), Biased(4, 4)]) for _ in range(4)]
            self.transformer.layers = torch.nn.ModuleList(pairs)
            self.transformer.norm_out = torch.nn.LayerNorm(4)

    def croma(modalities, image_size):
        bias = torch.rand(1, 2, 16, 16)
        parts = {"s1_encoder": Half(), "s1_GAP_FFN": torch.nn.Linear(4, 4), "encoder_dim": 4}
        return SimpleNamespace(**parts, num_heads=2, num_patches=16, attn_bias=bias)

    monkeypatch.setattr(geo, "_torchgeo", lambda name: croma)
    monkeypatch.setattr(base, "_QUICK", 0)  # as for CROMA's own 85 million weights
    encoder, x = geo.CROMAEncoder("croma_base", sensor="sar"), torch.rand(2, 2, 32, 32)
    before = encoder(x)
    base.refuse_size(encoder, Modality.preset("sentinel1"), size=(32, 32))
    assert torch.equal(encoder(x), before)


def test_projector_is_the_papers():
    projector = Projector(512, 128)
    kinds = [type(m).__name__ for m in projector]
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == [*block, *block, "Linear"]
    assert all(m.bias is None for m in projector if isinstance(m, torch.nn.Linear))
    assert projector(torch.rand(4, 512)).shape == (4, 128)
    assert Projector(512, layers=0).dim == 512
    with pytest.raises(ConfigError, match="width"):
        Projector(512, width=0)


@torch.no_grad()
@pytest.mark.parametrize("bands", [("R", "G", "B"), ("B04", "B03", "B02"), ("B2", "B3", "B4")])
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext"])
def test_pretrained_weights_see_pictures_normalised_as_in_their_training(bands, name, tmp_path):
    """Whole pictures, borders included, in the order of the bands; also from a file, with maps."""
    plain = timm.create_model(name, num_classes=0).eval()
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 0}
    modality = Modality("rgb", bands, scaling="range")
    encoder = build_encoder(name, modality, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.rand(2, 3, 160, 160)
    mean, std = (torch.tensor(plain.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    seen = (x - mean) / std
    pictures = x.flip(1) if bands[0] == "B2" else x
    torch.testing.assert_close(encoder(pictures), plain(seen), atol=1e-4, rtol=1e-3)
    again = load_encoder(save_encoder(encoder, tmp_path / "rgb.safetensors"))
    assert torch.equal(again(pictures), encoder(pictures))
    maps = plain.forward_intermediates(seen, indices=encoder.indices, intermediates_only=True)
    torch.testing.assert_close(again.forward_features(pictures), maps, atol=1e-4, rtol=1e-3)
    assert list(encoder.state_dict()) == list(plain.state_dict())  # timm's own keys
    fresh = build_encoder(name, modality).eval()
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(x), plain(x))  # what is not pretrained takes pictures as they are


@torch.no_grad()
@pytest.mark.parametrize("bands", [1, 2, 4])
def test_pretrained_weights_of_other_bands_see_them_normalised_too(bands, tmp_path):
    """As timm deals filters out: summed for one band, red, green, blue in turn for others."""
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 0}
    start = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    modality = Modality("sar", tuple("abcd"[:bands]), scaling="range")
    encoder = build_encoder("resnet10t", modality, **start).eval()
    plain = timm.create_model("resnet10t", num_classes=0, in_chans=bands, **start).eval()
    x = torch.rand(2, bands, 64, 64)
    mean, std = (
        torch.tensor([sum(three) / 3] if bands == 1 else (three * 2)[:bands])[:, None, None]
        for three in (plain.pretrained_cfg[key] for key in ("mean", "std"))
    )
    torch.testing.assert_close(encoder(x), plain((x - mean) / std), atol=1e-4, rtol=1e-3)
    again = load_encoder(save_encoder(encoder, tmp_path / "sar.safetensors"))
    assert torch.equal(again(x), encoder(x))
    numbers = dict.fromkeys(("mean", "std"), (1.0,) * bands)
    normal = Modality("sar", modality.bands, scaling="zscore", **numbers)
    assert torch.equal(build_encoder("resnet10t", normal, **start).eval()(x), plain(x))
