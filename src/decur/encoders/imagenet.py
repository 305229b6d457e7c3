"""ImageNet's normalisation, which most encoders of photographs were trained with."""

from __future__ import annotations

from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of pictures in [0, 1]


def fold(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a first layer for pictures in [0, 1], from one for normalised pictures.

    W (x - m) / s + b is (W / s) x + b - sum(W m / s). At a border, which is padded with zeros, it
    sees black where it saw the mean colour.

    Args:
        weight: (D, 3, h, w), of the convolution that takes red, green and blue.

    Returns:
        Its weight now, (D, 3, h, w), and what is to be taken off its bias, (D,).
    """
    mean, std = (weight.new_tensor(values)[:, None, None] for values in IMAGENET)
    return weight / std, (weight * mean / std).sum((1, 2, 3))
