"""Scenes whose factors lie in structure alone: which way fields, clouds, rows and ridges run.

Turning a direction changes neither mean nor variance and only turns the spectrum, and it is weaker
than the grain: a network with random weights hardly finds it, a trained one does. Flips of a view
leave each direction what it is; quarter turns would not.
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
_PERIOD = 4.0  # period of a sensor's own waves, in pixels
_BANDWIDTH = 1 / 64  # their bandwidth in waves a pixel: they keep step over some ten pixels
_FIELDS = (4.0, 6.0)  # width of a strip of fields, in pixels
# Standard deviations, where that of the grain is 1.
_WAVES = 0.14
_STRIPS = 0.3
_WHOLE = (1 + _WAVES**2 + _STRIPS**2) ** 0.5


@dataclass(frozen=True)
class Fields:
    """The strips of fields of a scene, the same for every sensor.

    Args:
        direction: index of `DIRECTIONS`.
        strips: (H, W) int64, number of the strip that a pixel lies in.
    """

    direction: int
    strips: NDArray[np.int64]


def draw_fields(rng: np.random.Generator, size: int) -> Fields:
    """Draw parallel strips of one width across a scene of `size` pixels."""
    direction, angle = _draw_direction(rng)
    width, offset = rng.uniform(*_FIELDS), rng.random()
    axis = np.arange(size)
    across = axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)  # (H, W) in pixels
    strips = np.floor(across / width + offset).astype(np.int64)
    return Fields(direction, strips - strips.min())


def see(rng: np.random.Generator, fields: Fields) -> tuple[Picture, int]:
    """Return what a sensor sees of a scene, and the direction of its own waves.

    The sensor gives each strip a brightness of its own, and adds waves and grain. Strips and waves
    have mean 0 and their standard deviation exactly, whatever their direction.

    Args:
        rng: random numbers of this sensor.
        fields: of the scene.

    Returns:
        (H, W) of mean 0 and standard deviation 1, and an index of `DIRECTIONS`.
    """
    direction, angle = _draw_direction(rng)
    brightness = rng.standard_normal(fields.strips.max() + 1)
    strips = _scaled(brightness[fields.strips])
    grain = rng.standard_normal(fields.strips.shape)
    seen = _STRIPS * strips + _WAVES * _waves(rng, len(grain), angle) + grain
    return (seen / _WHOLE).astype(np.float32), direction


def bands(seen: Picture, sensor: str, count: int) -> Picture:
    """Return (count, H, W) in the sensor's units; all bands show the same.

    Args:
        seen: (H, W) of mean 0 and standard deviation 1.
        sensor: a key of `STATISTICS`.
        count: number of bands.
    """
    mean, std = STATISTICS[sensor]
    one = (mean + std * seen).astype(np.float32)
    return np.repeat(one[None], count, axis=0)


def statistics(bands: Mapping[str, int]) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return means and standard deviations of each sensor's bands, by how many it has."""
    return {
        sensor: ((STATISTICS[sensor][0],) * count, (STATISTICS[sensor][1],) * count)
        for sensor, count in bands.items()
    }


def _draw_direction(rng: np.random.Generator) -> tuple[int, float]:
    """Return an index of `DIRECTIONS`, and the angle in radians at which its waves go on."""
    direction = int(rng.integers(len(DIRECTIONS)))
    degrees = 90 - 45 * direction + rng.uniform(-_JITTER, _JITTER)  # level waves go downwards
    return direction, float(np.radians(degrees) * rng.choice((-1, 1)))


def _waves(rng: np.random.Generator, size: int, angle: float) -> NDArray[np.float64]:
    """Draw waves that go on at an angle: noise of a narrow band, mean 0 and std 1."""
    down, right = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]  # waves a pixel
    apart = [
        (down - sign * np.sin(angle) / _PERIOD) ** 2 + (right - sign * np.cos(angle) / _PERIOD) ** 2
        for sign in (1, -1)
    ]
    passed = sum(np.exp(-distance / (2 * _BANDWIDTH**2)) for distance in apart)
    noise = np.fft.rfft2(rng.standard_normal((size, size)))
    return _scaled(np.fft.irfft2(noise * passed, s=(size, size)))


def _scaled(field: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = field - field.mean()
    scaled: NDArray[np.float64] = centred / centred.std()
    return scaled
