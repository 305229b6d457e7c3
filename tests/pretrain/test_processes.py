"""Two processes train as one that holds the whole batch."""

import csv

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing, nn

from decur.objectives import list_objectives
from decur.pretrain.distributed import SyncBatchNorms, finite_statistics

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


def _pictures(counts: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(sum(counts), 3, 4, dtype=torch.float64)
    return whole, torch.randn_like(whole)


def _normalisation() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(3).double()
    norm.weight.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return norm


def _normalise(rank: int, world: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    found = {}
    for counts in COUNTS:
        whole, weight = _pictures(counts)
        own = list(torch.split(whole, counts))[rank].clone().requires_grad_()
        norm = SyncBatchNorms().apply(nn.Sequential(_normalisation()))
        out = norm(own)
        (out * torch.split(weight, counts)[rank]).sum().backward()
        found[counts] = (out.detach(), own.grad, norm[0].state_dict())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_normalisation_on_the_cpu_is_over_all_processes(tmp_path):
    multiprocessing.start_processes(
        _normalise, (2, str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for counts in COUNTS:
        whole, weight = _pictures(counts)
        norm = _normalisation()
        out = norm(whole.requires_grad_())
        (out * weight).sum().backward()
        outputs, gradients, states = zip(*(found[counts] for found in ranks), strict=True)
        assert torch.allclose(torch.cat(outputs), out, rtol=1e-10)
        assert torch.allclose(torch.cat(gradients), whole.grad, rtol=1e-9, atol=1e-12)
        for state in states:
            for key, value in norm.state_dict().items():
                assert torch.allclose(state[key], value), key


def test_statistics_of_too_few_values_are_not_kept():
    norm = nn.BatchNorm1d(3)
    with finite_statistics([nn.Sequential(norm)]):
        norm.running_mean += 1
        norm.running_var /= torch.tensor([0.0, 1.0, 0.0])  # as torch does for a single value
    torch.testing.assert_close(norm.running_mean, torch.ones(3))
    torch.testing.assert_close(norm.running_var, torch.ones(3))
