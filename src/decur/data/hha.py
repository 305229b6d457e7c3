"""HHA: depth as horizontal disparity, height above the ground and angle with gravity.

Gupta, Girshick, Arbelaez and Malik, "Learning Rich Features from RGB-D Images for Object Detection
and Segmentation" (ECCV 2014), section 2; gravity after Gupta, Arbelaez and Malik (CVPR 2013).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from decur.errors import DataError

# From the authors' rcnn-depth code (saveHHA, processDepthImage); lengths in cm.
_DISPARITY = 31000.0
_NEAREST = 100.0
_ANGLE_OFFSET = 128.0 - 90.0  # an upright wall is 128
_NORMAL_RADIUS = 3
_GRAVITY_RADIUS = 10
_GRAVITY_STEPS = (45.0,) * 5 + (15.0,) * 5  # degrees
_FLOOR_SEEN = -90.0  # a lowest point above it is not the floor ...
_FLOOR = -130.0  # ... which then is taken to lie here, seen from the camera

PLAUSIBLE = (0.2, 20.0)  # m: medians of pictures from rooms, taken by the sensors there are


def measured(depth: Tensor) -> Tensor:
    """Return where there is a depth: False for 0, negative, NaN and infinite values."""
    return (depth > 0) & depth.isfinite()


def hha(depth: Tensor, intrinsics: Tensor | Sequence[float]) -> Tensor:
    """Encode depth as HHA.

    Channel 0 is 31000 / depth in cm, of a depth of at least 1 m; channel 1 the height in cm above
    the lowest point of the picture (if that is less than 90 cm below the camera, above a floor
    130 cm below it); channel 2 the angle of the surface's normal with gravity in degrees plus 38:
    38 for a floor or table, 128 for a wall, 218 for a ceiling. All are rounded and capped at 255.

    Where there is no depth all three are 0 (see `measured`); the angle alone is 0 where the pixels
    with a depth in the 7x7 window lie on one line, which makes no plane.

    Computed in float32 on the tensor's device.

    Args:
        depth: (H, W) or (B, H, W) in m; 0 or NaN is missing.
        intrinsics: fx, fy, cx, cy in pixels, (4,) or (B, 4); the centre of the first pixel is
            (0, 0). Subtract 1 from a cx, cy counted from 1, as those of NYU-Depth v2 are.

    Returns:
        uint8, (3, H, W) or (B, 3, H, W).

    Raises:
        DataError: for a wrong shape or type, impossible intrinsics, or a picture without any depth.

    Examples:
        >>> floor = 600 / torch.arange(1.0, 481).view(-1, 1).expand(480, 640)
        >>> hha(floor, (500.0, 500.0, 320.0, 0.0))[2].unique()
        tensor([38], dtype=torch.uint8)
    """
    pictures, camera = _checked(depth, intrinsics)
    valid = measured(pictures)
    _check_depth(pictures, valid)
    inverse = torch.where(valid, pictures, math.inf).reciprocal()  # (B, H, W), 1/m, 0 if missing
    normals, _ = _normals(inverse, valid, camera, _NORMAL_RADIUS)
    down = _gravity(*_normals(inverse, valid, camera, _GRAVITY_RADIUS))  # (B, 3)

    fx, fy, cx, cy = camera.view(-1, 4, 1, 1).unbind(1)  # each (B, 1, 1)
    rows, columns = _grid(pictures)
    gx, gy, gz = down.view(-1, 3, 1, 1).unbind(1)
    depth_cm = torch.where(valid, pictures, 0).mul_(100)
    height = -((columns - cx) * (gx / fx) + (rows - cy) * (gy / fy) + gz) * depth_cm
    lowest = torch.where(valid, height, math.inf).amin((1, 2), keepdim=True)
    height -= torch.where(lowest > _FLOOR_SEEN, _FLOOR, lowest)

    cosine = (normals * down.view(-1, 3, 1, 1)).sum(1)
    angle = cosine.clamp_(-1, 1).acos_().rad2deg_().add_(_ANGLE_OFFSET)
    angle = torch.where((normals != 0).any(1), angle, 0)
    disparity = _DISPARITY / depth_cm.clamp_(min=_NEAREST)
    coded = torch.stack([disparity, height, angle], 1).round_().clamp_(0, 255)
    coded = (coded * valid[:, None]).to(torch.uint8)
    return coded if depth.ndim == 3 else coded[0]


def _checked(depth: Tensor, intrinsics: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return depth as (B, H, W) and intrinsics as (B or 1, 4), both float32 on one device."""
    if depth.ndim not in (2, 3) or 0 in depth.shape:
        raise DataError(f"depth must be (H, W) or (B, H, W), not {tuple(depth.shape)}")
    if not depth.is_floating_point():
        raise DataError(f"depth must be a float tensor in metres, not {depth.dtype}: convert it")
    pictures = (depth if depth.ndim == 3 else depth[None]).float()
    camera = torch.as_tensor(intrinsics, dtype=torch.float32, device=depth.device)
    if camera.shape not in ((4,), (1, 4), (len(pictures), 4)):
        raise DataError(
            f"intrinsics must be (fx, fy, cx, cy), shared or for each of {len(pictures)} "
            f"pictures, not of shape {tuple(camera.shape)}"
        )
    camera = camera.view(-1, 4)
    if not (camera.isfinite().all() and (camera[:, :2] > 0).all()):
        raise DataError(f"intrinsics must be finite with fx, fy > 0, not {camera.tolist()}")
    return pictures, camera


def _check_depth(pictures: Tensor, valid: Tensor) -> None:
    """Refuse pictures without any depth; warn of depths that look like another unit."""
    empty = (~valid.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"no pixel with a depth in picture {empty[0]} of the batch; leave it out")
    low, high = PLAUSIBLE
    sparse = torch.where(valid, pictures, math.nan)[:, ::4, ::4]
    for index, median in enumerate(sparse.flatten(1).nanmedian(1).values.tolist()):
        if median < low or median > high:
            warnings.warn(
                f"the median depth of picture {index} is {median:.3g} m, outside {low:g} to "
                f"{high:g} m: is it in metres?",
                stacklevel=3,
            )


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of each pixel, (H, 1) and (W,)."""
    rows = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
    return rows[:, None], torch.arange(x.shape[2], dtype=x.dtype, device=x.device)


def _moments(x: Tensor, dim: int, radius: int, orders: int) -> list[Tensor]:
    """Return sums of k^p x[i + k] over |k| <= radius along a dimension, for each p < orders.

    Offsets from the window's centre instead of integral images: these would need float64.
    """
    padded = F.pad(x, (radius, radius) if dim == 2 else (0, 0, radius, radius))
    sums = [x.clone()] + [torch.zeros_like(x) for _ in range(1, orders)]
    for k in range(1, radius + 1):
        before = padded.narrow(dim, radius - k, x.shape[dim])
        after = padded.narrow(dim, radius + k, x.shape[dim])
        both = before + after
        sums[0] += both
        if orders > 1:
            sums[1].add_(after - before, alpha=k)
        if orders > 2:
            sums[2].add_(both, alpha=k * k)
    return sums


def _normals(inverse: Tensor, valid: Tensor, camera: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Return unit normals of planes fitted to square windows; they point away from the camera.

    On a plane n.P = 1 the inverse depth is n.(u, v, 1), linear in the pixel's position: the least
    squares fit of 1/z over a window, around its centre, gives n.

    Returns:
        (B, 3, H, W), 0 where there is none; and (B, H, W), where there is one.
    """
    m0, m1, m2 = _moments(valid.to(inverse.dtype), 2, radius, 3)
    t0, t1 = _moments(inverse, 2, radius, 2)
    n, sv, svv = _moments(m0, 1, radius, 3)  # sums of 1, dv and dv^2
    su, suv = _moments(m1, 1, radius, 2)
    (suu,) = _moments(m2, 1, radius, 1)
    d, dv = _moments(t0, 1, radius, 2)
    (du,) = _moments(t1, 1, radius, 1)

    count = n.clamp(min=1)
    mu, mv = su / count, sv / count
    cuu, cuv, cvv = suu - su * mu, suv - su * mv, svv - sv * mv
    determinant = cuu * cvv - cuv * cuv
    # Relative: for pixels on one line float32 leaves about 1e-6, one pixel beside it makes 1e-3.
    has_plane = (n > 2) & (determinant > 1e-4 * cuu * cvv)
    scale = torch.where(has_plane, determinant, 1).reciprocal()
    tu, tv = du - d * mu, dv - d * mv
    slope_u = (tu * cvv - tv * cuv) * scale
    slope_v = (tv * cuu - tu * cuv) * scale
    centre = d / count - slope_u * mu - slope_v * mv

    fx, fy, cx, cy = camera.view(-1, 4, 1, 1).unbind(1)
    rows, columns = _grid(inverse)
    ahead = centre - slope_u * (columns - cx) - slope_v * (rows - cy)
    normals = torch.stack([slope_u * fx, slope_v * fy, ahead], 1)
    length = (normals * normals).sum(1).sqrt_()
    has_plane &= length > 0
    outwards = torch.where(centre < 0, -1.0, 1.0)  # n.P = z * centre
    factor = torch.where(has_plane, outwards / length, 0)
    return torch.where(has_plane[:, None], normals, 0) * factor[:, None], has_plane


def _gravity(normals: Tensor, has_plane: Tensor) -> Tensor:
    """Return gravity as unit vectors (B, 3), y down: normal to floors, parallel to walls."""
    flat, known = normals.flatten(2), has_plane.flatten(1)  # (B, 3, P), (B, P)
    start = flat.new_tensor([0.0, 1.0, 0.0])
    down = start.expand(len(flat), 3)
    for degrees in _GRAVITY_STEPS:
        near = (down[:, None] @ flat)[:, 0].abs()  # (B, P), |cos| with gravity
        floor = near > math.cos(math.radians(degrees))
        wall = (near < math.sin(math.radians(degrees))) & known
        weight = wall.to(flat.dtype) - floor.to(flat.dtype)
        scatter = (flat * weight[:, None]) @ flat.mT  # (B, 3, 3), walls less floors
        best = torch.linalg.eigh(scatter.double()).eigenvectors[:, :, 0].to(flat.dtype)
        best = torch.where((best @ start < 0)[:, None], -best, best)
        down = torch.where((floor | wall).any(1, keepdim=True), best, down)
    return down
