"""HHA against its arithmetic in float64, one least-squares problem per pixel, and known angles."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from decur.data.hha import hha, measured
from decur.errors import DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
SMALL = (60.0, 62.0, 31.0, 23.0)  # fx, fy, cx, cy of a 48 x 64 picture


def slow_normals(z, camera, radius):
    """Solve for n in n.(u, v, 1) = 1/z by `lstsq`, window by window; NaN where undetermined."""
    fx, fy, cx, cy = camera
    height, width = z.shape
    normals = np.full((height, width, 3), np.nan)
    for i in range(height):
        for j in range(width):
            rows, columns = np.mgrid[
                max(i - radius, 0) : min(i + radius + 1, height),
                max(j - radius, 0) : min(j + radius + 1, width),
            ]
            window = z[rows, columns]
            ok = window > 0
            if ok.sum() < 3:
                continue
            rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones_like(window)], -1)[ok]
            n, _, rank, _ = np.linalg.lstsq(rays, 1 / window[ok], rcond=None)
            if rank < 3:
                continue
            n /= np.linalg.norm(n)
            outwards = n @ [(j - cx) / fx, (i - cy) / fy, 1]
            normals[i, j] = -n if outwards < 0 else n
    return normals


def slow_hha(depth, camera):
    """The authors' saveHHA and processDepthImage; (3, H, W) float64 before rounding."""
    z = np.nan_to_num(depth.double().numpy()) * 100
    fx, fy, cx, cy = camera
    wide = slow_normals(z, camera, 10).reshape(-1, 3)
    wide = wide[~np.isnan(wide[:, 0])]
    down = np.array([0.0, 1.0, 0.0])
    for degrees in [45] * 5 + [15] * 5:
        angle = np.degrees(np.arccos(np.clip(np.abs(wide @ down), 0, 1)))
        floor, wall = wide[angle < degrees], wide[angle > 90 - degrees]
        down = np.linalg.eigh(wall.T @ wall - floor.T @ floor)[1][:, 0]
        down *= np.sign(down[1])
    rows, columns = np.indices(z.shape)
    points = np.stack([(columns - cx) / fx * z, (rows - cy) / fy * z, z], -1)
    height = -points @ down
    lowest = height[z > 0].min()
    height -= -130 if lowest > -90 else lowest
    cosine = np.clip(slow_normals(z, camera, 3) @ down, -1, 1)
    angle = np.degrees(np.arccos(cosine)) + 128 - 90
    return np.stack([31000 / np.maximum(z, 100), height, angle])


def room(pitch=0.0, floor=1.4, wall=3.5, table=0.7, ceiling=1.2, size=(48, 64), camera=SMALL):
    """A floor, a wall ahead, a table's top and a ceiling, seen by a camera that looks down.

    Returns depth (H, W) in m and which surface each pixel shows: 0 floor, 1 wall, 2 table,
    3 ceiling. Exact ray casting in float64.
    """
    fx, fy, cx, cy = camera
    rows, columns = np.indices(size)
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(size)], -1)
    c, s = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    x, y, z = np.moveaxis(rays @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]).T, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.stack([floor / y, wall / z, table / y, -ceiling / y])
        hits[~(hits > 0)] = np.inf
        off = (np.abs(x * hits[2]) > 0.5) | (z * hits[2] > 2.6) | (z * hits[2] < 1.2)
        hits[2][off] = np.inf
    return torch.from_numpy(hits.min(0)), torch.from_numpy(hits.argmin(0))


def assert_agrees(depth, camera):
    ours, valid = hha(depth.float(), camera).double(), measured(depth)
    slow = torch.from_numpy(slow_hha(depth, camera))
    known = valid & ~slow[2].isnan()
    assert known.sum() > 0.95 * valid.sum()
    gap = (ours - slow.round().clamp(0, 255)).abs()
    assert (gap[2][known] <= 1).double().mean() >= 0.99
    assert gap[0][valid].max() <= 1
    assert gap[1][valid].max() <= 1
    assert (ours[:, ~valid] == 0).all()


def interior(surface, label):
    """Pixels whose whole 7x7 window shows one surface."""
    same = (surface == label).double()[None]
    return torch.nn.functional.avg_pool2d(same, 7, 1, 3, count_include_pad=False)[0] > 0.999


@pytest.mark.parametrize(("pitch", "shown"), [(0.0, 4), (12.0, 3), (25.0, 3)])
def test_known_angles_and_heights(pitch, shown):
    camera = (240.0, 240.0, 160.0, 120.0)
    depth, surface = room(pitch, size=(240, 320), camera=camera)
    disparity, height, angle = hha(depth.float(), camera).double()
    seen = 0
    for label, expected in enumerate((38, 128, 38, 218)):
        inside = interior(surface, label)
        if inside.any():
            seen += 1
            assert (angle[inside] - expected).abs().max() <= 1
    assert seen == shown
    assert height[surface == 0].max() <= 2
    assert (height[surface == 2] - 70).abs().max() <= 2
    assert (disparity - (310 / depth.clamp(min=1)).round().clamp(max=255)).abs().max() <= 1


@pytest.mark.parametrize("pitch", [0.0, 18.0])
def test_agrees_with_the_slow_arithmetic(pitch):
    depth, _ = room(pitch)
    noise = torch.randn(depth.shape, generator=torch.Generator().manual_seed(0)).double()
    depth = depth + 0.002 * depth**2 * noise
    depth[10:25, 20:45] = 0
    depth[30, :] = math.nan
    depth[12:14, 30:32] = 2.0  # a small island in the hole
    assert_agrees(depth, SMALL)


def test_agrees_on_a_tilted_plane():
    rows, columns = np.indices((40, 50))
    normal = np.array([0.2, 0.9, 0.4]) / 1.3
    rays = np.stack([(columns - 25) / 60, (rows + 5) / 60, np.ones((40, 50))], -1)
    assert_agrees(torch.from_numpy(1.0 / (rays @ normal)), (60.0, 60.0, 25.0, -5.0))


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
@pytest.mark.parametrize("frame", ["000000", "000500"])
def test_agrees_on_a_real_frame(frame):
    raw = np.array(Image.open(REAL / "seven_scenes" / "depth" / f"{frame}.png")).astype(np.float64)
    raw[raw == 65535] = 0
    step = 8
    small = torch.from_numpy(raw[::step, ::step] / 1000)
    assert_agrees(small, (585 / step, 585 / step, 320 / step, 240 / step))


def test_missing_depth_is_no_surface():
    depth, _ = room(12.0)
    depth[:, :32] = 0
    depth[5:8, 40] = math.nan
    depth[20, 50] = math.inf
    depth[21, 50] = -1
    out = hha(depth.float(), SMALL)
    valid = measured(depth)
    assert (~valid).sum() == 48 * 32 + 3 + 2
    assert (out[:, ~valid] == 0).all()
    assert (out[0][valid] > 0).all()
    assert (out[2][valid] >= 38).all()


@pytest.mark.parametrize(
    ("step", "count"),
    [
        *[((0, 1), 14), ((1, 0), 14), ((1, 1), 14), ((1, -1), 14)],  # windows of 4 to 7 pixels
        *[((1, 2), 7), ((2, 1), 7), ((3, -1), 5), ((0, 3), 5)],  # with gaps: of 2 and 3
        *[((0, 1), 2), ((0, 1), 1)],
    ],
)
def test_pixels_on_a_line_have_no_angle(step, count):
    """Beside a room, whose surfaces keep theirs; one pixel off the line makes it a plane."""
    depth = room(size=(48, 96))[0].float()
    depth[:, 33:] = 0  # no window of 21 x 21, which tell gravity, shows both the room and the line
    alone = hha(depth, SMALL)[2]
    start = 24 - step[0] * (count // 2), 75 - step[1] * (count // 2)
    line = [(start[0] + step[0] * k, start[1] + step[1] * k) for k in range(count)]
    for k, (row, column) in enumerate(line):
        depth[row, column] = 1.5 + 0.05 * k  # between the room's floor and its wall
    rows, columns = torch.tensor(line).T
    angle = hha(depth, SMALL)[2]
    assert (angle[rows, columns] == 0).all()
    assert (hha(depth, SMALL)[0][rows, columns] > 0).all()
    assert torch.equal(angle[:, :33], alone[:, :33]) and (alone[:, :33] >= 38).all()

    middle = line[count // 2]
    aside = (middle[0] + 1, middle[1]) if step[0] == 0 else (middle[0], middle[1] + 1)
    depth[aside] = 1.6
    angle = hha(depth, SMALL)[2]
    near = torch.tensor(  # a window of 7 x 7 that has three pixels not in a line
        [
            max(abs(row - aside[0]), abs(column - aside[1])) <= 3
            and sum(max(abs(row - r), abs(column - c)) <= 3 for r, c in line) >= 2
            for row, column in line
        ]
    )
    assert torch.equal(angle[rows, columns] > 0, near)
    assert near.any() == (count > 1)


def test_ground_is_130_cm_below_where_none_is_seen():
    wall = torch.full((40, 40), 3.0)
    height = hha(wall, (200.0, 200.0, 20.0, 20.0))[1]
    assert height[20, 20] == 130
    assert height[0, 20] == 160  # 20 pixels up of 200 at 3 m
    assert height[39, 20] == round(130 - 19 / 200 * 300)


def test_batch_equals_pictures():
    first, second = room(0.0)[0].float(), room(20.0)[0].float()
    second[:10] = 0
    cameras = torch.tensor([SMALL, (70.0, 70.0, 30.0, 20.0)])
    both = hha(torch.stack([first, second]), cameras)
    assert both.shape == (2, 3, 48, 64)
    assert both.dtype == torch.uint8
    for picture, camera, out in zip((first, second), cameras, both, strict=True):
        alone = hha(picture, camera).int()
        assert (alone - out.int()).abs().max() <= 1  # sums in another order


@pytest.mark.parametrize(
    ("depth", "camera", "message"),
    [
        (torch.ones(1, 1, 8, 8), SMALL, r"\(H, W\) or \(B, H, W\), not \(1, 1, 8, 8\)"),
        (torch.ones(0, 8), SMALL, "not \\(0, 8\\)"),
        (torch.ones(8, 8, dtype=torch.int32), SMALL, "float tensor in metres, not torch.int32"),
        (torch.ones(8, 8), (1.0, 1.0, 1.0), r"fx, fy, cx, cy.*\(3,\)"),
        (torch.ones(3, 8, 8), torch.ones(2, 4), r"each of 3 pictures, not of shape \(2, 4\)"),
        (torch.ones(8, 8), (0.0, 1.0, 4.0, 4.0), "fx, fy > 0"),
        (torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]), SMALL, "no pixel.*picture 1"),
        (torch.full((8, 8), math.nan), SMALL, "no pixel.*picture 0"),
    ],
)
def test_bad_input_is_one_clear_line(depth, camera, message):
    with pytest.raises(DataError, match=message) as error:
        hha(depth, camera)
    assert "\n" not in str(error.value)


def test_wrong_unit_warns():
    depth = room()[0].float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hha(depth, SMALL)
    with pytest.warns(UserWarning, match="is it in metres"):
        hha(depth * 1000, SMALL)
    with pytest.warns(UserWarning, match="is it in metres"):
        hha(depth / 1000, SMALL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_equals_cpu():
    depth = torch.stack([room(p)[0].float() for p in (0.0, 10.0, 20.0)])
    depth[:, 10:20, 10:20] = 0
    gap = hha(depth.cuda(), SMALL).cpu().int() - hha(depth, SMALL).int()
    assert (gap.abs() <= 1).double().mean() >= 0.999
