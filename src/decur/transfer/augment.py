"""Augmentation of labelled pictures: the same for all sensors of a sample, and for its mask."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]

RATIO = [3 / 4, 4 / 3]  # of a crop's width to its height


def crop_and_flip(
    images: Mapping[str, Tensor], mask: Tensor | None, scale: tuple[float, float]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Random resized crop and horizontal flip (appendix B.2), the same for all of a sample.

    Args:
        images: `{modality: (B, C, H, W)}`, each of its own size, which stays.
        mask: (B, H, W) class indices, cropped alike without mixing classes.
        scale: smallest and largest area of the crop, as shares of the picture.
    """
    first = next(iter(images.values()))
    count, (height, width) = len(first), first.shape[-2:]
    drawn = [RandomResizedCrop.get_params(first[0], list(scale), RATIO) for _ in range(count)]
    box = torch.tensor(drawn, dtype=torch.float32)  # (B, 4): top, left, height, width
    box /= torch.tensor([height, width, height, width])
    mirror = 1 - 2 * (torch.rand(count) < 0.5).float()
    theta = torch.zeros(
        count, 2, 3
    )  # from places in the crop, in [-1, 1], to places in the picture
    theta[:, 0, 0], theta[:, 0, 2] = box[:, 3] * mirror, 2 * box[:, 1] + box[:, 3] - 1
    theta[:, 1, 1], theta[:, 1, 2] = box[:, 2], 2 * box[:, 0] + box[:, 2] - 1
    theta = theta.to(first.device)

    def take(x: Tensor, mode: str) -> Tensor:
        grid = affine_grid(theta, list(x.shape), align_corners=False)
        return grid_sample(x, grid, mode, padding_mode="border", align_corners=False)

    cropped = {name: take(x, "bilinear") for name, x in images.items()}
    if mask is not None:  # float32 holds class indices exactly
        mask = take(mask[:, None].float(), "nearest")[:, 0].long()
    return cropped, mask
