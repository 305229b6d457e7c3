"""What do feature maps know of floods that pretraining has not seen, and what does it add?

    python benchmarks/floods.py OMBRIA
    python benchmarks/floods.py OMBRIA --epochs 24 --folds 0 --methods DeCUR
    python benchmarks/floods.py OMBRIA --views.augment.all.brightness 0.2 --work runs/floods-weak

Each method is pretrained for the recipe `ombria` without the clusters of a fold, on pictures with
and without masks, then its encoders stay as they are. A linear probe in closed form (ridge on
standardised maps) tells the flooded share of each cell of 4 x 4 pixels from the feature maps of a
stage, or of several, each resized to the cells; the threshold that makes floods of shares is chosen
on the training part. There is no learning rate, no order and no draw, so that what differs between
methods is what the maps hold. "Fresh" are encoders with random weights, whose batch statistics are
those of the training part, as those of trained ones are "re-estimated" in the last rows.

mIoU in percent on the fold, at the masks' own size: mean and standard deviation over folds; then
how far each method is above fresh weights fold by fold, and whether that can be told (paired t test
over folds, by Holm's method for all cells of a table). OMBRIA is a folder of `s1`, `s2`, `mask` and
`splits.csv` with clusters. Six minutes a method and fold on a core with bfloat16, and three for the
probes; a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur import load_encoder
from decur.data import PairedFolder
from decur.data.folds import fold_split
from decur.encoders import Encoder, build_encoder
from decur.transfer.tasks.segmentation import confusion_of_masks, ious
from decur.verdicts import holm, paired_p

FRESH = "fresh"  # encoders with random weights
FOLDS = 5
THRESHOLDS = np.linspace(0.1, 0.7, 25)
CELLS = 32  # a side of the grid on which shares of floods are told
RIDGE = 1e-3  # of the standardised maps' variance
STAGES = {
    "stride 4": [0],
    "stride 8": [1],
    "stride 16": [2],
    "stride 32": [3],
    "strides 8 to 32": [1, 2, 3],
    "all four": [0, 1, 2, 3],
}
OBJECTIVES = {
    "Barlow Twins": ["--objective", "BarlowTwins"],
    "DeCUR": [],
    "SimCLR + intra": ["--objective", "SimCLR", "--objective.intra", "true"],
}
Maps = dict[str, list[Tensor]]


class Probe:
    """Sums of products of all maps of all sensors, from which any subset is fitted at once.

    Args:
        maps: `{sensor: (N, C, h, w) a stage}` of the training part.
        shares: flooded share of each cell, (N, CELLS, CELLS).
    """

    def __init__(self, maps: Maps, shares: Tensor) -> None:
        self.keys = [(name, stage) for name in maps for stage in range(len(maps[name]))]
        flat = [maps[name][stage] for name, stage in self.keys]
        self.mean = [x.mean((0, 2, 3)) for x in flat]
        self.std = [x.std((0, 2, 3)) + 1e-6 for x in flat]
        ends = np.cumsum([0, *(x.shape[1] for x in flat)])
        self.at = {key: range(ends[k], ends[k + 1]) for k, key in enumerate(self.keys)}
        size, self.count = int(ends[-1]) + 1, 0
        self.products = torch.zeros(size, size, dtype=torch.float64)
        self.targets = torch.zeros(size, dtype=torch.float64)
        for at in range(0, len(shares), 16):
            x = torch.cat([self._cells(k, x[at : at + 16]) for k, x in enumerate(flat)], 1)
            x = torch.cat([x, x.new_ones(len(x), 1, CELLS, CELLS)], 1)
            # every other cell of every other row: neighbours tell the same
            x = x[:, :, ::2, ::2].movedim(1, -1).reshape(-1, size)  # (n, D + 1)
            y = shares[at : at + 16, ::2, ::2].reshape(-1)
            self.products += (x.T @ x).double()
            self.targets += (x.T @ y).double()
            self.count += len(x)

    def _cells(self, key: int, x: Tensor) -> Tensor:
        x = (x - self.mean[key][:, None, None]) / self.std[key][:, None, None]
        return interpolate(x, (CELLS, CELLS), mode="bilinear")

    def fit(self, keys: Sequence[tuple[str, int]]) -> Tensor:
        """Return weights of some maps and the constant, (D + 1,)."""
        rows = [row for key in keys for row in self.at[key]] + [len(self.targets) - 1]
        ridge = torch.full((len(rows),), RIDGE * self.count, dtype=torch.float64)
        ridge[-1] = 0  # not of the constant
        products = self.products[rows][:, rows] + torch.diag(ridge)
        weights: Tensor = torch.linalg.solve(products, self.targets[rows]).float()
        return weights

    def predict(self, keys: Sequence[tuple[str, int]], weights: Tensor, maps: Maps) -> Tensor:
        """Return the share that some maps tell for each pixel of pictures, (N, 128, 128)."""
        total, at = weights[-1], 0
        for name, stage in keys:
            x, key = maps[name][stage], self.keys.index((name, stage))
            w = weights[at : at + x.shape[1]] / self.std[key]
            told = torch.einsum("nchw,c->nhw", x, w) - (w * self.mean[key]).sum()
            total = total + interpolate(told[:, None], (CELLS, CELLS), mode="bilinear")[:, 0]
            at += x.shape[1]
        return total


@torch.no_grad()
def maps_of(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Return the last four feature maps of pictures (N, C, H, W) in [0, 1]."""
    encoder.eval()
    found = [encoder.forward_features(batch)[-4:] for batch in images.split(32)]
    return [torch.cat(stage) for stage in zip(*found, strict=True)]


@torch.no_grad()
def estimate_statistics(encoder: Encoder, images: Tensor) -> Encoder:
    """Give batch normalisations the statistics of pictures, as the mean over batches."""
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    encoder.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for rows in order.split(32):
        encoder.forward_features(images[rows])
    return encoder


class Fold:
    """Pictures and masks of the training part and of a fold that tests.

    Args:
        data: the whole data set.
        fold: which fold of five tests.
    """

    def __init__(self, data: PairedFolder, fold: int) -> None:
        train, test = fold_split(np.arange(len(data)), data.groups, FOLDS, fold, seed=0)
        samples = [[data.read(int(row)) for row in rows] for rows in (train, test)]
        known = [[s for s in part if "mask" in s.get("target", {})] for part in samples]
        self.modalities = data.modalities
        self.images = [
            {
                name: modality.scale(torch.stack([s["images"][name] for s in part]))
                for name, modality in data.modalities.items()
            }
            for part in known
        ]
        self.masks = [torch.stack([s["target"]["mask"] for s in part]) for part in known]

    def scores(self, encoders: dict[str, Encoder]) -> dict[tuple[str, str], float]:
        """Return the mIoU of each set of stages and sensors, in percent."""
        maps = [
            {name: maps_of(encoder, images[name]) for name, encoder in encoders.items()}
            for images in self.images
        ]
        shares = interpolate(self.masks[0][:, None].float(), (CELLS, CELLS), mode="area")[:, 0]
        probe, found = Probe(maps[0], shares), {}
        for stages, numbers in STAGES.items():
            for sensors in (*([name] for name in encoders), list(encoders)):
                keys = [(name, number) for name in sensors for number in numbers]
                weights = probe.fit(keys)
                told = [self._to_size(probe.predict(keys, weights, each)) for each in maps]
                limit = best_threshold(told[0], self.masks[0])
                found[stages, "+".join(sensors)] = mean_iou(told[1] > limit, self.masks[1])
        return found

    def _to_size(self, told: Tensor) -> Tensor:
        size = (self.masks[0].shape[-2], self.masks[0].shape[-1])
        return interpolate(told[:, None], size, mode="bilinear")[:, 0]


def best_threshold(told: Tensor, truth: Tensor) -> float:
    """Return the threshold of shares with the best mean IoU, from one histogram of all pixels."""
    limits = torch.from_numpy(THRESHOLDS).float()
    passed = torch.bucketize(told.flatten(), limits)  # thresholds below it
    counts = torch.bincount(truth.flatten() * (len(limits) + 1) + passed)
    dry, flooded = counts.reshape(2, -1).double()
    below = torch.stack([dry.cumsum(0)[:-1], flooded.cumsum(0)[:-1]])  # (2, thresholds)
    total = torch.stack([dry.sum(), flooded.sum()])
    of_rest = below[0] / (total[0] + below[1])
    of_floods = (total[1] - below[1]) / (total.sum() - below[0])
    return float(limits[(of_rest + of_floods).argmax()])


def mean_iou(guess: Tensor, truth: Tensor) -> float:
    """Return the mean IoU of floods and of the rest over all pixels, in percent."""
    counts = confusion_of_masks(guess.long(), truth, 2).sum(0)
    return 100 * float(np.nanmean(ious(counts.numpy())))


def pretrained(arguments: argparse.Namespace, more: list[str], method: str, fold: int) -> Path:
    """Pretrain without a fold, or go on with it; return the run."""
    run = Path(arguments.work) / f"{method.lower().replace(' ', '-')}-fold{fold}"
    options = {
        "--config": "ombria",
        "--data.root": arguments.root,
        "--run": run,
        "--seed": fold,
        "--without_fold": fold,
        "--views.size": 64,
        "--trainer.max_epochs": arguments.epochs,
        "--trainer.precision": arguments.precision,
        "--monitor.every_epochs": 0,
        "--loader.workers": 0,
    }
    words = [str(word) for pair in options.items() for word in pair]
    if (run / "done").is_file():
        return run
    command = [sys.executable, "-m", "decur", "pretrain", *words, *OBJECTIVES[method], *more]
    subprocess.run(command, check=True)
    (run / "done").touch()
    return run


def measure(arguments: argparse.Namespace, more: list[str]) -> pd.DataFrame:
    """Return the mIoU of each method, statistics, fold, set of stages and sensors."""
    about = {"scaling": "range"}
    data = PairedFolder(
        arguments.root,
        {
            "s1": {**about, "bands": ["backscatter"], "augmentation": "sar"},
            "s2": {**about, "bands": ["band1", "band2", "band3"], "augmentation": "optical"},
        },
    )
    rows = []
    for number in arguments.folds:
        fold = Fold(data, number)
        for method in (FRESH, *arguments.methods):
            kept = arguments.work / f"{method.lower().replace(' ', '-')}-fold{number}.csv"
            if not kept.is_file():
                found = []
                if method == FRESH:
                    torch.manual_seed(number)
                    encoders = {n: build_encoder("resnet18", m) for n, m in data.modalities.items()}
                else:
                    files = pretrained(arguments, more, method, number) / "encoders"
                    encoders = {
                        n: load_encoder(files / f"{n}.safetensors") for n in data.modalities
                    }
                    found += [("as trained", *key, v) for key, v in fold.scores(encoders).items()]
                for name, encoder in encoders.items():
                    estimate_statistics(encoder, fold.images[0][name])
                found += [("re-estimated", *key, v) for key, v in fold.scores(encoders).items()]
                table = pd.DataFrame(found, columns=["statistics", "stages", "sensors", "mIoU"])
                kept.parent.mkdir(parents=True, exist_ok=True)
                table.to_csv(kept, index=False)
            table = pd.read_csv(kept)
            rows.append(table.assign(method=method, fold=number))
    return pd.concat(rows)


def show(found: pd.DataFrame, console: Console) -> None:
    """Print a table of scores, and one of differences from fresh weights."""
    cells = {
        tuple(map(str, key)): rows.sort_values("fold")["mIoU"].to_numpy()
        for key, rows in found.groupby(["method", "statistics", "stages", "sensors"], sort=False)
    }
    gains = {
        (method, *key): values - cells[FRESH, "re-estimated", *key[1:]]
        for (method, *key), values in cells.items()
        if method != FRESH
    }
    told = dict(zip(gains, holm([paired_p(values) for values in gains.values()]), strict=True))
    sensors = list(map(str, found["sensors"].unique()))
    for title, part in (("mIoU, %", cells), ("above fresh weights, points", gains)):
        table = Table("method", "batch statistics", "maps", title=title)
        for name in sensors:
            table.add_column(name, justify="right")
        for key in dict.fromkeys(key[:3] for key in part):
            row = [(*key, name) for name in sensors]
            marks = [" *" if told.get(one) and part is gains else "" for one in row]
            told_as = [spread(part[one], sign=part is gains) for one in row]
            table.add_row(*key, *map("".join, zip(told_as, marks, strict=True)))
        console.print(table)
    console.print(
        f"mean and standard deviation over {found['fold'].nunique()} folds; * can be told from 0: "
        f"{sum(told.values())} of {len(told)} differences"
    )


def spread(values: NDArray[np.float64], sign: bool = False) -> str:
    """Return "61.2 ± 1.4"."""
    deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():{'+' if sign else ''}.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="OMBRIA: s1, s2, mask, splits.csv")
    parser.add_argument("--methods", nargs="*", default=["Barlow Twins", "DeCUR"])
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--precision", default="bf16-mixed", help="as Lightning names it")
    parser.add_argument("--work", type=Path, default=Path("runs/floods"))
    arguments, more = parser.parse_known_args()
    show(measure(arguments, more), Console(width=110))


if __name__ == "__main__":
    main()
