"""Two augmented views of a multispectral batch: decur's `Views` against kornia.

    python benchmarks/views.py                # 64 pictures of 13 bands, 264 -> 224 px, two threads
    python benchmarks/views.py --device cuda

Both make two views of the same float32 batch with the optical recipe: resized crop, both flips,
brightness, contrast, grayscale, Gaussian blur (13 taps), solarize and band drop, with the same
probabilities and ranges, clamped to [0, 1], under `no_grad`. Repeats alternate; the medians and
their ratio are printed.

What kornia lacks for 13 bands, and what stands in for it:
- `ColorJitter` and its kin take three bands: `RandomBrightness` (times a factor) and
  `RandomContrast` stand in, each with the probability of the jitter. Its contrast multiplies only
  and so is spared the mean of each picture, which decur computes.
- `RandomGrayscale` takes three bands: `MeanOverBands` below, a kornia augmentation of one line.
- `RandomChannelDropout` drops a fixed number of bands: 3, where decur drops 1 to 6.
Both resample bilinearly without antialiasing (`cropping_mode="resample"`; "slice" crops sample by
sample and can be had with --slice).

Last, grayscale and solarize as decur has them, on the samples that they concern alone, against the
same on the whole batch: they concern few.

Measure on idle cores: with several threads every parallel step waits for the slowest, so that any
other busy process on the same cores swamps both figures. `--threads 1` is robust against that.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor

from decur import Modality
from decur.views import Views
from decur.views.augmentation import Augmentation
from decur.views.pixels import gray_, solarize_


class MeanOverBands(K.IntensityAugmentationBase2D):
    """Grayscale for any number of bands."""

    def apply_transform(
        self, input: Tensor, params: Any, flags: Any, transform: Any = None
    ) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return input.mean(1, keepdim=True).expand_as(input)


def kornia_pipeline(recipe: Augmentation, size: int, mode: str) -> K.AugmentationSequential:
    r = recipe
    return K.AugmentationSequential(
        K.RandomResizedCrop((size, size), r.crop_scale, r.crop_ratio, cropping_mode=mode),
        K.RandomHorizontalFlip(p=r.horizontal_flip_p),
        K.RandomVerticalFlip(p=r.vertical_flip_p),
        K.RandomBrightness((1 - r.brightness, 1 + r.brightness), p=r.jitter_p),
        K.RandomContrast((1 - r.contrast, 1 + r.contrast), p=r.jitter_p),
        MeanOverBands(p=r.grayscale_p),
        K.RandomGaussianBlur((13, 13), r.blur_sigma, p=r.blur_p),
        K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=r.solarize_p),
        K.RandomChannelDropout(num_drop_channels=3, p=r.color_drop_p),
        data_keys=["input"],
        same_on_batch=False,
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gray_all(x: Tensor, chosen: Tensor) -> Tensor:
    """Grayscale of the chosen samples, computed for all."""
    return torch.where(chosen[:, None, None, None], x.mean(1, keepdim=True), x)


def solarize_all(x: Tensor, chosen: Tensor) -> Tensor:
    """Solarize of the chosen samples, computed for all."""
    threshold = torch.where(chosen, 0.5, torch.inf)[:, None, None, None]
    return torch.where(x > threshold, 1 - x, x)


def compare_whole(images: Tensor, repeats: int) -> None:
    """Print how long operations take on some samples, and on all."""
    chosen = torch.arange(len(images)) % 5 == 0  # a probability of 0.2, as in the recipe
    there = chosen.to(images.device)
    cases: list[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        ("gray", lambda: gray_(images, chosen), lambda: gray_all(images, there)),
        ("solarize", lambda: solarize_(images, chosen, 0.5), lambda: solarize_all(images, there)),
    ]
    for name, some, everything in cases:
        times = []
        for work in (some, everything):
            work()
            measured = [seconds(work, images.device) for _ in range(repeats)]
            times.append(statistics.median(measured) * 1e3)
        print(f"{name:8s} {times[0]:.1f} ms on the samples that it concerns, {times[1]:.1f} on all")


def main() -> None:
    parser = argparse.ArgumentParser(description="Two views of a batch: decur against kornia.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bands", type=int, default=13)
    parser.add_argument("--pixels", type=int, default=264)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slice", action="store_true", help="kornia's other way of cropping")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # kornia's deprecations
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)

    bands = tuple(str(band) for band in range(args.bands))
    views = Views({"s2": Modality(name="s2", bands=bands, scaling="range")}, size=args.size)
    pipeline = kornia_pipeline(
        views.recipes["s2"], args.size, "slice" if args.slice else "resample"
    ).to(device)
    images = torch.rand(args.batch, args.bands, args.pixels, args.pixels, device=device)

    @torch.no_grad()
    def theirs() -> tuple[Tensor, Tensor]:
        return pipeline(images), pipeline(images)

    def ours(step: int) -> tuple[Tensor, Tensor]:
        seeds = torch.arange(args.batch) + step * args.batch
        made: dict[str, tuple[Tensor, Tensor]] = views({"s2": images}, seeds)
        return made["s2"]

    for pair in (theirs(), ours(0)):  # warms up, and both give the same kind of thing
        for view in pair:
            assert view.shape == (args.batch, args.bands, args.size, args.size)
            assert view.dtype == torch.float32 and view.min() >= 0 and view.max() <= 1
    times: dict[str, list[float]] = {"kornia": [], "decur": []}
    for step in range(args.repeats):
        times["kornia"].append(seconds(theirs, device))
        times["decur"].append(seconds(lambda step=step: ours(step), device))  # type: ignore[misc]
    for name, measured in times.items():
        print(
            f"{name:7s} {statistics.median(measured) * 1e3:8.1f} ms for two views "
            f"(from {min(measured) * 1e3:.1f} to {max(measured) * 1e3:.1f})"
        )
    ratio = statistics.median(times["kornia"]) / statistics.median(times["decur"])
    print(f"decur is {ratio:.1f} times as fast ({args.device}, {torch.get_num_threads()} threads)")
    compare_whole(torch.rand(*images.shape[:2], args.size, args.size, device=device), args.repeats)


if __name__ == "__main__":
    main()
