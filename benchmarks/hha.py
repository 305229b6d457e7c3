"""HHA against its plain arithmetic: box sums by SciPy in float64, on one thread.

    python benchmarks/hha.py                  # 480 x 640, on the CPU
    python benchmarks/hha.py --device cuda --batch 16

Prints the time a picture of both (the best of alternating repeats) and how far they differ.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from decur.data.hha import hha

CAMERA = (585.0, 585.0, 320.0, 240.0)


def scene(height: int = 480, width: int = 640) -> Tensor:
    """A floor and a wall with a sensor's noise and holes, seen from 1.4 m, (H, W) in m."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(height)[:, None] - CAMERA[3]) / CAMERA[1] + 0.2
    depth = torch.where(y > 0.4, 1.4 / y, torch.tensor(3.5)).expand(height, width)
    depth = depth + 0.002 * depth**2 * torch.randn(height, width, generator=generator)
    return depth * (torch.rand(height, width, generator=generator) > 0.05)


def normals(z: np.ndarray, radius: int) -> np.ndarray:
    """Normal equations of n.(u, v, 1) = 1/z with nine box sums, (H, W, 3)."""
    fx, fy, cx, cy = CAMERA
    rows, columns = np.indices(z.shape)
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones_like(z)], -1)
    rays *= (z > 0)[..., None]

    def box(x: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(x, 2 * radius + 1, mode="constant"))

    inverse = 1 / np.where(z > 0, z, np.inf)
    gram = np.stack([[box(rays[..., i] * rays[..., j]) for i in range(3)] for j in range(3)])
    right = np.stack([box(rays[..., i] * inverse) for i in range(3)], -1)
    n = np.linalg.solve(np.moveaxis(gram, (0, 1), (-2, -1)) + 1e-12 * np.eye(3), right[..., None])
    n = n[..., 0] / np.linalg.norm(n[..., 0], axis=-1, keepdims=True)
    return np.asarray(n * np.where((n * rays).sum(-1, keepdims=True) < 0, -1, 1))


def plain(depth: np.ndarray) -> np.ndarray:
    """The authors' arithmetic in float64, (3, H, W) uint8."""
    z = depth.astype(np.float64) * 100
    fx, fy, cx, cy = CAMERA
    wide = normals(z, 10).reshape(-1, 3)
    down = np.array([0.0, 1.0, 0.0])
    for degrees in [45] * 5 + [15] * 5:
        near = np.abs(wide @ down)
        floor, wall = (
            wide[near > np.cos(np.radians(degrees))],
            wide[near < np.sin(np.radians(degrees))],
        )
        down = np.linalg.eigh(wall.T @ wall - floor.T @ floor)[1][:, 0]
        down = down * np.sign(down[1])
    rows, columns = np.indices(z.shape)
    height = -np.stack([(columns - cx) / fx * z, (rows - cy) / fy * z, z], -1) @ down
    lowest = height[z > 0].min()
    height = height - (-130 if lowest > -90 else lowest)
    angle = np.degrees(np.arccos(np.clip(normals(z, 3) @ down, -1, 1))) + 38
    coded = np.stack([31000 / np.maximum(z, 100), height, angle]) * (z > 0)
    return coded.round().clip(0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    depth = scene()
    batch = depth.expand(args.batch, -1, -1).to(args.device)
    hha(batch, CAMERA)  # what is done once, on the first call
    fast, slow = [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        ours = hha(batch, CAMERA)[0].cpu()  # .cpu() waits for the device
        fast.append((time.perf_counter() - start) / args.batch)
        start = time.perf_counter()
        theirs = torch.from_numpy(plain(depth.numpy()))
        slow.append(time.perf_counter() - start)
    print(
        f"decur {min(fast):.4f} s, plain {min(slow):.3f} s a picture: {min(slow) / min(fast):.0f}x"
    )
    gap = (ours.int() - theirs.int()).abs()
    for name, channel in zip(("disparity", "height", "angle"), gap, strict=True):
        within = (channel <= 1).double().mean().item()
        print(f"{name}: within 1 on {within:.2%} of the pixels, at most {channel.max().item()} off")


if __name__ == "__main__":
    main()
