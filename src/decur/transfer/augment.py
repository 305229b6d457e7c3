"""Augmentation of labelled pictures in training, and averaging over versions of them in tests.

What is drawn for a sample is the same for all of its sensors, and for its mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]

from decur.data.sample import VOID
from decur.devices import send
from decur.encoders.build import colour_order
from decur.encoders.imagenet import IMAGENET
from decur.errors import ConfigError
from decur.modality import Modality
from decur.scaling import NO_MEASUREMENT

WINDOW_STEP = 2 / 3  # of a window: how far the next one is
RATIO = [3 / 4, 4 / 3]  # of a crop's width to its height


def crop_and_flip(
    images: Mapping[str, Tensor], mask: Tensor | None, scale: tuple[float, float]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Crop, resize and flip pictures at random (appendix B.2), alike for all of a sample.

    Args:
        images: `{modality: (B, C, H, W)}`, each of its own size, which stays.
        mask: (B, H, W) class indices, cropped alike without mixing classes; None for none.
        scale: smallest and largest area of the crop, as shares of the picture.

    Returns:
        Pictures and mask of the sizes they had.
    """
    first = next(iter(images.values()))
    count, (height, width) = len(first), first.shape[-2:]
    drawn = [RandomResizedCrop.get_params(first[0], list(scale), RATIO) for _ in range(count)]
    box = torch.tensor(drawn, dtype=torch.float32)  # (B, 4): top, left, height, width
    box /= torch.tensor([height, width, height, width])
    mirror = 1 - 2 * (torch.rand(count) < 0.5).float()
    theta = send(_affine(box, mirror), first.device)
    cropped = {
        name: _take(x, theta, (x.shape[-2], x.shape[-1]), "bilinear") for name, x in images.items()
    }
    if mask is not None:  # float32 holds class indices exactly
        size = (mask.shape[-2], mask.shape[-1])
        mask = _take(mask[:, None].float(), theta, size, "nearest")[:, 0].long()
    return cropped, mask


def scale_and_flip(
    images: Mapping[str, Tensor],
    mask: Tensor,
    scales: Sequence[float],
    piece: tuple[int, int] | None = None,
    fill: Mapping[str, Sequence[float]] | None = None,
    *,
    void: int = VOID,
) -> tuple[dict[str, Tensor], Tensor]:
    """Enlarge pictures at random, take a piece and flip it, alike for all of a sample.

    Where a shrunken picture is smaller than the piece, it lies in its middle; around it pictures
    have the colour `fill` and the mask is unknown.

    Args:
        images: `{modality: (B, C, H, W)}`, each of its own size.
        mask: (B, H, W) class indices, `void` unknown.
        scales: factors, one of which is drawn for each sample.
        piece: height and width of the result, in pixels of the mask; None: of the mask. A picture
            of another size than the mask's keeps its ratio to it.
        fill: `{modality: value of each band}` around a shrunken picture, see `mean_colour`; 0 for
            a modality that it does not name.
        void: what an unknown pixel of the mask is.

    Returns:
        Pictures and mask of the piece's size.

    Source: Zhang et al. 2023 (CMX), section IV-B and appendix A.
    """
    count, (height, width) = len(mask), mask.shape[-2:]
    piece = piece or (height, width)
    scale = torch.tensor(scales)[torch.randint(len(scales), (count,))]  # (B,)
    share = torch.tensor(piece) / (torch.tensor([height, width]) * scale[:, None])  # (B, 2)
    place = torch.where(share < 1, torch.rand(count, 2), 0.5)
    box = torch.cat([(1 - share) * place, share], dim=1)  # (B, 4): top, left, height, width
    mirror = 1 - 2 * (torch.rand(count) < 0.5).float()
    theta = send(_affine(box, mirror), mask.device)
    taken = {}
    for name, x in images.items():
        own = (round(piece[0] * x.shape[-2] / height), round(piece[1] * x.shape[-1] / width))
        inside = _take(torch.ones_like(x[:, :1]), theta, own, "nearest", "zeros")
        # zeros outside at once would fade the picture's own border
        colour = _colour(fill, name, x)
        taken[name] = _take(x, theta, own, "bilinear") * inside + colour * (1 - inside)
    shifted = mask[:, None].float() - void  # what is 0 outside
    mask = _take(shifted, theta, piece, "nearest", "zeros")[:, 0].long() + void
    return taken, mask


def _affine(box: Tensor, mirror: Tensor) -> Tensor:
    """Return the affine maps from places in a crop, in [-1, 1], to places in the picture.

    Args:
        box: (B, 4) top, left, height, width as shares of the picture.
        mirror: (B,) -1 for a flip, else 1.
    """
    theta = torch.zeros(len(box), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = box[:, 3] * mirror, 2 * box[:, 1] + box[:, 3] - 1
    theta[:, 1, 1], theta[:, 1, 2] = box[:, 2], 2 * box[:, 0] + box[:, 2] - 1
    return theta


def _take(
    x: Tensor, theta: Tensor, size: tuple[int, int], mode: str, outside: str = "border"
) -> Tensor:
    """Sample (B, C, H, W) at the places that affine maps give: (B, C, *size)."""
    # the grid is a matrix product: in half precision places would be off by half a pixel
    with torch.autocast(x.device.type, enabled=False):
        grid = affine_grid(theta, [*x.shape[:2], *size], align_corners=False)
        return grid_sample(x, grid, mode, padding_mode=outside, align_corners=False)


def mean_colour(modality: Modality) -> tuple[float, ...]:
    """Return the value of each band that stands for no picture, as a scaled picture has it.

    CMX pads pictures that are normalised by ImageNet's mean with 0: with the mean colour. That is
    ImageNet's for three bands in a fixed range, and the middle of the scale for others.
    """
    if modality.scaling == "zscore":
        return (0.0,) * modality.channels
    if modality.scaling == "standard" or modality.channels != 3:
        return (NO_MEASUREMENT,) * modality.channels
    mean = IMAGENET[0]
    return tuple(mean[place] for place in colour_order(modality.bands) or range(3))


def _colour(fill: Mapping[str, Sequence[float]] | None, name: str, like: Tensor) -> Tensor:
    """Return the colour of a sensor for pictures (B, C, H, W): (C, 1, 1)."""
    values = (fill or {}).get(name, (0.0,))
    return send(torch.tensor(values, dtype=like.dtype), like.device)[:, None, None]


@dataclass(frozen=True)
class Averaging:
    """Which versions of a test picture a mask is told from, and in which windows.

    Args:
        scales: factors of height and width.
        flip: each of them mirrored, too.
        window: height and width of windows that a larger picture is tested in; they overlap by a
            third. None: pictures are tested whole.
        fill: `{modality: value of each band}` around a picture that is smaller than the window.

    Source: the public code of Zhang et al. 2023 (CMX), its evaluator.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    fill: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def output(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        size: tuple[int, int],
    ) -> Tensor:
        """Return the logarithm of CMX's scores: exp(logits + mirrored logits), added over scales.

        Scores are resized to the output's size before they are added; within a scale those of
        windows are added where they overlap.

        Args:
            model: called with pictures, presence and size.
            images: `{modality: (B, C, H, W)}` in [0, 1].
            present: as the model takes it.
            size: height and width of the output.

        Returns:
            (B, outputs, *size); with a single version what the model gives.

        Raises:
            ConfigError: for windows of pictures that differ in size.
        """
        if self == Averaging(fill=self.fill):
            only: Tensor = model(images, present, size)
            return only
        total: Tensor | float = 0.0
        for scale in self.scales:
            scaled = {name: _resize(x, scale) for name, x in images.items()}
            scores = self._in_windows(model, scaled, present)  # (B, K, h, w)
            total = total + interpolate(scores, size, mode="bilinear")
        assert isinstance(total, Tensor)
        return total.log().float()

    def _scores(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """Return exp(logits + mirrored logits) of pictures, (B, K, H, W) of the first one's size.

        In float64: the exponential of a sum of two logits soon leaves float32.
        """
        first = next(iter(images.values()))
        size = (first.shape[-2], first.shape[-1])
        logits: Tensor = model(images, present, size)
        if self.flip:
            mirrored = {name: x.flip(-1) for name, x in images.items()}
            logits = logits + model(mirrored, present, size).flip(-1)
        return logits.double().exp()

    def _in_windows(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """Return scores of whole pictures, or of windows that are added where they overlap."""
        sizes = {(x.shape[-2], x.shape[-1]) for x in images.values()}
        if self.window is None:
            return self._scores(model, images, present)
        if len(sizes) > 1:
            raise ConfigError(
                f"test_window: needs pictures of one size, these have {sorted(sizes)}; set size, "
                "or leave it out"
            )
        ((height, width),) = sizes
        high, wide = self.window
        if height <= high or width <= wide:
            return self._padded(model, images, present, (height, width))
        total: Tensor | None = None
        for top in _starts(height, high):
            for left in _starts(width, wide):
                at = (..., slice(top, top + high), slice(left, left + wide))
                scores = self._scores(model, {n: x[at] for n, x in images.items()}, present)
                if total is None:
                    total = scores.new_zeros(*scores.shape[:2], height, width)
                total[at] += scores
        assert total is not None
        return total

    def _padded(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        size: tuple[int, int],
    ) -> Tensor:
        """Return scores of pictures that are put into the middle of a window, without its edge."""
        assert self.window is not None
        whole = [max(side, least) for side, least in zip(size, self.window, strict=True)]
        top, left = ((full - side) // 2 for full, side in zip(whole, size, strict=True))
        at = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        padded = {}
        for name, x in images.items():
            padded[name] = x.new_ones(*x.shape[:2], *whole) * _colour(self.fill, name, x)
            padded[name][at] = x
        return self._scores(model, padded, present)[at]


def _starts(side: int, window: int) -> list[int]:
    """Return where windows start along a side: steps of two thirds, the last one at the end."""
    step = math.ceil(window * WINDOW_STEP)
    count = math.ceil((side - window) / step) + 1
    return [min(number * step, side - window) for number in range(count)]


def _resize(x: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return x
    return interpolate(x, scaled_size((x.shape[-2], x.shape[-1]), scale), mode="bilinear")


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return height and width of a picture that is resized by a factor."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
