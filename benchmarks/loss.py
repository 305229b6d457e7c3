"""DeCUR's loss against its transcription with K x K matrices (Algorithm 1 of the paper).

    python benchmarks/loss.py                 # N 256, K 8192, Kc 7168, on the CPU
    python benchmarks/loss.py --device cuda

Prints time of forward and backward (the best of alternating repeats: what else the machine does
only adds to it), extra peak memory (each in a process of its own), and the relative differences of
loss and gradient.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from decur.objectives import DeCUR

Loss = Callable[[list[Tensor]], Tensor]


def transcription(common: float, lambda_: float = 0.0051) -> Loss:
    """Algorithm 1, line by line."""

    def part(c: Tensor, target: float) -> Tensor:
        on = (c.diagonal() - target).pow(2).sum()
        off = c.flatten()[:-1].view(len(c) - 1, len(c) + 1)[:, 1:].pow(2).sum()
        return on + lambda_ * off

    def loss(views: list[Tensor]) -> Tensor:
        z1, z1b, z2, z2b = (F.batch_norm(z, None, None, training=True) for z in views)  # (N, K)
        n, k = z1.shape
        kc = round(common * k)
        c1, c2, cm = z1.T @ z1b / n, z2.T @ z2b / n, z1.T @ z2 / n  # (K, K)
        total = part(c1, 1) + part(c2, 1)
        if kc > 0:
            total = total + part(cm[:kc, :kc], 1)
        if kc < k:
            total = total + part(cm[kc:, kc:], 0)
        return total

    return loss


def ours(dim: int, common: float) -> Loss:
    objective = DeCUR(dim=dim, common=common)

    def loss(views: list[Tensor]) -> Tensor:
        terms: dict[str, Tensor] = objective({"a": (views[0], views[1]), "b": (views[2], views[3])})
        return terms["loss"]

    return loss


def build(name: str, args: argparse.Namespace) -> Loss:
    return ours(args.dim, args.common) if name == "decur" else transcription(args.common)


def inputs(args: argparse.Namespace) -> list[Tensor]:
    """Four views that correlate a little, as during training."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(args.batch, args.dim, generator=generator)
    views = [scene + torch.randn(args.batch, args.dim, generator=generator) for _ in range(4)]
    return [view.to(args.device).requires_grad_() for view in views]


def step(loss: Loss, views: list[Tensor]) -> tuple[float, list[Tensor]]:
    value = loss(views)
    grads = torch.autograd.grad(value, views)
    return value.item(), list(grads)


def seconds(loss: Loss, views: list[Tensor]) -> float:
    start = time.perf_counter()
    step(loss, views)  # ends with .item(), which waits for the device's forward pass
    if views[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, args: argparse.Namespace) -> int:
    """Peak memory of one step beyond what the inputs and the libraries take."""
    torch.set_num_threads(args.threads)
    views = inputs(args)
    loss = build(name, args)
    if views[0].is_cuda:
        step(loss, views)  # allocates cuBLAS workspaces, which are no part of the method
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, views)
        return torch.cuda.max_memory_allocated() - before
    small = argparse.Namespace(**{**vars(args), "batch": 8, "dim": 64})
    step(build(name, small), inputs(small))  # loads libraries
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(loss, views)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--common", type=float, default=0.875)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    names = ("transcription", "decur")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_bytes, [(name, args) for name in names], chunksize=1)
    memory = dict(zip(names, peaks, strict=True))
    views = inputs(args)
    losses = {name: build(name, args) for name in names}
    results = {name: step(losses[name], views) for name in names}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name in names:
            times[name].append(seconds(losses[name], views))
    best = {name: min(times[name]) for name in names}

    (reference, expected), (value, grads) = results["transcription"], results["decur"]
    difference = sum(float((g - e).square().sum()) for g, e in zip(grads, expected, strict=True))
    norm = sum(float(e.square().sum()) for e in expected)
    print(f"N {args.batch}, K {args.dim}, common {args.common}, {args.device}, torch", end=" ")
    print(torch.__version__, f"({args.threads} threads)" if args.device == "cpu" else "")
    print(f"{'':15}{'seconds':>10}{'extra peak MB':>16}")
    for name in names:
        print(f"{name:15}{best[name]:10.4f}{memory[name] / 1e6:16.1f}")
    faster, smaller = (x["transcription"] / x["decur"] for x in (best, memory))
    print(f"{'ratio':15}{faster:10.1f}{smaller:16.1f}")
    print(f"relative difference: loss {abs(value / reference - 1):.1e}, ", end="")
    print(f"gradient {(difference / norm) ** 0.5:.1e}")


if __name__ == "__main__":
    main()
