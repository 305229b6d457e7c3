"""Fast optimisers compute what the plain ones do, and wait for nothing."""

import copy

import pytest
import torch
from timm.optim import Lars
from torch import nn

from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import OptimizerSettings

SHAPES = [(3, 4), (5, 2, 3, 3), (1, 1), (7,), (2, 6), (), (4,)]


class Weights(nn.Module):
    """Tensors of many shapes; one is zero, and one never gets a gradient."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        tensors[0].zero_()
        self.each = nn.ParameterList(tensors)

    def draw_gradients(self, step):
        generator = torch.Generator().manual_seed(step)
        for i, p in enumerate(self.each):
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            if i in (1, 3) and step == 1:
                p.grad.zero_()
        self.each[4].grad = None


def train(optimizer, weights, steps=range(5)):
    for step in steps:
        weights.draw_gradients(step)
        optimizer.step()
    return weights


def assert_same(one, other):
    for a, b in zip(one.each, other.each, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def pair(name, **changes):
    """The optimiser that is built, and the same one parameter after the other."""
    fast, plain = Weights(), Weights()
    settings = OptimizerSettings(name, lr=0.1)
    built = build_optimizer(fast, settings, 256)
    loop = build_optimizer(plain, settings, 256, fuse=False)
    for group in loop.param_groups:
        group["foreach"] = False
    for group in built.param_groups:
        group.update(changes)
    return (built, fast), (loop, plain)


def test_lars_of_all_parameters_at_once_is_lars_of_each():
    """As on a GPU: weights of zero, gradients of zero, no gradient, and groups without decay."""
    (built, fast), (loop, plain) = pair("lars", foreach=True)
    assert isinstance(built, Lars)
    assert_same(train(built, fast), train(loop, plain))
    assert not torch.equal(fast.each[1], Weights().each[1])


def test_fused_adamw_is_adamw_of_each():
    (built, fast), (loop, plain) = pair("adamw")
    assert built.param_groups[0]["fused"] and not loop.param_groups[0]["fused"]
    assert_same(train(built, fast), train(loop, plain))


def test_double_precision_and_devices_without_a_fused_kernel():
    double = Weights(torch.float64)
    train(build_optimizer(double, OptimizerSettings("adamw"), 256), double)
    assert double.each[1].isfinite().all() and double.each[1].dtype == torch.float64
    meta = build_optimizer(nn.Linear(2, 2, device="meta"), OptimizerSettings("adamw"), 256)
    assert not meta.param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_a_state_from_before_goes_on(name):
    """Of versions without foreach or fusing: it leaves the choice of kernels as it is."""
    (built, fast), (loop, plain) = pair(name, **({"foreach": True} if name == "lars" else {}))
    train(loop, plain, range(2))
    state = copy.deepcopy(loop.state_dict())
    for group in state["param_groups"]:
        group.pop("foreach")
        group.pop("fused", None)
    fast.load_state_dict(plain.state_dict())
    built.load_state_dict(state)
    assert all(group["foreach" if name == "lars" else "fused"] for group in built.param_groups)
    assert "momentum_buffer" in built.state[fast.each[0]] or name == "adamw"
    assert_same(train(built, fast, range(2, 5)), train(loop, plain, range(2, 5)))


def test_lars_asks_for_no_value():
    """AdamW counts its steps in tensors of the device, so only a GPU can tell."""
    (built, fast), _ = pair("lars", foreach=True)
    train(built, fast, range(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        train(built, fast, range(2, 3))
    names = {event.key for event in seen.key_averages()}
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}
