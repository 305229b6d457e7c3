r"""`embed`, from samples to Parquet on disk, against the encoders' own forward.

    python benchmarks/embed.py    # ResNet-18, 64 px, on the CPU
    python benchmarks/embed.py --device cuda --encoder resnet50 --pixels 224 --samples 16384 \
        --batch 256 --workers 8 --precision bf16-mixed

Both run in this process, in turn, on the same pairs of 2 + 13 bands held in memory; the bare
forward takes scaled pictures that lie on the device already. Embedding is timed from its second
batch until all is on disk, so that what starts once (engine, workers) does not count. Medians.

What is measured is what embedding costs beside the forward, not the reading of pictures, which
workers do at the same time. On a CPU both would share its cores: there the forward, bare or not,
gets one thread fewer than there are cores for each worker, so that it is never interrupted by one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from decur import Modality
from decur.data import LoaderSettings, PairedDataset, Sample
from decur.embed.model import EmbeddingModel
from decur.embed.parquet import schema
from decur.embed.parts import PartData, PartWriter
from decur.encoders import Encoder, build_encoder
from decur.pretrain.trainer import quiet_lightning

BANDS = {"s1": 2, "s2": 13}


class Held(PairedDataset):
    """A few pairs in memory, again and again."""

    def __init__(self, samples: int, pixels: int) -> None:
        self.ids = [f"{i:06}" for i in range(samples)]
        self.present = {name: np.ones(samples, bool) for name in BANDS}
        self.targets = {}
        self.modalities = {
            name: Modality(
                name=name,
                bands=tuple(f"b{i}" for i in range(count)),
                scaling="range",
                size=(pixels, pixels),
            )
            for name, count in BANDS.items()
        }
        self.pictures = {
            name: torch.randint(0, 256, (16, count, pixels, pixels), dtype=torch.uint8)
            for name, count in BANDS.items()
        }

    def read(self, index: int) -> Sample:
        """Read one sample."""
        images = {name: held[index % len(held)] for name, held in self.pictures.items()}
        return {"id": self.ids[index], "images": images}


class Clock(L.Callback):
    """Seconds from the first batch to the end of writing."""

    def __init__(self, writer: PartWriter) -> None:
        self.writer = writer

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Start at the second batch: the first warms up."""
        if args[3] == 1:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # which still computes the first
            self.started = time.perf_counter()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop when all is on disk."""
        self.writer.on_predict_end(trainer, pl_module)
        self.seconds = time.perf_counter() - self.started


def embedding(data: Held, encoders: dict[str, Encoder], args: argparse.Namespace) -> float:
    """Pairs embedded in a second."""
    model = EmbeddingModel(encoders, data.modalities, {})
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder, settings = Path(name), LoaderSettings(args.batch, args.workers)
        writer = PartWriter(folder, schema(model.widths, {"content": ""}), limit=0)
        clock = Clock(writer)
        engine = L.Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=1,
            precision=args.precision,
            logger=False,
            callbacks=[writer, clock],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        parts = PartData(data, list(BANDS), settings, folder, 16 * args.batch, "")
        engine.predict(model, parts, return_predictions=False)
        writer.close()
    return float((len(data) - args.batch) / clock.seconds)


@torch.inference_mode()
def forward(data: Held, encoders: dict[str, Encoder], args: argparse.Namespace) -> float:
    """Pairs that the encoders alone take in a second."""
    rows = torch.arange(args.batch) % 16
    pictures = {
        name: data.modalities[name]
        .scale(held[rows].to(args.device))
        .contiguous(memory_format=torch.channels_last)
        for name, held in data.pictures.items()
    }
    batches = len(data) // args.batch
    kind = torch.bfloat16 if args.precision.startswith("bf16") else torch.float32
    mixed = torch.autocast(args.device, kind, enabled=args.precision.endswith("mixed"))
    for batch in range(batches):
        with mixed:
            for name, encoder in encoders.items():
                encoder.to(args.device)(pictures[name])
        if args.device == "cuda" and batch in (0, batches - 1):
            torch.cuda.synchronize()
        if batch == 0:
            started = time.perf_counter()
    return float((batches - 1) * args.batch / (time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--folder", help="where files are written; by default a temporary folder")
    args = parser.parse_args()
    if args.samples < 2 * args.batch:
        parser.error("--samples: two batches or more")
    if args.device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - args.workers))
    quiet_lightning()
    warnings.filterwarnings("ignore", ".*Couldn't infer the batch indices.*")  # not used
    data = Held(args.samples - args.samples % args.batch, args.pixels)
    encoders = {name: build_encoder(args.encoder, m).eval() for name, m in data.modalities.items()}
    ways = {"bare forward": forward, "embed": embedding}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            rates[name].append(way(data, encoders, args))
    print(f"{args.encoder}, {args.pixels} px, batches of {args.batch}, {args.device}, ", end="")
    print(f"{args.precision}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, found in rates.items():
        print(f"{name:14}{statistics.median(found):10.1f} pairs/s")
    ratios = [e / f for e, f in zip(rates["embed"], rates["bare forward"], strict=True)]
    print(f"{'ratio':14}{statistics.median(ratios):10.3f}")


if __name__ == "__main__":
    main()
