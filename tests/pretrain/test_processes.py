"""Two processes train as one that holds the whole batch."""

import csv

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from torch import multiprocessing, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from decur.objectives import list_objectives
from decur.pretrain import batchnorm
from decur.pretrain.batchnorm import SyncBatchNorms, finite_statistics, normalise_parts

COUNTS = [(4, 4), (7, 0)]  # samples of each process


@pytest.mark.slow
@pytest.mark.parametrize("objective", [m.__name__ for m in list_objectives().values()])
def test_two_processes_train_as_one(objective, tiny, tiny_process):
    # LARS: AdamW makes whole steps of gradients that are zero but for rounding
    options = (f"--objective={objective}", "--trainer.precision=64-true", "--optimizer.name=lars")
    options += ("--optimizer.lr=0.2",)
    alone = tiny(*options, name="alone")
    process, together = tiny_process(
        *options,
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.accelerator=cpu",
        name="together",
    )
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-2000:]
    for path in sorted((alone / "encoders").iterdir()):
        a, b = load_file(path), load_file(together / "encoders" / path.name)
        for key in a:
            assert torch.allclose(a[key].double(), b[key].double(), rtol=1e-4, atol=1e-6), key
    rows = [list(csv.DictReader((f / "metrics.csv").open())) for f in (alone, together)]
    for one, two in zip(*rows, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)
    assert out.count("epoch 2/2") == 1  # one process speaks


class Kernels:
    """What torch's kernels of batch normalisation compute on a GPU, in plain operations."""

    @staticmethod
    def batch_norm_stats(x, eps):
        assert len(x)  # no kernel takes an empty batch
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(x, [0, 2], correction=0)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def batch_norm_elemt(x, weight, bias, mean, invstd, eps):
        assert len(x) and weight.dtype == mean.dtype == invstd.dtype
        normal = (x - mean[:, None]) * invstd[:, None]
        return (normal * weight[:, None] + bias[:, None]).to(x.dtype)

    @staticmethod
    def batch_norm_backward_reduce(grad, x, mean, invstd, weight, *wanted):
        assert len(x)
        along = (grad * (x - mean[:, None])).to(mean.dtype).sum([0, 2])
        total = grad.to(mean.dtype).sum([0, 2])
        return total, along, along * invstd, total

    @staticmethod
    def batch_norm_backward_elemt(grad, x, mean, invstd, weight, total, along, counts):
        assert len(x) and counts.dtype == torch.int32 and len(counts) == dist.get_world_size()
        n = counts.sum()
        slope = (x - mean[:, None]) * (invstd.square() * along / n)[:, None]
        made = (grad - (total / n)[:, None] - slope) * (invstd * weight)[:, None]
        return made.to(x.dtype)


def _pictures(counts: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(sum(counts), 3, 4, dtype=torch.float64)
    return whole, torch.randn_like(whole)


def _normalisation() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(3).double()
    norm.weight.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return norm


def _normalise(rank: int, world: int, folder: str, kernels: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    if kernels == "stand-in":
        batchnorm._uses_kernels = lambda x: True
        for name in (name for name in vars(Kernels) if name.startswith("batch_norm")):
            setattr(torch, name, getattr(Kernels, name))
    device = "cuda" if kernels == "gpu" else "cpu"
    found = {}
    for counts in COUNTS:
        whole, weight = _pictures(counts)
        own = list(torch.split(whole, counts))[rank].clone().to(device).requires_grad_()
        norm = SyncBatchNorms().apply(nn.Sequential(_normalisation())).to(device)
        out = norm(own)
        (out * torch.split(weight, counts)[rank].to(device)).sum().backward()
        state = {key: value.cpu().clone() for key, value in norm[0].state_dict().items()}
        found[counts] = (out.detach().cpu(), own.grad.cpu(), state)
        mixed = norm.float()(own.detach().bfloat16())  # under autocast: maps of half the digits
        mixed.sum().backward()
        halved = norm.bfloat16()(own.detach().bfloat16().requires_grad_())  # in "bf16-true"
        halved.sum().backward()
        found[counts] += (mixed.detach().cpu(), halved.detach().cpu())
        found[counts] += (_two_views(own.detach(), weight, counts, rank),)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _two_views(own, weight, counts, rank):
    """What a layer gives for both views together: result, gradients, statistics."""
    norm = SyncBatchNorms().apply(nn.Sequential(_normalisation())).to(own.device)
    normalise_parts(norm, 2)
    views = torch.cat((own, own.square())).requires_grad_()
    given = torch.split(weight, counts)[rank].to(own.device)
    out = norm(views)
    (out * torch.cat((given, 2 * given))).sum().backward()
    state = {key: value.cpu().clone() for key, value in norm[0].state_dict().items()}
    return out.detach().cpu(), views.grad.cpu(), norm[0].weight.grad.cpu(), state


def _check_two_views(found, whole, weight):
    norm, views = _normalisation(), [whole.detach().clone(), whole.detach().square()]
    outs = [norm(view.requires_grad_()) for view in views]
    (outs[0] * weight + 2 * outs[1] * weight).sum().backward()
    for view in (0, 1):
        out, grad = (torch.cat([f[i].chunk(2)[view] for f in found]) for i in (0, 1))
        assert torch.allclose(out, outs[view], rtol=1e-10)
        assert torch.allclose(grad, views[view].grad, rtol=1e-9, atol=1e-12)
    assert torch.allclose(sum(f[2] for f in found), norm.weight.grad)
    for key, value in norm.state_dict().items():
        assert all(torch.allclose(f[3][key], value) for f in found), key


@pytest.mark.parametrize(
    "kernels", ["none", "stand-in", pytest.param("gpu", marks=pytest.mark.gpu)]
)
def test_normalisation_is_over_all_processes(kernels, tmp_path):
    multiprocessing.start_processes(
        _normalise, (2, str(tmp_path), kernels), nprocs=2, start_method="forkserver"
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for counts in COUNTS:
        whole, weight = _pictures(counts)
        norm = _normalisation()
        out = norm(whole.requires_grad_())
        (out * weight).sum().backward()
        outputs, gradients, states, *halves, both = zip(*(f[counts] for f in ranks), strict=True)
        assert torch.allclose(torch.cat(outputs), out, rtol=1e-10)
        assert torch.allclose(torch.cat(gradients), whole.grad, rtol=1e-9, atol=1e-12)
        for state in states:
            for key, value in norm.state_dict().items():
                assert torch.allclose(state[key], value), key
        for half in halves:
            assert {x.dtype for x in half} == {torch.bfloat16}
            assert torch.allclose(torch.cat(half).double(), out, atol=0.05)
        _check_two_views(both, whole, weight)


def test_layers_are_chosen_where_the_data_is():
    # Lightning replaces layers while the model is still on the CPU.
    with FakeTensorMode():
        assert batchnorm._uses_kernels(torch.empty(2, 3, device="cuda"))
    assert not batchnorm._uses_kernels(torch.empty(2, 3))


def test_layers_with_an_activation_inside_keep_it_and_their_names():
    norm = BatchNormAct2d(3)
    keys, synced = list(norm.state_dict()), SyncBatchNorms().apply(nn.Sequential(norm))
    assert [f"0.{key}" for key in keys] == list(synced.state_dict())
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(synced(x), BatchNormAct2d(3)(x))
    assert synced(x).min() == 0  # ReLU


def test_statistics_of_too_few_values_are_not_kept():
    norm = nn.BatchNorm1d(3)
    with finite_statistics([nn.Sequential(norm)]):
        norm.running_mean += 1
        norm.running_var /= torch.tensor([0.0, 1.0, 0.0])  # as torch does for a single value
    torch.testing.assert_close(norm.running_mean, torch.ones(3))
    torch.testing.assert_close(norm.running_var, torch.ones(3))
