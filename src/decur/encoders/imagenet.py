"""ImageNet's normalisation, which most encoders of photographs were trained with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of pictures in [0, 1]


def dealt_out(values: Sequence[float], bands: int) -> list[float]:
    """Return a number for each band, where filters of three colours are dealt out to bands.

    Adapted to one band, filters are added up, which gets the average; to any other number they go
    in turn, red's first, as timm and segmentation-models-pytorch do.

    Args:
        values: of red, green and blue.
        bands: how many there are.
    """
    return [sum(values) / 3] if bands == 1 else [values[band % 3] for band in range(bands)]


def fold(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a first layer for pictures in [0, 1], from one for normalised pictures.

    W (x - m) / s + b is (W / s) x + b - sum(W m / s). At a border, which is padded with zeros, it
    sees black where it saw the mean colour.

    Args:
        weight: (D, C, h, w), of the convolution that takes red, green and blue, or what filters of
            these were dealt out to.

    Returns:
        Its weight now, (D, C, h, w), and what is to be taken off its bias, (D,).
    """
    own = (dealt_out(values, weight.shape[1]) for values in IMAGENET)
    mean, std = (weight.new_tensor(values)[:, None, None] for values in own)  # (C, 1, 1)
    return weight / std, (weight * mean / std).sum((1, 2, 3))
