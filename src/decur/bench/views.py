"""`decur bench views`: two augmented views of a batch, on the device that trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from decur.bench.device import Rates
from decur.bench.timing import Row, measure, peak_memory
from decur.data import Batch
from decur.modality import Modality
from decur.views import Views, sample_seeds


def bench_views(
    modalities: Mapping[str, Modality],
    views: Views,
    batch: Batch,
    device: torch.device,
    rates: Rates,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure scaling to [0, 1] and both views: of each sensor alone, and of all.

    Floor: the raw pictures read and the views written once, at the speed of a copy.

    Args:
        modalities: of the batch.
        views: what makes the views.
        batch: raw pictures, on any device.
        device: where views are made.
        rates: of that device.
        seconds: how long each is measured.

    Yields:
        A row for each sensor, and one for all together, which draws only once.
    """
    images = {name: x.to(device) for name, x in batch["images"].items()}
    seeds = sample_seeds(batch["ids"], 0, 0)
    chosen = [(name, [name]) for name in modalities] if len(modalities) > 1 else []
    for title, names in [*chosen, ("all sensors", list(modalities))]:

        def make(names: list[str] = names) -> None:
            scaled = {name: modalities[name].scale(images[name]) for name in names}
            views(scaled, seeds)

        moved = moved_by_views({name: images[name] for name in names}, views.size)
        largest = max(images[name].nbytes for name in names)
        timing = measure(make, device, seconds)
        yield Row(
            title,
            len(batch["ids"]),
            timing,
            memory=peak_memory(make, device),
            moved=moved,
            floor=rates.floor(0, moved, largest),
        )


def moved_by_views(images: Mapping[str, Tensor], size: tuple[int, int]) -> int:
    """Bytes that two views of each picture move at least: pictures read, float32 views written.

    Args:
        images: `{name: (B, C, H, W)}`, raw.
        size: height and width of the views.
    """
    written = sum(2 * x.shape[0] * x.shape[1] * size[0] * size[1] * 4 for x in images.values())
    return written + sum(x.nbytes for x in images.values())
