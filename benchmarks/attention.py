"""Each attention against its plain form, and what it adds to a ResNet-50.

    python benchmarks/attention.py                 # batch 4, 224 px, on the CPU
    python benchmarks/attention.py --batch 64 --device cuda --bf16

Forward and backward; the best of alternating repeats: what else the machine does only adds to it.
The plain form of a deformable attention multiplies with einsum and keeps the attention matrix; that
of CBAM is timm's module.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from decur.encoders import build_encoder
from decur.encoders.attention import ATTENTIONS, DeformableAttention
from decur.encoders.attention.base import Stage

STAGES = (Stage("layer3", 1024, (14, 14), 1), Stage("layer4", 2048, (7, 7), 0))


class Plain(nn.Module):
    """A deformable attention by einsum."""

    def __init__(self, module: DeformableAttention) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Attend to the own map."""
        q, k, v, bias, _, _ = self.module._prepare(x, x)
        weight = torch.einsum("bhmc,bhnc->bhmn", q * q.shape[-1] ** -0.5, k) + bias
        return self.module._finish(x, torch.einsum("bhmn,bhnc->bhmc", weight.softmax(-1), v))


def plain(module: nn.Module, stage: Stage) -> nn.Module:
    """The module's plain form."""
    return Plain(module) if isinstance(module, DeformableAttention) else CbamModule(stage.channels)


def step(module: nn.Module, x: Tensor, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            y = module(x)
        y.float().square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def best(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each, the repeats taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):  # the first warms up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.device}, batch {args.batch}, bf16 {args.bf16}")

    print(f"{'':24}{'ours, ms':>10}{'plain, ms':>11}{'plain / ours':>14}")
    for name in ("rda", "cbam"):
        for stage in STAGES:
            torch.manual_seed(0)
            ours = ATTENTIONS.get(name)(stage).to(args.device)
            x = torch.randn(args.batch, stage.channels, *stage.size, device=args.device)
            x.requires_grad_()
            other = plain(ours, stage).to(args.device)
            found = best(
                {"ours": step(ours, x, args.bf16), "plain": step(other, x, args.bf16)}, args.repeats
            )
            ratio = found["plain"] / found["ours"]
            label = f"{name} after {stage.name}"
            print(f"{label:24}{1e3 * found['ours']:10.1f}{1e3 * found['plain']:11.1f}{ratio:14.2f}")

    x = torch.rand(args.batch, 3, 224, 224, device=args.device)
    encoders = {
        str(name): build_encoder("resnet50", 3, attention=name).to(args.device)
        for name in (None, "rda", "da", "cbam")
    }
    found = best({n: step(e, x, args.bf16) for n, e in encoders.items()}, args.repeats)
    for name in ("rda", "da", "cbam"):
        print(f"ResNet-50 with {name}, by ResNet-50: {found[name] / found['None']:.2f}")


if __name__ == "__main__":
    main()
