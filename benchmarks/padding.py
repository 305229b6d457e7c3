"""Would bands of zeros make the first layer faster? 13 bands against 16, forward and backward.

Tensor cores multiply channels by eights. A first convolution that sees 13 bands may be computed by
another kernel than one that sees 16, three of which are zero and change no result.

    python benchmarks/padding.py                           # on the CPU
    python benchmarks/padding.py --device cuda --pixels 224 --batch 256 --precision bf16-mixed
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from torch import nn
from torch.utils.benchmark import Timer


def milliseconds(bands: int, args: argparse.Namespace) -> float:
    """Return what ResNet-50's first convolution takes in both directions, in its median."""
    there, last = torch.device(args.device), torch.channels_last
    layer = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False, device=there)
    shape = (args.batch, bands, args.pixels, args.pixels)
    pictures = torch.rand(shape, device=there).to(memory_format=last)  # (B, C, H, W)
    layer.weight.data = layer.weight.data.to(memory_format=last)
    mixed = args.precision == "bf16-mixed"

    def both_ways() -> None:
        with torch.autocast(there.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            out = layer(pictures)  # (B, 64, H / 2, W / 2)
        out.float().square().mean().backward()

    timer = Timer(
        "both_ways()", globals={"both_ways": both_ways}, num_threads=torch.get_num_threads()
    )
    return 1000 * timer.blocked_autorange(min_run_time=args.seconds).median


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--seconds", type=float, default=2.0, help="Of each measurement.")
    args = parser.parse_args()
    plain, padded = (milliseconds(bands, args) for bands in (13, 16))
    print(f"13 bands   {plain:.2f} ms\n16 bands   {padded:.2f} ms\nratio      {plain / padded:.3f}")


if __name__ == "__main__":
    main()
