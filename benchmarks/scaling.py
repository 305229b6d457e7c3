"""Expected scaling from 1 to 64 GPUs, by arithmetic: nothing is measured here.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --tflops 60 --between 12   # another GPU, a slower network

DeCUR with two ResNet-50 (2 and 13 bands, 224 px) and K = 8192, 256 samples a GPU: the work is
counted on the meta device, the bytes by `decur.pretrain.distributed.traffic`, and both are divided
by the rates given. What is assumed is printed with the table.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decur.encoders import Projector, build_encoder
from decur.pretrain.distributed import traffic

BANDS, SIZE, DIM, COMMON, VIEWS = (2, 13), 224, 8192, 7168, 2


def networks() -> tuple[float, int]:
    """Operations of one sample's views forward and backward, and trained parameters."""
    operations, parameters = 0.0, 0
    for bands in BANDS:
        with torch.device("meta"):
            encoder = build_encoder("resnet50", bands)
            network = nn.Sequential(encoder, Projector(encoder.dim, DIM, layers=3)).eval()
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, bands, SIZE, SIZE))
        operations += 3 * VIEWS * counter.get_total_flops()  # backward costs twice the forward
        parameters += sum(p.numel() for p in network.parameters())
    return operations, parameters


def loss_operations(batch: int, world: int) -> float:
    """Of one process's share of DeCUR's loss, in its cheaper form, as it chooses by itself."""
    gram = 2 * batch**2 * DIM * VIEWS * len(BANDS)
    direct = 3 * batch * (len(BANDS) * DIM**2 + COMMON**2 + (DIM - COMMON) ** 2)
    return 2 * min(gram, direct) / world  # a multiplication and an addition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--batch", type=int, default=256, help="samples a GPU")
    parser.add_argument("--tflops", type=float, default=100.0, help="that the networks reach")
    parser.add_argument("--loss-tflops", type=float, default=30.0, help="of float32 products")
    parser.add_argument("--within", type=float, default=200.0, help="GB/s a GPU sends in a node")
    parser.add_argument("--between", type=float, default=40.0, help="GB/s a GPU sends to others")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--overlap", type=float, default=0.5, help="share of the compute time")
    args = parser.parse_args()

    operations, parameters = networks()
    compute = operations * args.batch / (args.tflops * 1e12)
    work = operations * args.batch / 1e12
    print(
        f"{parameters / 1e6:.0f} M parameters, {work:.1f} TFLOP a GPU and step; assumed: networks "
        f"at {args.tflops:g} TFLOP/s, loss at {args.loss_tflops:g}, {args.within:g} GB/s in a node "
        f"of {args.node}, {args.between:g} between nodes, gradients hidden behind "
        f"{args.overlap:.0%} of the compute"
    )
    print(
        "| GPUs | batch | compute, ms | loss, ms | gradients, GB sent | ms | embeddings, GB sent "
        "| ms | step, ms | efficiency |"
    )
    print("|" + "---|" * 10)
    alone = compute + loss_operations(args.batch, 1) / (args.loss_tflops * 1e12)
    for world in (1, 2, 4, 8, 16, 32, 64):
        batch = args.batch * world
        sent = traffic(DIM, len(BANDS), batch, parameters, world)
        rate = 1e9 * (args.within if world <= args.node else args.between)
        moved = sent["embeddings"] + sent["embedding_gradients"]
        averaging, moving = sent["gradients"] / rate, moved / rate
        loss = loss_operations(batch, world) / (args.loss_tflops * 1e12)
        step = compute + loss + moving + max(0.0, averaging - args.overlap * compute)
        print(
            f"| {world} | {batch:,} | {1e3 * compute:.0f} | {1e3 * loss:.1f} "
            f"| {sent['gradients'] / 1e9:.2f} | {1e3 * averaging:.0f} | {moved / 1e9:.2f} "
            f"| {1e3 * moving:.0f} | {1e3 * step:.0f} | {alone / step:.0%} |"
        )


if __name__ == "__main__":
    main()
