"""From the numbers of files to raw units, and from these to [0, 1]: the arithmetic of a sensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from decur.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from decur.modality import Modality

NO_MEASUREMENT = 0.5  # what an average value becomes under "standard": neither dark nor bright


def scale(images: Tensor, modality: Modality) -> Tensor:
    """Scale raw pictures (..., C, H, W) to [0, 1]; see `Modality.scale`."""
    import torch

    if images.ndim < 3 or images.shape[-3] != modality.channels:
        raise DataError(
            f"modality {modality.name!r} has {modality.channels} bands "
            f"({', '.join(modality.bands)}), the images have shape {tuple(images.shape)}"
        )
    x = images.to(torch.float32)  # (..., C, H, W)
    if modality.nodata is not None and not modality.converts:  # else it was in other numbers
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


def convert(images: Tensor, modality: Modality) -> Tensor:
    """Return the numbers of files (..., C, H, W) in raw units; see `Modality.convert`."""
    import torch

    x = images.to(torch.float32)  # (..., C, H, W)
    if modality.nodata is not None:
        x = torch.where(torch.isin(x, _constants(modality.nodata, x)), torch.nan, x)
    x = x * (1.0 if modality.factor is None else modality.factor) + (modality.offset or 0.0)
    if modality.to_db:
        x = torch.where(x > 0, 10 * x.log10(), torch.nan)
    return x


def _constants(values: float | Sequence[float], like: Tensor) -> Tensor:
    import torch

    from decur.devices import send

    return send(torch.tensor(values, dtype=like.dtype), like.device)


def percentiles(images: Tensor, *percents: float) -> list[Tensor]:
    """Return percentiles of each image and band, without its NaN pixels.

    Nearest rank, no interpolation; `torch.quantile` refuses more than 16 million values. Near the
    ends only the few pixels beyond a percentile are sorted.

    Args:
        images: (..., H, W) float.
        percents: in [0, 100].

    Returns:
        One tensor (..., 1, 1) for each percentage; NaN where an image has no valid pixel.
    """
    import torch

    pixels = images.flatten(-2)  # (..., n)
    missing, number = pixels.isnan(), pixels.shape[-1]
    last = (~missing).sum(-1, keepdim=True) - 1  # (..., 1), -1 where nothing is valid
    found = []
    for percent in percents:
        rank = (last * (percent / 100)).round().long()  # (..., 1)
        beyond = min(percent, 100 - percent)
        # Whole numbers only, and no image has its percentile further from the end than one without
        # NaN: a graph of any size of pictures can hold it.
        most = torch.sym_min(number, number * math.ceil(10 * beyond) // 1000 + 2)
        if beyond > 10:
            ordered = pixels.sort(dim=-1).values  # NaN come last
        elif percent < 50:
            ordered = pixels.topk(most, dim=-1, largest=False).values  # NaN come last
        else:
            lowest = pixels.masked_fill(missing, -torch.inf)
            ordered, rank = lowest.topk(most, dim=-1).values, last - rank
        value = ordered.gather(-1, rank.clamp_min(0))
        found.append(torch.where(last < 0, torch.nan, value)[..., None])
    return found
