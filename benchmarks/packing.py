"""Reading packed data: `PackedPairs` against a GeoTIFF tree and against raw memory-mapped numpy.

    python benchmarks/packing.py                        # 512 pairs of 2 + 13 bands, 264 px, uint8
    python benchmarks/packing.py --workers 0 --pairs 128
    python benchmarks/packing.py --pairs 2048 --keep packed   # only the pairs, for `decur bench`

The same pairs lie as a folder of GeoTIFF (`<sensor>/<id>.tif`, one file a sensor, uncompressed
strips as rasterio writes them), as SSL4EO-S12 lays them out (a GeoTIFF a band, fifteen a pair), as
packed data, and as one .npy of all pairs. Each is read by torch's DataLoader in batches, in the
same shuffled order, with the same number of workers and a warm page cache; repeats alternate and
medians count, workers being started before the clock. Each reader's first batches are compared.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch.utils.data import DataLoader, Dataset

from decur import Modality
from decur.data import Collate, PackedPairs, PairedDataset, PairedFolder, Sample
from decur.data.files import read_image
from decur.data.packed import pack
from decur.pretrain.data import EpochBatches

BANDS = {"s1": 2, "s2": 13}


class BandFiles(PairedDataset):
    """`<id>/<sensor>/<band>.tif`, as SSL4EO-S12 v1.0 has them."""

    def __init__(self, root: Path, like: PairedFolder) -> None:
        self.root, self.ids, self.present = root, like.ids, like.present
        self.modalities, self.targets = like.modalities, {}

    def read(self, index: int) -> Sample:
        """Read one sample."""
        folder = self.root / self.ids[index]
        images = {
            name: torch.cat([read_image(folder / name / f"{b}.tif") for b in range(count)])
            for name, count in BANDS.items()
        }
        return {"id": self.ids[index], "images": images}


class Unchecked(PackedPairs):
    """Packed pairs whose checksums are compared at each reading, or never; by itself, at the first.

    Args:
        root: the folder.
        checks: whether they are compared.
    """

    def __init__(self, root: Path, checks: bool) -> None:
        super().__init__(root)
        self.checks = checks

    def read(self, index: int) -> Sample:
        """Read one sample."""
        self._checked[index] = not self.checks
        return super().read(index)


class Raw(Dataset[Sample]):
    """All pairs in one memory-mapped array, without any checks."""

    def __init__(self, path: Path, ids: list[str]) -> None:
        self.pixels, self.ids = np.load(path, mmap_mode="r"), ids

    def __getitem__(self, index: int) -> Sample:
        pixels = torch.from_numpy(np.array(self.pixels[index]))
        return {"id": self.ids[index], "images": {"s1": pixels[:2], "s2": pixels[2:]}}


def write_tif(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8"
    ) as file:
        file.write(pixels)


def make(root: Path, pairs: int, pixels: int, only_tree: bool = False) -> None:
    rng = np.random.default_rng(0)
    shape = (pairs, sum(BANDS.values()), pixels, pixels)
    raw = np.lib.format.open_memmap(root / "raw.npy", mode="w+", dtype=np.uint8, shape=shape)
    for i in range(pairs):
        raw[i] = rng.integers(0, 256, shape[1:], dtype=np.uint8)
        for name, start in (("s1", 0), ("s2", 2)):
            part = raw[i, start : start + BANDS[name]]
            write_tif(root / "tree" / name / f"{i:06}.tif", part)
            for band, plane in enumerate(() if only_tree else part):
                write_tif(root / "bands" / f"{i:06}" / name / f"{band}.tif", plane[None])
    raw.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed data against GeoTIFF and raw numpy.")
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=264)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where the files are made; by default a temporary folder")
    parser.add_argument("--keep", help="where the packed pairs are left, with nothing measured")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # a tile needs no map
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        make(root, args.pairs, args.pixels, only_tree=bool(args.keep))
        modalities = {
            name: Modality(
                name=name,
                bands=tuple(f"b{i}" for i in range(count)),
                scaling="range",
                augmentation={"s1": "sar", "s2": "optical"}[name],
            )
            for name, count in BANDS.items()
        }
        tree = PairedFolder(root / "tree", modalities)
        pack(tree, Path(args.keep) if args.keep else root / "packed")
        if args.keep:
            return
        readers: dict[str, Dataset[Sample]] = {
            "GeoTIFF, a file a band": BandFiles(root / "bands", tree),
            "GeoTIFF, a file a sensor": tree,
            "raw numpy memmap": Raw(root / "raw.npy", tree.ids),
            "PackedPairs, unchecked": Unchecked(root / "packed", checks=False),
            "PackedPairs, each reading": Unchecked(root / "packed", checks=True),
            "PackedPairs": PackedPairs(root / "packed"),
        }
        if args.repeats:
            measure(readers, tree, args)


def measure(
    readers: dict[str, Dataset[Sample]], tree: PairedFolder, args: argparse.Namespace
) -> None:
    loaders = {
        name: DataLoader(
            reader,
            batch_sampler=EpochBatches(args.pairs, args.batch, seed=0),
            collate_fn=Collate(tree.modalities, {}),
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
        )
        for name, reader in readers.items()
    }
    firsts = [next(iter(loader)) for loader in loaders.values()]
    for first in firsts[1:]:
        assert first["ids"] == firsts[0]["ids"]
        assert all(torch.equal(x, firsts[0]["images"][m]) for m, x in first["images"].items())
    rates: dict[str, list[float]] = {name: [] for name in readers}
    alone: dict[str, list[float]] = {name: [] for name in readers}
    order = np.random.default_rng(0).permutation(args.pairs).tolist()
    for repeat in range(args.repeats + 1):
        for name, loader in loaders.items():
            start = time.perf_counter()
            for index in order:
                readers[name][index]
            if repeat:
                alone[name].append(args.pairs / (time.perf_counter() - start))
            start = time.perf_counter()
            pairs = sum(len(batch["ids"]) for batch in loader)
            if repeat:  # the first fills the page cache
                rates[name].append(pairs / (time.perf_counter() - start))
    size = sum(BANDS.values()) * args.pixels**2 / 1e6
    print(f"{args.pairs} pairs of {size:.2f} MB; batches of {args.batch}, {args.workers} workers")
    print(f"{'pairs/s; PackedPairs by':26s} {'read alone':>18s} {'through the loader':>24s}")
    for name in readers:
        line = f"{name:26s}"
        for found in (alone, rates):
            median = statistics.median(found[name])
            ratio = statistics.median(found["PackedPairs"]) / median
            line += f" {median:12,.0f} {ratio:8.2f} x"
        print(line)


if __name__ == "__main__":
    main()
