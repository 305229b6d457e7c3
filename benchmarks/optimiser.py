"""The optimiser's step: all parameters at once against one after the other.

    python benchmarks/optimiser.py                 # on the CPU
    python benchmarks/optimiser.py --device cuda

For parameters as two ResNet-50 and a projector have them, and for many small ones: the best of
alternating repeats, in milliseconds, and relative to one after the other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.optim.lars import Lars
from torch import nn

from decur.encoders import Projector
from decur.pretrain.optim import parameter_groups

Groups = list[dict[str, Any]]
Build = Callable[[Groups], torch.optim.Optimizer]

KINDS: dict[str, dict[str, Build]] = {
    "lars": {
        "one by one": lambda groups: Lars(groups, lr=0.2, momentum=0.9, foreach=False),
        "foreach": lambda groups: Lars(groups, lr=0.2, momentum=0.9, foreach=True),
    },
    "adamw": {
        "one by one": lambda groups: torch.optim.AdamW(groups, foreach=False),
        "foreach": lambda groups: torch.optim.AdamW(groups, foreach=True),
        "fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    },
}


def modules(name: str, width: int) -> nn.Module:
    if name == "many small":
        return nn.ModuleList(nn.Linear(64, 64) for _ in range(500))
    encoders = [timm.create_model("resnet50", in_chans=c, num_classes=0) for c in (2, 13)]
    return nn.ModuleList([*encoders, Projector(2048, width)])


def build(kind: Build, module: nn.Module) -> torch.optim.Optimizer:
    weights, exempt = parameter_groups(module)
    return kind(
        [{"params": weights, "weight_decay": 1e-6}, {"params": exempt, "weight_decay": 0.0}]
    )


def best(optimizers: dict[str, torch.optim.Optimizer], repeats: int) -> dict[str, float]:
    """Seconds of the fastest step of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(repeats + 1):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: min(each[1:]) for name, each in times.items()}  # the first makes the state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=8192, help="of the projector")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in ("many small", "two ResNet-50 and a projector"):
        module = modules(name, args.width).to(args.device)
        parameters = list(module.parameters())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        millions = sum(p.numel() for p in parameters) / 1e6
        print(f"{name}: {len(parameters)} tensors, {millions:.1f} M parameters")
        for kind, ways in KINDS.items():
            found = best({way: build(make, module) for way, make in ways.items()}, args.repeats)
            for way, seconds in found.items():
                ratio = seconds / found["one by one"]
                print(f"  {kind:<6}{way:<12}{1e3 * seconds:9.2f} ms  {ratio:5.2f}")


if __name__ == "__main__":
    main()
