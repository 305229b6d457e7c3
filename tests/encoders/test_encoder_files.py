"""Encoder files: weights and modality go together, and nothing else is let in."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from decur import Modality
from decur.encoders import build_encoder, load_encoder, save_encoder
from decur.errors import ConfigError, DataError

S1, S2 = Modality.preset("sentinel1"), Modality.preset("sentinel2-l1c")


@pytest.fixture
def file(tmp_path):
    return save_encoder(build_encoder("test_resnet", S1), tmp_path / "sub" / "s1.safetensors")


def test_an_encoder_comes_back_with_its_modality(tmp_path):
    encoder = build_encoder("vit_tiny_patch16_224", S1, img_size=64).eval()
    loaded = load_encoder(save_encoder(encoder, tmp_path / "e.safetensors"), S1)
    assert loaded.modality == S1 and not loaded.training
    x = torch.rand(2, 2, 64, 64)
    assert torch.equal(loaded(x), encoder(x))


def test_the_file_loads_into_plain_timm(file):
    plain = timm.create_model("test_resnet", in_chans=2, num_classes=0)
    plain.load_state_dict(load_file(file), strict=True)


def test_an_encoder_for_other_bands_is_refused(file):
    with pytest.raises(DataError, match=r"s1\.safetensors.*sentinel2-l1c.*bands"):
        load_encoder(file, S2)
    with pytest.raises(DataError, match="mean"):
        load_encoder(file, S1.with_(mean=(0.0, 0.0)))


def test_files_that_are_no_encoders_are_refused(file, tmp_path):
    with pytest.raises(DataError, match="no such encoder file"):
        load_encoder(tmp_path / "nothing")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_encoder(cut)
    bare = tmp_path / "bare.safetensors"
    save_file({"x": torch.zeros(1)}, bare)
    with pytest.raises(DataError, match="no modality"):
        load_encoder(bare)
    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_encoder(pickled)


def test_weights_of_another_architecture_are_refused(file, tmp_path):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    metadata["decur"] = metadata["decur"].replace("test_resnet", "resnet18")
    wrong = tmp_path / "wrong.safetensors"
    save_file(load_file(file), wrong, metadata)
    with pytest.raises(DataError, match="do not fit a 'resnet18'"):
        load_encoder(wrong)


def test_an_encoder_without_a_modality_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="modality"):
        save_encoder(build_encoder("test_resnet", 2), tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())
