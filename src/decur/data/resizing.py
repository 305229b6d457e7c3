"""Pictures and masks to another size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Bilinear, antialiased; without smearing NaN over all that the filter touches."""
    if size is None or image.shape[-2:] == size:
        return image
    x = image[None].float()  # (1, C, H, W)
    measured = ~x.isnan()
    weight = measured.float()
    x = interpolate(x.nan_to_num(0), size, mode="bilinear", antialias=True)
    if not measured.all():
        weight = interpolate(weight, size, mode="bilinear", antialias=True)
        x = torch.where(weight >= 0.5, x / weight.clamp_min(0.5), torch.nan)
    return x[0].round().to(torch.uint8) if image.dtype == torch.uint8 else x[0]


def resize_mask(mask: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Class indices (H, W) without mixing them: nearest; float32 holds 0 to 255 exactly."""
    if size is None or mask.shape == size:
        return mask
    return interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].long()
