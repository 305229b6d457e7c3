"""Rates, times, memory, precisions and traffic; operations against counts by hand."""

from typing import get_args

import pytest
import timm
import torch
from lightning.fabric.connector import _PRECISION_INPUT_STR
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from decur.bench.data import loss_step
from decur.bench.measure import count, formats_of, make_row, matmul_rate, peak_memory
from decur.objectives import DeCUR
from decur.pretrain.distributed import traffic

CPU = torch.device("cpu")
DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


def test_a_device_is_measured():
    assert 1e8 < matmul_rate(CPU, torch.float32, 0.02) < 1e14


def test_rows_are_of_median_and_quartiles():
    row = make_row("step", 6, [5.0, 1.0, 3.0, 2.0, 4.0], floor=1.5)
    assert (row["seconds"], *row["quartiles"]) == (3.0, 2.0, 4.0)
    assert row["pairs_per_second"] == 2 and row["floor"] == 1.5 and row["memory"] is None
    assert make_row("loading", 6, [2.0])["quartiles"] == [2.0, 2.0]
    assert make_row("loading", 6, [0.0])["pairs_per_second"] is None


def test_precisions_are_lightnings():
    for name in get_args(_PRECISION_INPUT_STR):
        assert formats_of({"precision": name}).precision == name
    for short, name in {"bf16": "bf16-mixed", 16: "16-mixed", 32: "32-true", 64: "64-true"}.items():
        assert formats_of({"precision": short}).precision == name
    products = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16": torch.float16}
    products |= {"transformer-engine": torch.bfloat16, 64: torch.float64, None: torch.float32}
    parameters = {**products, "bf16-mixed": torch.float32, "16": torch.float32}
    for name, dtype in products.items():
        found = formats_of({"precision": name})
        assert found.products == dtype and found.parameters == parameters[name]


def test_peak_memory_counts_what_is_there_at_once():
    def work():
        a = torch.ones(250_000)  # 1 MB
        b = a + 1
        del a
        return b + 1

    work()
    assert 2_000_000 <= peak_memory(work, CPU) < 2_000_100  # and the numbers 1


def passes(module, *inputs):
    """Operations forward and backward."""
    out = []
    forward = count(lambda: out.append(module(*inputs)))
    wanted = [x for x in (*module.parameters(), *inputs) if x.requires_grad]
    ones = torch.ones_like(out[0])
    return forward, count(lambda: torch.autograd.grad(out[0], wanted, ones))


@DEVICES
def test_linear(device):
    module = nn.Linear(16, 8, device=device)
    product = 2 * 4 * 16 * 8
    # nothing asks for the input's gradient: one product backward
    assert passes(module, torch.zeros(4, 16, device=device)) == (product, product)
    x = torch.zeros(4, 16, device=device, requires_grad=True)
    assert passes(module, x) == (product, 2 * product)


@DEVICES
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(device, groups):
    module = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups, bias=False, device=device)
    once = 2 * (2 * 12 * 5 * 5) * (8 // groups) * 9
    x = torch.zeros(2, 8, 10, 10, device=device, requires_grad=True)
    assert passes(module, x) == (once, 2 * once)


class Attention(nn.Module):
    def forward(self, q, k, v, mask=None):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)


@DEVICES
@pytest.mark.parametrize("masked", [False, True])
def test_attention(device, masked):
    q = torch.zeros(2, 3, 5, 16, device=device, requires_grad=True)
    k, v = (torch.zeros(2, 3, 7, 16, device=device, requires_grad=True) for _ in range(2))
    mask = [torch.zeros(2, 3, 5, 7, device=device, requires_grad=True)] if masked else []
    once = 2 * (2 * 3) * 5 * 7 * 16
    assert passes(Attention(), q, k, v, *mask) == (2 * once, 4 * once)


def test_multihead_attention_of_a_transformer():
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, device="meta")
    tokens, width = 197, 192
    found = count(lambda: module(torch.zeros(1, 3, 224, 224, device="meta")))
    linear = tokens * (3 + 1 + 4 + 4) * width**2  # query, key, value; out; two of the MLP
    patches = 196 * width * 3 * 16**2
    assert found == 2 * (patches + linear + 2 * tokens**2 * width)


def test_resnet50_has_4_1_billion_multiply_adds():
    module = timm.create_model("resnet50", device="meta")
    forward, backward = passes(module, torch.zeros(1, 3, 224, 224, device="meta"))
    assert forward / 2 == pytest.approx(4.1e9, rel=0.01)
    # two products backward for each forward, but for the first layer's input
    first = 2 * 112 * 112 * 64 * 3 * 49
    assert backward == 2 * forward - first


def test_decur_grows_linearly():
    one, two = (count(loss_step(DeCUR(dim=k), ["a", "b"], 64, CPU)) for k in (8192, 16384))
    # four views: one product of N x K x N forward, one backward, 2 operations each
    assert one == 4 * 2 * 2 * 64 * 64 * 8192 and two == 2 * one


def test_traffic_is_linear_in_what_is_sent_and_never_k_times_k():
    found = traffic(objective_dim=8192, modalities=2, batch=1024, parameters=10**6, world=4)
    one = 256 * 8192 * 4  # a view of a sensor: samples of a process, K, bytes
    assert found["embeddings"] == found["embedding_gradients"] == 3 * 2 * 2 * one
    assert found["gradients"] == 2 * 3 * 10**6 * 4 // 4
    assert found["total"] == sum(n for key, n in found.items() if key != "total")
    wide = traffic(16384, 2, 1024, 10**6, 4)
    assert wide["embeddings"] == 2 * found["embeddings"]
    assert traffic(8192, 2, 1024, 10**6, 4, views=1)["embeddings"] == found["embeddings"] // 2
    assert not any(traffic(8192, 2, 1024, 10**6, 1).values())
