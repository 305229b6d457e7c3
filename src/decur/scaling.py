"""Raw sensor values to [0, 1], in batches, on the device the batch is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decur.errors import DataError
from decur.modality import Modality
from decur.sending import send

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
        x = torch.where(torch.isin(x, _constants(modality.nodata, x)), torch.nan, x)
    if modality.cut or modality.scaling == "image":
        low, high = percentiles(x, modality.cut / 2, 100 - modality.cut / 2)  # (..., C, 1, 1)
        x = x.clamp(low, high)
    if modality.scaling in ("standard", "zscore"):
        assert modality.mean is not None and modality.std is not None
        mean = _constants(modality.mean, x)[:, None, None]
        std = _constants(modality.std, x)[:, None, None]
        if modality.scaling == "zscore":
            return (x - mean).div_(std).nan_to_num_(0)
        x = (x - mean).add_(2 * std).div_(4 * std)
    elif modality.scaling == "range":
        bottom, top = modality.value_range
        x = (x - bottom).div_(top - bottom)
    else:
        x = (x - low).div_((high - low).clamp_min(torch.finfo(torch.float32).tiny))
    return x.clamp_(0, 1).nan_to_num_(NO_MEASUREMENT)  # in place: nothing else holds it by now


def _constants(values: float | Sequence[float], like: Tensor) -> Tensor:
    return send(torch.tensor(values, dtype=like.dtype), like.device)


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
