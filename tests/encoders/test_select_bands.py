"""Bands that are left out are bands of zeros, to rounding."""

import pytest
import torch

from decur import Modality
from decur.encoders import Encoder, build_encoder, select_bands
from decur.errors import DataError

FOUR = Modality("x", ("a", "b", "c", "d"), mean=(1, 2, 3, 4), std=(5, 6, 7, 8))


def trained(name: str, modality: Modality = FOUR, **options) -> Encoder:
    """An encoder whose batch statistics are not the initial ones."""
    torch.manual_seed(0)
    encoder = build_encoder(name, modality, **options).train()
    encoder(torch.rand(4, modality.channels, 64, 64))
    return encoder.eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {}),
        ("resnet18", {}),
        ("tf_mobilenetv3_small_minimal_100", {}),  # pads unevenly, by itself
        ("test_vit", {}),
        ("mlp", {"width": 16}),
    ],
)
@pytest.mark.parametrize("bands", ["abd", "c", "dca", "dcba"])
@torch.no_grad()
def test_it_is_the_encoder_on_pictures_with_bands_of_zeros(name, options, bands):
    encoder = trained(name, **options)
    fewer = select_bands(encoder, tuple(bands))
    x = torch.rand(2, len(bands), 64, 64)
    whole = torch.zeros(2, 4, 64, 64)
    for band, picture in zip(bands, x.unbind(1), strict=True):
        whole[:, "abcd".index(band)] = picture
    assert torch.allclose(fewer(x), encoder(whole), atol=1e-5, rtol=1e-4)
    maps = zip(fewer.forward_features(x), encoder.forward_features(whole), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in maps)
    assert not torch.allclose(fewer(x), fewer(x.flip(0)))  # the pictures are looked at


def test_a_band_that_is_left_out_is_at_the_mean_that_pictures_are_normalised_by():
    normalised = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8]}
    encoder = trained("resnet10t", normalisation=normalised)
    x = torch.rand(2, 4, 64, 64)
    x[:, 0], x[:, 2] = 0.1, 0.3
    fewer = select_bands(encoder, ("d", "b"))
    assert fewer.options["normalisation"] == {"mean": [0.4, 0.2], "std": [0.8, 0.6]}
    assert torch.allclose(fewer(x[:, [3, 1]]), encoder(x), atol=1e-5, rtol=1e-4)


def test_the_modality_keeps_what_belongs_to_the_bands():
    fewer = select_bands(trained("mlp", width=8).train(), ("d", "b"))
    assert fewer.modality == FOUR.with_(bands=("d", "b"), mean=(4, 2), std=(8, 6))
    assert fewer.training
    ranged = Modality("x", ("a", "b"), scaling="range")
    assert select_bands(trained("mlp", ranged), ("b",)).modality == ranged.with_(bands=("b",))


def test_what_cannot_be_selected_is_refused():
    with pytest.raises(DataError, match="knows no band 'e'; it has a, b, c, d"):
        select_bands(trained("mlp", width=8), ("a", "e"))
    # weights that are standardised over the bands: without one, all of them change
    with pytest.raises(DataError, match="'test_nfnet' cannot do without a band"):
        select_bands(trained("test_nfnet"), ("a", "b"))
