"""The augmentations as pure functions on batches, of parameters that are drawn elsewhere.

Each works on (B, C, H, W) float32 of any number of bands, on the device of the pictures, and takes
its parameters from the CPU. Which samples an operation concerns is therefore known without asking
the device, and nothing here waits for it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from decur.devices import send

_BLOCK = 64  # rows of the blur that are multiplied at once; fastest on CPUs, harmless on GPUs


def crop_resize(images: Tensor, box: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop, resize and flip, each sample its own way, as one bilinear resampling.

    Equals cropping, then resizing with bilinear interpolation without antialiasing, then flipping.
    Where a crop is at least twice as large as the result it would alias; the picture is first
    averaged over the whole number of pixels that fits, for each axis by itself.

    Args:
        images: (B, C, H, W) float32.
        box: (B, 4) float64 on the CPU, top, left, height and width as fractions of the picture.
        flip: (B, 2) bool on the CPU, vertically and horizontally.
        size: height and width of the result.

    Returns:
        (B, C, *size) float32.
    """
    extent = torch.tensor(images.shape[-2:])  # (2,)
    pixels = (box.view(-1, 2, 2) * extent).transpose(1, 2)  # (B, axis, start and length)
    shrink = (pixels[..., 1] / torch.tensor(size)).floor().clamp_min(1)  # (B, 2)
    groups = shrink.unique(dim=0)  # a handful at most: one unless the pictures are large
    if len(groups) == 1 and groups.max() == 1:
        return _sample(images, _positions(pixels, flip, size), size)
    result = images.new_empty(*images.shape[:2], *size)
    for group in groups:
        members = (shrink == group).all(1).nonzero().flatten()
        rows = send(members, images.device)
        kernel = (int(group[0]), int(group[1]))
        pooled = F.avg_pool2d(images.index_select(0, rows), kernel, ceil_mode=True)
        where = [
            (position + 0.5) / factor - 0.5
            for position, factor in zip(
                _positions(pixels[members], flip[members], size), kernel, strict=True
            )
        ]
        result.index_copy_(0, rows, _sample(pooled, where, size))
    return result


def _positions(pixels: Tensor, flip: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Return where the rows and the columns of the results lie in the pictures.

    Args:
        pixels: (B, 2, 2) float64, start and length of the crop along each axis.
        flip: (B, 2) bool.
        size: height and width of the result.

    Returns:
        (B, height) and (B, width) float64, in pixels, 0 being the centre of the first.
    """
    result = []
    for axis, length in enumerate(size):
        start, extent = pixels[:, axis].unbind(1)  # (B,)
        # of a type of its own: Lightning sets another default in a training of half precision
        centres = (torch.arange(length, dtype=torch.float32) + 0.5) / length  # (length,), in (0, 1)
        at = start[:, None] + extent[:, None] * centres - 0.5  # (B, length)
        last = torch.maximum(start, start + extent - 1)[:, None]
        at = at.clamp(start[:, None], last)  # a crop's edge is an edge: nothing from outside
        result.append(torch.where(flip[:, axis, None], at.flip(1), at))
    return result


def _sample(images: Tensor, positions: list[Tensor], size: tuple[int, int]) -> Tensor:
    extent = images.shape[-2:]
    rows, columns = (
        send(((2 * at + 1) / n - 1).float(), images.device)  # pixels -> [-1, 1] from edge to edge
        for at, n in zip(positions, extent, strict=True)
    )
    grid = images.new_empty(len(images), *size, 2)  # (B, h, w, 2), x before y
    grid[..., 0] = columns[:, None, :]
    grid[..., 1] = rows[:, :, None]
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def jitter_(
    images: Tensor, brightness: Tensor, contrast: Tensor, *, per_band: bool = True
) -> Tensor:
    """Change brightness and contrast in place, as one affine step a sample; no clamping.

    Brightness multiplies; contrast moves each band away from, or towards, its own mean over the
    pixels, as the authors' code does.

    Args:
        images: (B, C, H, W) float32, changed in place.
        brightness: (B,) factors on the CPU, 1 for none.
        contrast: (B,) factors on the CPU, 1 for none.
        per_band: False: towards the mean over all pixels and bands, as version 0.1 did.

    Returns:
        `images`.
    """
    factors = torch.stack((brightness * contrast, brightness * (1 - contrast)))
    gain, pull = send(factors.float(), images.device)[..., None, None, None]  # (B, 1, 1, 1) each
    offset = pull * images.mean((2, 3) if per_band else (1, 2, 3), keepdim=True)
    return torch.addcmul(offset, images, gain, out=images)


def gray_(images: Tensor, chosen: Tensor) -> Tensor:
    """Replace every band of the chosen samples by the mean over bands, in place.

    Args:
        images: (B, C, H, W) float32, changed in place.
        chosen: (B,) bool on the CPU.

    Returns:
        `images`.
    """
    if images.shape[1] == 1 or not chosen.any():
        return images
    rows = send(chosen.nonzero().flatten(), images.device)
    mean = images.index_select(0, rows).mean(1, keepdim=True)  # (n, 1, H, W)
    return images.index_copy_(0, rows, mean.expand(-1, images.shape[1], -1, -1))


def blur_(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur in place by a Gaussian, reflected at the edges, the samples whose sigma is not 0.

    A blur along one axis is a product with a banded matrix: the weighted sum of those that shift by
    one pixel, two pixels and so on. It is multiplied block by block, skipping the zeros far from
    the diagonal. On two CPU cores this takes half the time of a depthwise convolution.

    Args:
        images: (B, C, H, W) float32, changed in place.
        sigma: (B,) in pixels, on the CPU; 0 for none.
        largest: the kernel reaches three of these sigmas. Not the largest of the batch, which
            would make a sample's view depend on the others.

    Returns:
        `images`.
    """
    chosen = sigma.nonzero().flatten()
    if len(chosen) == 0:
        return images
    rows = send(chosen, images.device)
    part = images.index_select(0, rows)  # (n, C, H, W)
    n, bands, height, width = part.shape
    widths = sigma[chosen]
    down, reach_down = _blur_matrix(widths, height, largest, images.device)  # (n, H, H)
    across, reach_across = _blur_matrix(widths, width, largest, images.device)  # (n, W, W)

    flat = part.view(n, bands * height, width)
    blurred = torch.empty_like(flat)
    across = across.transpose(1, 2).contiguous()
    for start, end, low, high in _blocks(width, reach_across):
        torch.bmm(flat[..., low:high], across[:, low:high, start:end], out=blurred[..., start:end])
    blurred = blurred.view_as(part)
    for start, end, low, high in _blocks(height, reach_down):
        block = down[:, None, start:end, low:high]  # (n, 1, block, block + 2 reach)
        part[:, :, start:end] = block @ blurred[:, :, low:high]
    return images.index_copy_(0, rows, part)


def _blocks(length: int, reach: int) -> list[tuple[int, int, int, int]]:
    """Start and end of each block of results, and of the pixels that these depend on."""
    return [
        (start, min(length, start + _BLOCK), max(0, start - reach), start + _BLOCK + reach)
        for start in range(0, length, _BLOCK)
    ]


def _blur_matrix(
    sigma: Tensor, length: int, largest: float, device: torch.device
) -> tuple[Tensor, int]:
    """Return the blur along an axis as (n, length, length) matrices, and the kernel's reach."""
    reach = min(math.ceil(3 * largest), length - 1)
    distance = torch.arange(-reach, reach + 1)
    weights = torch.softmax(-(distance**2) / (2 * sigma[:, None] ** 2), 1)  # (n, taps), sum 1
    shifts = _shifts(length, reach, device)
    matrix = send(weights.float(), device) @ shifts.flatten(1)
    return matrix.view(-1, length, length), reach


@lru_cache(maxsize=8)
def _shifts(length: int, reach: int, device: torch.device) -> Tensor:
    """Return matrices that shift by -reach to reach, reflecting: (2 reach + 1, length, length)."""
    pixels = torch.arange(length, device=device)
    source = pixels + torch.arange(-reach, reach + 1, device=device)[:, None]  # (taps, length)
    source = source.abs()
    source = torch.where(source >= length, 2 * (length - 1) - source, source)
    return (source[..., None] == pixels).float()


def solarize_(images: Tensor, chosen: Tensor, threshold: float) -> Tensor:
    """Replace values above the threshold by 1 - value, in place, in the chosen samples.

    Args:
        images: (B, C, H, W) float32, changed in place.
        chosen: (B,) bool on the CPU.
        threshold: in [0, 1].

    Returns:
        `images`.
    """
    if not chosen.any():
        return images
    rows = send(chosen.nonzero().flatten(), images.device)
    part = images.index_select(0, rows)
    return images.index_copy_(0, rows, torch.where(part > threshold, 1 - part, part))


def drop_bands_(images: Tensor, dropped: Tensor) -> Tensor:
    """Set the dropped bands of each sample to 0, in place.

    Args:
        images: (B, C, H, W) float32, contiguous, changed in place.
        dropped: (B, C) bool on the CPU.

    Returns:
        `images`.
    """
    if dropped.any():
        planes = send(dropped.flatten().nonzero().flatten(), images.device)
        images.view(-1, *images.shape[-2:]).index_fill_(0, planes, 0)
    return images
