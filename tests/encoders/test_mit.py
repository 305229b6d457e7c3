"""Mix Transformers: the keys of the release, any bands, any size, files, pretraining."""

import builtins

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from segmentation_models_pytorch import encoders as smp_encoders
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from decur import Modality
from decur.cli import main
from decur.encoders import MiTEncoder, build_encoder, list_encoders, load_encoder, save_encoder
from decur.errors import ConfigError

# Blocks of the four stages, and by how much a stage's keys are reduced (SegFormer, Table 6).
DEPTHS = {"mit_b0": [2, 2, 2, 2], "mit_b2": [3, 4, 6, 3], "mit_b5": [3, 6, 40, 3]}
REDUCED = [8, 4, 2, 1]


def release_keys(name):
    """Keys of the NVlabs release, but for its classifier's."""
    layers = []
    for stage, (blocks, reduced) in enumerate(zip(DEPTHS[name], REDUCED, strict=True), 1):
        layers += [f"patch_embed{stage}.proj", f"patch_embed{stage}.norm", f"norm{stage}"]
        inside = ["norm1", "attn.q", "attn.kv", "attn.proj", "norm2"]
        inside += ["mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
        inside += ["attn.sr", "attn.norm"] if reduced > 1 else []
        layers += [f"block{stage}.{block}.{part}" for block in range(blocks) for part in inside]
    return {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


DEEPEST = pytest.param("mit_b5", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*(name for name in DEPTHS if name != "mit_b5"), DEEPEST])
def test_keys_are_those_of_the_release(name):
    encoder = build_encoder(name, 3)
    assert set(encoder.state_dict()) == release_keys(name)
    assert {"patch_embed1.proj.weight", "block1.0.norm1.weight"} < set(encoder.state_dict())
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    # SegFormer, Table 1: parameters of the encoder
    assert millions == pytest.approx(
        {"mit_b0": 3.4, "mit_b2": 24.2, "mit_b5": 81.4}[name], rel=0.03
    )


@pytest.mark.parametrize(("bands", "size"), [(1, (64, 96)), (13, (70, 45)), (3, (29, 29))])
def test_any_bands_and_sizes(bands, size):
    encoder = build_encoder("mit_b0", bands).eval()
    x = torch.rand(2, bands, *size)
    with torch.no_grad():
        maps, pooled = encoder.forward_features(x), encoder(x)
    assert [m.shape[1] for m in maps] == encoder.channels == [32, 64, 160, 256]
    assert encoder.strides == [4, 8, 16, 32]
    for found, stride in zip(maps, encoder.strides, strict=True):
        assert found.shape[2:] == tuple(-(-side // stride) for side in size)
        torch.testing.assert_close(found.mean(1), torch.zeros_like(found[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, maps[-1].flatten(2).mean(2))
    assert pooled.shape == (2, encoder.dim)


def test_it_is_segmentation_models_own():
    plain = smp_encoders.get_encoder("mit_b0", weights=None).eval()
    encoder = build_encoder("mit_b0", 3).eval()
    encoder.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(encoder.forward_features(x), plain(x)[2:], strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_weights_of_imagenet_take_pictures_in_0_to_1(bands, monkeypatch):
    plain = smp_encoders.get_encoder("mit_b0", in_channels=bands, weights=None)
    plain.patch_embed1.proj.bias.data.uniform_()
    kept = {key: value.clone() for key, value in plain.state_dict().items()}
    monkeypatch.setattr(smp_encoders, "get_encoder", lambda *a, weights, **b: plain)
    encoder = build_encoder("mit_b0", bands, pretrained=True)
    x = torch.rand(1, bands, 64, 64)
    with torch.no_grad():
        found = encoder.patch_embed1.proj(x)
        plain.load_state_dict(kept)
        mean, std = (
            torch.tensor([sum(v) / 3] if bands == 1 else [*v, v[0]][:bands])[:, None, None]
            for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        expected = plain.patch_embed1.proj((x - mean) / std)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])  # borders: black


def test_stages_can_be_stepped():
    encoder = build_encoder("mit_b0", 2).eval()
    x = torch.rand(1, 2, 64, 64)
    with torch.no_grad():
        maps = encoder.forward_features(x)
        for number, expected in enumerate(maps):
            x = encoder.stage(number, x)
            assert torch.equal(x, expected)


def test_every_weight_learns():
    encoder = build_encoder("mit_b0", 4).eval()  # no stochastic depth, which would skip blocks
    encoder(torch.rand(2, 4, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_it_comes_back_from_a_file(tmp_path):
    modality = Modality(name="deep", bands=("a", "b"), scaling="range")
    encoder = build_encoder("mit_b0", modality).eval()
    again = load_encoder(save_encoder(encoder, tmp_path / "deep.safetensors"))
    assert isinstance(again, MiTEncoder) and again.modality == modality
    x = torch.rand(1, 2, 40, 40)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), encoder(x))


def test_it_is_pretrained(tmp_path):
    main(
        [
            *("pretrain", "--config=demo", "--encoder.name=mit_b0", "--encoder.attention=null"),
            *("--data.samples=16", "--loader.batch_size=8", "--loader.workers=0"),
            *("--projector.width=16", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
            *("--optimizer.name=adamw", "--optimizer.lr=1e-4", "--views.size=32"),
            f"--run={tmp_path / 'run'}",
        ]
    )
    made = sorted((tmp_path / "run" / "encoders").glob("*.safetensors"))
    assert len(made) >= 2 and load_encoder(made[0]).name == "mit_b0"


def test_what_it_cannot_do_is_said(monkeypatch):
    assert list_encoders("mit_*") == [f"mit_b{size}" for size in range(6)]
    with pytest.raises(ConfigError, match="29 px or more, these have 28 x 64"):
        build_encoder("mit_b0", 3)(torch.rand(1, 3, 28, 64))
    with pytest.raises(ConfigError, match="no options, got attention"):
        build_encoder("mit_b0", 3, attention="rda")
    with pytest.raises(ConfigError, match="choose from mit_b0"):
        MiTEncoder("mit_b6", 3)


def test_without_its_library_or_network_one_line_says_so(monkeypatch):
    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("Cannot find the file;\ncheck your connection")

    with monkeypatch.context() as patched:
        patched.setattr(smp_encoders, "get_encoder", offline)
        with pytest.raises(ConfigError, match=r"cannot be loaded \(Cannot find the file; check"):
            build_encoder("mit_b0", 3, pretrained=True)
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("segmentation_models_pytorch"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'decur\[mit\]'"):
        build_encoder("mit_b0", 3)
