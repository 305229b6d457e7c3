"""Masks of a test part to look at: the best, the median and the worst sample by IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur import plotting
from decur.data import PairedDataset
from decur.features import scaled
from decur.transfer.augment import Averaging
from decur.transfer.heads import Fusion
from decur.transfer.splits import Parts
from decur.transfer.tasks import Kept
from decur.transfer.tasks.segmentation import ious

_WIDTH = 2.3  # inches of a picture
_LETTERS = 40  # of an id


@dataclass(frozen=True)
class Example:
    """A sample of the test part, by its rank among all.

    Args:
        rank: "best", "median" or "worst".
        row: of the data set.
        iou: mean over the classes that are there or predicted.
    """

    rank: str
    row: int
    iou: float


def choose_examples(kept: Kept, rows: NDArray[np.int64]) -> list[Example]:
    """Return the best, the median and the worst sample; fewer where there are fewer.

    Args:
        kept: what `Segmentation` keeps of the test part: `confusion` (N, C, C).
        rows: (N,) of the samples in the data set.
    """
    ious = sample_ious(kept["confusion"])
    order = [int(at) for at in np.argsort(-ious, kind="stable") if not np.isnan(ious[at])]
    ranks = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    chosen: dict[int, str] = {}
    for rank, place in ranks.items() if order else ():
        chosen.setdefault(order[place], rank)
    return [Example(rank, int(rows[at]), float(ious[at])) for at, rank in chosen.items()]


def sample_ious(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU of each sample over the classes that it shows or that are predicted.

    Args:
        confusion: (N, C, C) pixels by true and predicted class.

    Returns:
        (N,), NaN for a sample without a known pixel.
    """
    shares = ious(confusion)  # (N, C)
    there = (~np.isnan(shares)).sum(axis=1)
    return np.where(there > 0, np.nansum(shares, axis=1) / np.maximum(there, 1), np.nan)


def draw_examples(
    model: Fusion,
    parts: Parts,
    examples: Sequence[Example],
    path: Path,
    *,
    size: int | None = None,
    averaging: Averaging | None = None,
) -> Path:
    """Draw samples in rows: what each sensor sees, the truth, and what the model predicts.

    Args:
        model: the trained model.
        parts: data and task.
        examples: which samples.
        path: of the picture.
        size: height and width that pictures are resized to; None for their own.
        averaging: which versions of a picture the mask is told from, as in the test.

    Returns:
        The path.
    """
    names, classes = list(model.encoders), parts.task.classes
    colours = [*plotting.class_colours(len(classes)), (255, 255, 255)]
    table = np.array(colours, dtype=np.uint8)
    figure, axes = plotting.subplots(len(examples), len(names) + 2, width=_WIDTH, height=2.55)
    for axis in axes.ravel():
        axis.axis("off")
    for row, example in zip(axes, examples, strict=True):
        images, truth = _read(parts.data, example.row, parts.task.name)
        guess = _predicted(model, images, truth, size, averaging)
        for axis, name in zip(row, names, strict=False):
            if axis is not row[0]:
                axis.set_title(plotting.plain(name), fontsize=8)
            if name in images:
                sensor = model.modality(name)
                axis.imshow(plotting.render(sensor.scale(images[name]), sensor))
        unknown = (truth < 0) | (truth >= len(classes))
        shown = (("truth", truth.where(~unknown, torch.tensor(len(classes)))), ("predicted", guess))
        for axis, (what, mask) in zip(row[len(names) :], shown, strict=True):
            axis.imshow(table[mask.numpy()], interpolation="nearest")
            axis.set_title(what, fontsize=8)
        id_ = parts.data.ids[example.row]
        told = id_ if len(id_) <= _LETTERS else f"...{id_[-_LETTERS:]}"
        row[0].set_title(
            plotting.plain(f"{example.rank}, IoU {example.iou:.2f}, {told}\n{names[0]}"),
            fontsize=8,
            loc="left",
        )
    names = [*classes, "not labelled"]
    how = {"loc": "outside lower center", "ncols": min(len(names), 6), "fontsize": 8}
    plotting.class_legend(figure, names, colours, **how)
    return plotting.save(figure, path)


def _read(data: PairedDataset, row: int, target: str) -> tuple[dict[str, Tensor], Tensor]:
    """Return the raw pictures of a sample by sensor, and its mask (H, W)."""
    sample = data[row]
    return sample["images"], sample["target"][target]


@torch.inference_mode()
def _predicted(
    model: Fusion,
    images: dict[str, Tensor],
    truth: Tensor,
    size: int | None,
    averaging: Averaging | None,
) -> Tensor:
    """Return the predicted mask of one sample, on the CPU: (H, W)."""
    device = next(model.parameters()).device
    pictures, present = {}, {}
    for name in model.encoders:
        sensor = model.modality(name)
        there = name in images
        raw = images[name] if there else _nothing(images, sensor.channels)
        pictures[name] = scaled(raw[None].to(device), sensor, size=size)
        present[name] = torch.tensor([there])
    shape = (truth.shape[-2], truth.shape[-1])
    if averaging is None:
        output: Tensor = model(pictures, present, shape)
    else:
        output = averaging.output(model, pictures, present, shape)
    return output[0].argmax(dim=0).cpu()


def _nothing(images: dict[str, Tensor], channels: int) -> Tensor:
    """Return zeros in place of the picture of an absent sensor."""
    other = next(iter(images.values()))
    return other.new_zeros(channels, *other.shape[-2:])
