"""Raw sensor values to [0, 1], in batches, on the device the batch is on."""

from __future__ import annotations

import torch
from torch import Tensor

from decur.errors import DataError
from decur.modality import Modality

NO_MEASUREMENT = 0.5  # what an average value becomes under "standard": neither dark nor bright


def scale(images: Tensor, modality: Modality) -> Tensor:
    """See `Modality.scale`."""
    if images.ndim < 3 or images.shape[-3] != modality.channels:
        raise DataError(
            f"modality {modality.name!r} has {modality.channels} bands "
            f"({', '.join(modality.bands)}), the images have shape {tuple(images.shape)}"
        )
    x = images.to(torch.float32)  # (..., C, H, W)
    if modality.nodata is not None:
        x = torch.where(torch.isin(x, x.new_tensor(modality.nodata)), torch.nan, x)
    if modality.cut or modality.scaling == "image":
        low, high = percentiles(x, modality.cut / 2, 100 - modality.cut / 2)  # (..., C, 1, 1)
        x = x.clamp(low, high)
    if modality.scaling == "standard":
        assert modality.mean is not None and modality.std is not None
        mean = x.new_tensor(modality.mean)[:, None, None]
        std = x.new_tensor(modality.std)[:, None, None]
        x = (x - mean + 2 * std) / (4 * std)
    elif modality.scaling == "range":
        bottom, top = modality.value_range
        x = (x - bottom) / (top - bottom)
    else:
        x = (x - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return x.clamp(0, 1).nan_to_num(NO_MEASUREMENT)


def percentiles(images: Tensor, *percents: float) -> list[Tensor]:
    """Percentiles of each image and band, without its NaN pixels.

    By sorting: `torch.quantile` refuses more than 16 million values. Nearest rank, no
    interpolation.

    Args:
        images: (..., H, W) float.
        percents: in [0, 100].

    Returns:
        One tensor (..., 1, 1) for each percentage; NaN where an image has no valid pixel.
    """
    ordered = images.flatten(-2).sort(dim=-1).values  # NaN come last
    last = (~ordered.isnan()).sum(-1, keepdim=True) - 1  # (..., 1), -1 where nothing is valid
    ranks = [(last * (p / 100)).round().long().clamp_min(0) for p in percents]
    return [ordered.gather(-1, rank)[..., None] for rank in ranks]
