"""Activations computed again: the same gradients and statistics from less memory."""

import pytest
import torch

from decur import Modality
from decur.encoders import EncoderSettings, build_encoder
from decur.encoders.checkpointing import batch_statistics, checkpoint_activations
from decur.errors import ConfigError

TWO = Modality("radar", ("vv", "vh"), value_range=(0, 1), scaling="range", size=(32, 32))
VIT = {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8, "img_size": 32}
ENCODERS = [
    ("test_resnet", {}),
    ("test_resnet", {"attention": "rda"}),
    ("vit_tiny_patch16_224", VIT),
    ("mit_b0", {}),
]


def gradients(name, options, checkpointing):
    torch.manual_seed(0)
    encoder = EncoderSettings(name, options=options, checkpointing=checkpointing).build("r", TWO)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 2, 32, 32, generator=generator)
    kept = 0  # numbers that wait for the backward pass

    def keep(x):
        nonlocal kept
        kept += x.numel()
        return x

    torch.manual_seed(2)  # of dropout and stochastic depth
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = encoder(images).square().mean()
    loss.backward()
    return kept, {k: p.grad for k, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "options"), ENCODERS)
def test_gradients_are_those_of_keeping_everything(name, options):
    (much, kept), (little, again) = (gradients(name, options, on) for on in (False, True))
    assert little < much / 2
    assert kept.keys() == again.keys() and kept
    for key, gradient in kept.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-5, atol=1e-8, msg=key)


def test_what_cannot_do_it_says_so():
    for name in ("alexnet", "mlp"):
        with pytest.raises(ConfigError, match=rf"encoder.checkpointing: '{name}'.*set it to false"):
            checkpoint_activations(build_encoder(name, 2))
    with pytest.raises(ConfigError, match="attention to another sensor"):
        checkpoint_activations(build_encoder("test_resnet", 2, attention="cross_da"))


def test_statistics_are_those_of_batch_normalisations():
    encoder = build_encoder("test_resnet", 2)
    names = {id(buffer) for key, buffer in encoder.named_buffers() if "running" in key}
    assert names <= {id(buffer) for buffer in batch_statistics(encoder)}
    assert not list(batch_statistics(build_encoder("vit_tiny_patch16_224", 2)))


def test_a_large_transformer_is_built():
    with torch.device("meta"):
        encoder = EncoderSettings("vit_large_patch16_224", checkpointing=True).build("r", TWO)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(303, abs=2)
    assert encoder.backbone.grad_checkpointing
