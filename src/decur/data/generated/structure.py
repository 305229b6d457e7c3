"""Scenes whose factors lie in structure alone: which way fields, clouds, rows and ridges run.

Turning a direction changes neither mean nor variance and only turns the spectrum, and it is weaker
than the grain: a network with random weights hardly finds it, a trained one does. Flips of a view
leave each direction what it is; quarter turns would not. What a sensor alone sees has bands of its
own, so that both factors can be alike: strips of the same widths, as faint as each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

DIRECTIONS = ("level", "slanted", "upright")  # slanted: 45 degrees to either side
LAYOUT = "layout"
OWN = {"optical": "streets", "sar": "tillage", "elevation": "ridges"}

# Mean and standard deviation of every band: reflectance, dB, metres.
STATISTICS = {"optical": (0.25, 0.05), "sar": (-12.0, 2.0), "elevation": (100.0, 5.0)}

_JITTER = 4.0  # degrees that a direction varies by
_WIDTHS = (4.0, 6.0)  # width of a strip, in pixels
_STRIPS = 0.4  # standard deviation of the strips, where that of the grain is 1


@dataclass(frozen=True)
class Strips:
    """Parallel strips of one width across a scene.

    Args:
        direction: index of `DIRECTIONS`.
        numbers: (H, W) int64, number of the strip that a pixel lies in.
    """

    direction: int
    numbers: NDArray[np.int64]


def draw_strips(rng: np.random.Generator, size: int) -> Strips:
    """Draw the strips of a scene of `size` pixels: their direction, width and place."""
    direction = int(rng.integers(len(DIRECTIONS)))
    degrees = 90 - 45 * direction + rng.uniform(-_JITTER, _JITTER)  # level: they follow downwards
    angle = float(np.radians(degrees) * rng.choice((-1, 1)))
    width, offset = rng.uniform(*_WIDTHS), rng.random()
    axis = np.arange(size)
    across = axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)  # (H, W) in pixels
    numbers = np.floor(across / width + offset).astype(np.int64)
    return Strips(direction, numbers - numbers.min())


def see(rng: np.random.Generator, fields: Strips, sensor: str, count: int) -> tuple[Picture, int]:
    """Return what a sensor sees of a scene, and the direction of its own strips.

    The first half of the bands shows the fields, the second half strips that no other sensor sees.
    The bands of a half show the same.

    Args:
        rng: random numbers of this sensor.
        fields: of the scene, the same for every sensor.
        sensor: a key of `STATISTICS`.
        count: number of bands, at least two.

    Returns:
        (count, H, W) in the sensor's units, and an index of `DIRECTIONS`.
    """
    own = draw_strips(rng, len(fields.numbers))
    mean, std = STATISTICS[sensor]
    halves = [mean + std * _faint(rng, strips) for strips in (fields, own)]
    image = np.repeat(np.stack(halves), [-(-count // 2), count // 2], axis=0)
    return image.astype(np.float32), own.direction


def statistics(bands: Mapping[str, int]) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return means and standard deviations of each sensor's bands, by how many it has."""
    return {
        sensor: ((STATISTICS[sensor][0],) * count, (STATISTICS[sensor][1],) * count)
        for sensor, count in bands.items()
    }


def _faint(rng: np.random.Generator, strips: Strips) -> NDArray[np.float64]:
    """Return strips, each of a brightness of its own, under grain: (H, W) of variance 1, mean 0.

    The strips have their mean and variance exactly, whatever their direction.
    """
    brightness = rng.standard_normal(strips.numbers.max() + 1)[strips.numbers]
    strip = (brightness - brightness.mean()) / brightness.std()
    grain = rng.standard_normal(strips.numbers.shape)
    faint: NDArray[np.float64] = (_STRIPS * strip + grain) / (1 + _STRIPS**2) ** 0.5
    return faint
