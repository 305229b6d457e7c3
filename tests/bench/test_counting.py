"""Operations and bytes against counts by hand, and against what is known of ResNet-50."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from decur.bench.counting import Kept, Operations, count

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


@DEVICES
def test_linear(device):
    module = nn.Linear(16, 8, device=device)
    found = count(module, torch.zeros(4, 16, device=device))
    weights = 16 * 8 + 8
    product = 2 * 4 * 16 * 8
    moved = 4 * (weights + 4 * 16 + 4 * 8)
    # nothing asks for the input's gradient: one product backward; its input is kept
    assert found == Operations(product, product, moved, weights, 4 * 4 * 16)
    asked = count(module, torch.zeros(4, 16, device=device, requires_grad=True))
    assert asked.backward == 2 * product
    assert module.weight.grad is None


@DEVICES
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(device, groups):
    module = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups, bias=False, device=device)
    found = count(module, torch.zeros(2, 8, 10, 10, device=device, requires_grad=True))
    once = 2 * (2 * 12 * 5 * 5) * (8 // groups) * 9
    assert (found.forward, found.backward) == (once, 2 * once)
    weights = 12 * (8 // groups) * 9
    assert found.bytes == 4 * (weights + 2 * 8 * 10 * 10 + 2 * 12 * 5 * 5)


class Attention(nn.Module):
    def forward(self, q, k, v, mask=None):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)


@DEVICES
@pytest.mark.parametrize("masked", [False, True])
def test_attention(device, masked):
    q = torch.zeros(2, 3, 5, 16, device=device, requires_grad=True)
    k, v = (torch.zeros(2, 3, 7, 16, device=device, requires_grad=True) for _ in range(2))
    mask = [torch.zeros(2, 3, 5, 7, device=device, requires_grad=True)] if masked else []
    found = count(Attention(), q, k, v, *mask)
    once = 2 * (2 * 3) * 5 * 7 * 16
    assert (found.forward, found.backward) == (2 * once, 4 * once)


def test_multihead_attention_of_a_transformer():
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, device="meta")
    tokens, width = 197, 192
    found = count(module, torch.zeros(1, 3, 224, 224, device="meta"))
    linear = tokens * (3 + 1 + 4 + 4) * width**2  # query, key, value; out; two of the MLP
    patches = 196 * width * 3 * 16**2
    assert found.forward == 2 * (patches + linear + 2 * tokens**2 * width)


def test_resnet50_has_4_1_billion_multiply_adds():
    module = timm.create_model("resnet50", device="meta")
    found = count(module, torch.zeros(1, 3, 224, 224, device="meta"))
    assert found.forward / 2 == pytest.approx(4.1e9, rel=0.01)
    assert found.parameters == 25_557_032
    # two products backward for each forward, but for the first layer's input
    first = 2 * 112 * 112 * 64 * 3 * 49
    assert found.backward == 2 * found.forward - first


def test_what_is_kept_counts_once_and_parameters_not():
    x = torch.randn(32, 16)
    # ReLU keeps its own output, which the next layer keeps as its input
    module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    assert count(module, x).activations == 4 * (32 * 16 + 32 * 64)
    assert count(nn.Sequential(nn.Linear(16, 8)).requires_grad_(False), x).activations == 0
    weight = torch.randn(16, 8, requires_grad=True)
    with Kept([weight]) as kept:
        (x @ weight).sigmoid().view(-1).sin()  # both keep the sigmoid's output
    assert kept.bytes == x.nbytes + 4 * 32 * 8


@DEVICES
def test_batch_normalisation_stays_as_it_was(device):
    module = nn.BatchNorm2d(4).to(device)
    count(module, torch.randn(2, 4, 8, 8, device=device))
    if device == "cpu":
        assert module.running_mean.eq(0).all() and module.num_batches_tracked == 0
