"""An encoder with its projector: the embedding as a vector, through files like any other."""

import pytest
import torch

from decur import Modality
from decur.encoders import ProjectedEncoder, Projector, build_encoder, load_encoder, save_encoder
from decur.errors import ConfigError

X = Modality("x", ("p", "q", "r"), scaling="range")


@pytest.fixture
def pieces():
    """An encoder and a projector whose batch statistics are not the initial ones."""
    torch.manual_seed(0)
    encoder = build_encoder("test_resnet", X)
    projector = Projector(encoder.dim, 12, layers=3)
    projector(encoder(torch.rand(8, 3, 32, 32)))
    return encoder.eval(), projector.eval()


@pytest.mark.parametrize("part", [None, (0, 12), (3, 8)])
@torch.no_grad()
def test_its_vector_is_the_part_of_the_embedding(pieces, part, tmp_path):
    encoder, projector = pieces
    projected = ProjectedEncoder(encoder, projector, part=part).eval()
    x = torch.rand(5, 3, 32, 32)
    start, stop = part or (0, 12)
    assert torch.equal(projected(x), projector(encoder(x))[:, start:stop])
    assert projected.dim == stop - start and projected.modality == X
    maps = zip(projected.forward_features(x), encoder.forward_features(x), strict=True)
    assert all(torch.equal(a, b) for a, b in maps)
    again = load_encoder(save_encoder(projected, tmp_path / "x.safetensors"), X)
    assert torch.equal(again(x), projected(x)) and again.dim == projected.dim


@torch.no_grad()
def test_without_layers_it_is_the_encoder(pieces, tmp_path):
    encoder, _ = pieces
    projected = ProjectedEncoder(encoder, Projector(encoder.dim, layers=0), part=(1, 4))
    x = torch.rand(2, 3, 32, 32)
    again = load_encoder(save_encoder(projected, tmp_path / "x.safetensors"))
    assert torch.equal(again(x), encoder(x)[:, 1:4])


@torch.no_grad()
def test_the_head_of_simclr_survives_a_file(pieces, tmp_path):
    encoder, _ = pieces
    head = Projector(encoder.dim, 6, layers=2, hidden=10, last_norm=True)
    head(encoder(torch.rand(8, 3, 32, 32)))
    projected, x = ProjectedEncoder(encoder, head.eval()).eval(), torch.rand(2, 3, 32, 32)
    again = load_encoder(save_encoder(projected, tmp_path / "x.safetensors"))
    assert torch.equal(again(x), head(encoder(x)))
    with pytest.raises(ConfigError, match="last_norm"):
        Projector(4, layers=0, last_norm=True)


def test_it_is_not_made_by_name_alone():
    with pytest.raises(ConfigError, match="option 'encoder' is missing"):
        build_encoder("projected", X)
    with pytest.raises(ConfigError, match="no pretrained weights"):
        build_encoder("projected", X, pretrained=True)
