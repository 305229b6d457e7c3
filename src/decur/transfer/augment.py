"""Augmentation of labelled pictures in training, and averaging over versions of them in tests.

What is drawn for a sample is the same for all of its sensors, and for its mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]

from decur.data.folder import UNKNOWN_CLASS

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
    theta = _affine(box, mirror).to(first.device)
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
) -> tuple[dict[str, Tensor], Tensor]:
    """Enlarge pictures at random, take a piece and flip it, alike for all of a sample.

    Where a shrunken picture is smaller than the piece, it lies in its middle; around it pictures
    are 0 and the mask is unknown.

    Args:
        images: `{modality: (B, C, H, W)}`, each of its own size.
        mask: (B, H, W) class indices, 255 unknown.
        scales: factors, one of which is drawn for each sample.
        piece: height and width of the result, in pixels of the mask; None: of the mask. A picture
            of another size than the mask's keeps its ratio to it.

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
    theta = _affine(box, mirror).to(mask.device)
    taken = {}
    for name, x in images.items():
        own = (round(piece[0] * x.shape[-2] / height), round(piece[1] * x.shape[-1] / width))
        inside = _take(torch.ones_like(x[:, :1]), theta, own, "nearest", "zeros")
        # zeros outside at once would fade the picture's own border
        taken[name] = _take(x, theta, own, "bilinear") * inside
    shifted = mask[:, None].float() - UNKNOWN_CLASS  # what is 0 outside
    mask = _take(shifted, theta, piece, "nearest", "zeros")[:, 0].long() + UNKNOWN_CLASS
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
    grid = affine_grid(theta, [*x.shape[:2], *size], align_corners=False)
    return grid_sample(x, grid, mode, padding_mode=outside, align_corners=False)


@dataclass(frozen=True)
class Averaging:
    """Which versions of a picture a mask is the mean of.

    Args:
        scales: factors of height and width.
        flip: each of them mirrored, too.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def output(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        size: tuple[int, int],
    ) -> Tensor:
        """Return the mean of a model's outputs, before any softmax, as CMX is tested.

        Args:
            model: called with pictures, presence and size.
            images: `{modality: (B, C, H, W)}` in [0, 1].
            present: as the model takes it.
            size: height and width of the output.

        Returns:
            (B, outputs, *size).
        """
        outputs = []
        for scale in self.scales:
            scaled = {name: _resize(x, scale) for name, x in images.items()}
            outputs.append(model(scaled, present, size))
            if self.flip:
                mirrored = {name: x.flip(-1) for name, x in scaled.items()}
                outputs.append(model(mirrored, present, size).flip(-1))
        return torch.stack(outputs).mean(dim=0)


def _resize(x: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return x
    return interpolate(x, scaled_size((x.shape[-2], x.shape[-1]), scale), mode="bilinear")


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return height and width of a picture that is resized by a factor."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
