"""Several processes together: the values and gradients of one process with the whole batch."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from decur.objectives import list_objectives

NAMES = ("s1", "s2", "dem")
WIDTH = 6  # of what goes into the projectors


class Model(nn.Module):
    def __init__(self, method, dim, names, options):
        super().__init__()
        torch.manual_seed(1)
        self.projectors = nn.ModuleDict({name: nn.Linear(WIDTH, dim) for name in names})
        self.objective = list_objectives()[method](dim=dim, **options)

    def forward(self, features, present):
        embeddings = {
            name: tuple(self.projectors[name](x) for x in views) for name, views in features.items()
        }
        return self.objective(embeddings, present)


def cases(world):
    """Method, options, dim, modalities, rows of each process, share of absent samples."""
    even, uneven, few = [4] * world, [7, 2, 4][:world], [3] + [0] * (world - 1)
    settings = list(itertools.product((5, 40), (even, uneven), (0, 0.3)))
    if world == 2:  # in the short suite any two of them meet; all three meet on three processes
        settings = [(5, even, 0.3), (5, uneven, 0), (40, even, 0), (40, uneven, 0.3)]
    for method in list_objectives():
        for dim, rows, absent in settings:
            yield method, {}, dim, NAMES[:2], rows, absent
        yield method, {}, 40, NAMES, uneven, 0.3
        yield method, {}, 2, NAMES[:2], few, 0  # processes without a row, more than dimensions
        yield method, {}, 40, NAMES[:2], even, 1.0  # nothing left to learn from
        if list_objectives()[method].least_modalities == 1:
            yield method, {}, 40, NAMES[:1], uneven, 0.3
    for options in ({"intra": False}, {"common": 0.5, "lambda_unique": 1.0}):
        yield "decur", options, 40, NAMES[:2], uneven, 0
    blocks = {"s1+s2+dem": 0.25, "s1+s2": 0.25, "dem+s1": 0.25}
    for dim in (8, 40):
        yield "decur", {"blocks": blocks}, dim, NAMES, uneven, 0.3


def data(names, rows, absent):
    generator = torch.Generator().manual_seed(2)
    n = sum(rows)
    scene = torch.randn(n, WIDTH, generator=generator)
    features, present = {}, {}
    for name in names:
        noise = torch.randn(2, n, WIDTH, generator=generator)
        features[name] = tuple(scene + 0.5 * noise)
        present[name] = torch.rand(n, generator=generator) >= absent
        for view in features[name]:
            view[~present[name]] *= 100  # would show if it leaked
    return features, present if absent else None


def run(model, module, features, present):
    terms = module(features, present)
    terms["loss"].backward()
    return {k: v.detach() for k, v in terms.items()}, [p.grad for p in model.parameters()]


def work(rank, world, store):
    torch.set_num_threads(1)
    expected = []
    for method, options, dim, names, rows, absent in cases(world):
        model = Model(method, dim, names, options)
        expected.append(run(model, model, *data(names, rows, absent)))
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    for case, (terms, grads) in zip(cases(world), expected, strict=True):
        method, options, dim, names, rows, absent = case
        features, present = data(names, rows, absent)
        own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))
        features = {name: tuple(v[own] for v in views) for name, views in features.items()}
        if present:  # one process may know of absent samples where others have none
            present = {name: mask[own] for name, mask in present.items()}
            present = None if all(mask.all() for mask in present.values()) else present
        model = Model(method, dim, names, options)
        found, averaged = run(model, nn.parallel.DistributedDataParallel(model), features, present)
        assert set(found) == set(terms), case
        for key in terms:
            torch.testing.assert_close(found[key], terms[key], rtol=1e-5, atol=1e-6)
        total = torch.cat([g.flatten() for g in grads])
        difference = torch.cat([g.flatten() for g in averaged]) - total
        assert difference.norm() <= 1e-5 * total.norm() + 1e-7, (case, difference.norm())
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_together_equal_one(world, tmp_path):
    mp.start_processes(work, (world, tmp_path / "store"), nprocs=world, start_method="forkserver")
