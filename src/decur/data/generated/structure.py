"""Scenes whose factors lie in structure alone: which way fields, clouds, rows and ridges run.

Turning a direction changes neither mean nor variance and only turns the spectrum, and it is weaker
than the grain: a network with random weights hardly finds it, a trained one does. Flips of a view
leave each direction what it is; quarter turns would not. Each factor has bands of its own, so that
all can be alike: strips of the same widths, as faint as each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decur.errors import ConfigError

Picture = NDArray[np.float32]

DIRECTIONS = ("level", "slanted", "upright")  # slanted: 45 degrees to either side
LAYOUT = "layout"
PAIRS = {
    ("optical", "sar"): "orchards",
    ("optical", "elevation"): "terraces",
    ("sar", "elevation"): "ditches",
}
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


def seen_by(sensors: Sequence[str], pair_factors: bool) -> dict[str, tuple[str, ...]]:
    """Return which of some sensors see each factor; none are named where all of several share it.

    Args:
        sensors: those that are there, keys of `OWN`.
        pair_factors: whether there are factors of each two.
    """
    found: dict[str, tuple[str, ...]] = {LAYOUT: ()}
    for pair, factor in PAIRS.items() if pair_factors else ():
        if there := tuple(name for name in sensors if name in pair):
            found[factor] = () if len(there) == len(sensors) > 1 else there
    return found | {OWN[name]: (name,) for name in sensors}


def see(
    rng: np.random.Generator, shared: Sequence[Strips], sensor: str, count: int
) -> tuple[Picture, int]:
    """Return what a sensor sees of a scene, and the direction of its own strips.

    Its bands show the shared strips in their order, and last strips that no other sensor sees; each
    has as many bands as the next one, or one more. The bands of one factor show the same.

    Args:
        rng: random numbers of this sensor.
        shared: of the scene, the same for every sensor that sees them; one or more.
        sensor: a key of `STATISTICS`.
        count: number of bands.

    Returns:
        (count, H, W) in the sensor's units, and an index of `DIRECTIONS`.

    Raises:
        ConfigError: for fewer bands than factors.
    """
    factors = len(shared) + 1
    if count < factors:
        raise ConfigError(
            f"{sensor} sees {factors} factors in bands of their own and has {count} bands; give it "
            f"{factors} or more"
        )
    own = draw_strips(rng, len(shared[0].numbers))
    mean, std = STATISTICS[sensor]
    seen = [mean + std * _faint(rng, strips) for strips in (*shared, own)]
    image = np.repeat(np.stack(seen), bands_of(factors, count), axis=0)
    return image.astype(np.float32), own.direction


def bands_of(factors: int, count: int) -> list[int]:
    """Return how many of a sensor's bands show each factor, in the order of its bands."""
    return [(count + factors - 1 - number) // factors for number in range(factors)]


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
