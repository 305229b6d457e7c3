"""Pairs of pictures that share a shape and nothing else: Bimodal Trifeature, generated.

After Hermann & Lampinen 2020 ("What shapes feature representations?"), in pairs as Dufumier et al.
2025 (CoMM) use them to tell apart what two pictures share, what one alone holds, and what only both
together tell. The renderer is our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset
from decur.data.sample import Sample, Target
from decur.errors import ConfigError
from decur.modality import Modality

Split = Literal["train", "test"]
Array = NDArray[np.floating[Any]]
Outline = NDArray[np.complexfloating[Any, Any]]

LEVELS = 10  # levels of each factor
RENDERS: dict[Split, int] = {"train": 3, "test": 1}  # drawings of each combination
DIAMETER = 128 / 224  # diameter of the circle around a shape, as a share of the picture's side
TURN = 45.0  # degrees to either side
_DARK = 0.3  # share of a colour that is left where its texture is dark
_OVERSAMPLING = 4  # oversampling of the outline, so that its edge is smooth
_TAU = np.float32(2 * np.pi)


@DATASETS.register("BimodalTrifeature")
class BimodalTrifeature(PairedDataset):
    """Two pictures, "a" and "b", of the same shape, each in a texture and a colour of its own.

    Ten shapes x ten textures x ten colours. 800 of the 1,000 combinations are for training, each
    drawn three times; 200 are held out and drawn once (`renders` draws more), so that the test
    shows shapes, textures and colours in combinations that were never seen. Held out are those
    with (shape + texture + colour) mod 10 >= 8: every pair of levels of two factors is held out
    equally often, so in either split the factors of a picture are independent pairwise. A drawing
    has its own rotation (45 degrees to either side), place, and phase of the texture, on black.

    A pair is two drawings of the split with the same shape, drawn with replacement; so b's texture
    and colour are independent of a's. A drawing occurs in many pairs. Everything is a function of
    `seed` and the index, whatever the worker, the order and the number of samples.

    Targets: `shape` (both see it: what peers call R), `texture_a` and `texture_b` (U, each seen by
    its picture alone), `synergy` (S: whether (a's texture + b's colour) mod 10 is below 5; either
    picture alone leaves it at 50 %, and so does any sum of what both say).

    Args:
        samples: Number of pairs; peers use 10,000 at most for training.
        size: Height and width in pixels, at least 32; from 64 on all textures can be told apart.
        split: Split: "train" or "test".
        seed: Seed of drawings and pairs; the split is the same for every seed.
        renders: Number of drawings of each combination; None: 3 for training and 1 for the test, as
            peers have. More of them show a small network in a short training what a shape is.

    Raises:
        ConfigError: for an unknown split, or numbers out of range.

    Examples:
        >>> pair = BimodalTrifeature(samples=8)[0]
        >>> pair["images"]["a"].shape, sorted(pair["target"])
        (torch.Size([3, 64, 64]), ['shape', 'synergy', 'texture_a', 'texture_b'])
    """

    def __init__(
        self,
        samples: int = 10_000,
        size: int = 64,
        *,
        split: Split = "train",
        seed: int = 0,
        renders: int | None = None,
    ) -> None:
        if split not in get_args(Split):
            raise ConfigError(
                f"BimodalTrifeature: split is {split!r}; choose from {', '.join(get_args(Split))}"
            )
        self.renders = RENDERS[split] if renders is None else renders
        for name, value, least in (
            ("samples", samples, 1),
            ("size", size, 32),
            ("seed", seed, 0),
            ("renders", self.renders, 1),
        ):
            if value < least:
                raise ConfigError(f"BimodalTrifeature: {name} must be at least {least}, is {value}")
        self.size, self.split, self.seed = size, split, seed
        self.combinations = combinations(split)
        # Row k of a drawing is render k % renders of combination k // renders; shapes come first.
        by_shape = len(self.combinations) * self.renders // LEVELS
        rng = np.random.default_rng([seed, _stream(split)])
        drawn = rng.integers(0, (LEVELS, by_shape, by_shape), (samples, 3))
        self.pairs = drawn[:, :1] * by_shape + drawn[:, 1:]  # (samples, 2): drawings of a and b
        self.modalities = {
            name: Modality(name=name, bands=("R", "G", "B"), scaling="range", size=(size, size))
            for name in ("a", "b")
        }
        self.ids = [f"{split}-{index:06d}" for index in range(samples)]
        self.present = {name: np.ones(samples, dtype=bool) for name in self.modalities}
        self.targets = {
            "shape": Target("class", tuple(SHAPES)),
            "texture_a": Target("class", tuple(TEXTURES), ("a",)),
            "texture_b": Target("class", tuple(TEXTURES), ("b",)),
            "synergy": Target("class", ("unrelated", "related")),
        }

    def factors(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shape, texture and colour, as indices, of a's and of b's picture."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        first, second = self.combinations[self.pairs[index] // self.renders]
        return first, second

    def read(self, index: int) -> Sample:
        """Draw one pair."""
        factors = self.factors(index)
        images = {
            name: self._picture(number)
            for name, number in zip("ab", self.pairs[index], strict=True)
        }
        (shape, texture_a, _), (_, texture_b, colour_b) = factors
        return {
            "id": self.ids[index],
            "images": images,
            "target": {
                "shape": torch.tensor(shape),
                "texture_a": torch.tensor(texture_a),
                "texture_b": torch.tensor(texture_b),
                "synergy": torch.tensor(int(related(texture_a, colour_b))),
            },
        }

    def _picture(self, number: int) -> Tensor:
        """Return one drawing, (3, size, size), the same in every pair that it occurs in."""
        factors = self.combinations[number // self.renders]
        rng = np.random.default_rng([self.seed, _stream(self.split), number])
        turn, down, right, p, q = rng.uniform((-TURN, 0, 0, 0, 0), (TURN, 1, 1, 1, 1))
        drawn = draw_picture(factors, self.size, turn=turn, place=(down, right), phase=(p, q))
        return torch.from_numpy(drawn)


def combinations(split: Split) -> NDArray[np.int64]:
    """Return the combinations of a split: (800 or 200, 3) indices of shape, texture, colour."""
    every = np.indices((LEVELS,) * 3).reshape(3, -1).T  # (1000, 3), the shape changes slowest
    held_out = every.sum(axis=1) % LEVELS >= 8
    chosen: NDArray[np.int64] = every[held_out if split == "test" else ~held_out]
    return chosen


def related(texture: int, colour: int) -> bool:
    """Return the synergy of a's texture and b's colour: true for half of each row and column."""
    return (texture + colour) % LEVELS < LEVELS // 2


def draw_picture(
    factors: Sequence[int] | NDArray[np.int64],
    size: int = 64,
    *,
    turn: float = 0.0,
    place: tuple[float, float] = (0.5, 0.5),
    phase: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.uint8]:
    """Draw one picture.

    Args:
        factors: of shape, texture and colour, as indices into `SHAPES`, `TEXTURES` and `COLOURS`;
            the texture turns with the shape.
        size: height and width in pixels.
        turn: rotation in degrees, counterclockwise.
        place: of the shape, down and right, each from 0 (at the edge) to 1 (at the other edge).
        phase: of the texture, each in [0, 1).

    Returns:
        (3, size, size).
    """
    shape, texture, colour = factors
    radius = DIAMETER * size / 2
    down, right = (radius + share * (size - 2 * radius) for share in place)  # the centre
    side = int(2 * radius) + 2  # of a box of whole pixels around the circle
    top, left = (min(int(middle - radius), size - side) for middle in (down, right))
    centre = complex(right - left, down - top)
    scale = radius * np.exp(-1j * np.radians(turn))  # y points down, so clockwise is positive

    outline = list(SHAPES.values())[shape] * scale + centre
    corners = (outline * _OVERSAMPLING).view(np.float64)  # x, y, x, y, ...
    mask = Image.new("L", (side * _OVERSAMPLING,) * 2)
    ImageDraw.Draw(mask).polygon(corners.tolist(), fill=255)
    inside = np.asarray(mask.reduce(_OVERSAMPLING), dtype=np.float32) / 255  # (side, side)

    y, x = np.ogrid[0.5:side, 0.5:side]
    own = ((x + 1j * y - centre) / scale).astype(np.complex64)  # (side, side), the shape's axes
    light = list(TEXTURES.values())[texture](own.real, own.imag, *phase)  # (side, side) in [0, 1]
    value = inside * (_DARK + (1 - _DARK) * light)
    picture = np.zeros((3, size, size), dtype=np.uint8)
    tint = np.array(list(COLOURS.values())[colour], dtype=np.float32)[:, None, None]
    picture[:, top : top + side, left : left + side] = np.rint(tint * value)
    return picture


def _stream(split: Split) -> int:
    return get_args(Split).index(split)


# -- shapes: closed outlines in the circle of radius 1, as complex numbers, y pointing down --------


def _arc(start: float, end: float, radius: float = 1.0, centre: complex = 0) -> Outline:
    """Return points on a circle between two angles in degrees, clockwise from the right."""
    return centre + radius * np.exp(1j * np.radians(np.linspace(start, end, 61)))


def _corners(*angles: float, radius: float = 1.0) -> Outline:
    outline: Outline = radius * np.exp(1j * np.radians(np.array(angles)))
    return outline


def _star() -> Outline:
    tips, notches = _corners(*range(-90, 270, 72)), _corners(*range(-54, 306, 72), radius=0.42)
    return np.stack((tips, notches), axis=1).ravel()


def _cross() -> Outline:
    arm = np.array([-0.28 - 0.28j, -0.28 - 0.96j, 0.28 - 0.96j])
    return np.concatenate([arm * 1j**quarter for quarter in range(4)])


def _hourglass() -> Outline:
    half = np.array([-0.14, -0.75 - 0.66j, 0.75 - 0.66j])
    return np.concatenate((half, -half))


SHAPES: dict[str, Outline] = {
    "disc": _arc(0, 360),
    "ring": np.concatenate((_arc(0, 360), _arc(360, 0, 0.5))),
    "half disc": _arc(180, 360) + 0.4j,
    "crescent": np.concatenate((_arc(60, 300), _arc(263, 97, 0.872, 0.6))),
    "triangle": _corners(-90, 30, 150),
    "square": _corners(45, 135, 225, 315),
    "bar": _corners(20, 160, 200, 340),
    "cross": _cross(),
    "star": _star(),
    "hourglass": _hourglass(),
}


# -- textures: lightness in [0, 1] at places (u, v) of the shape's own axes, at a phase (p, q) -----


def _edge(wave: Array) -> Array:
    """Return 1 where the wave is positive and 0 where it is negative, with a soft edge."""
    light: Array = np.clip(0.5 + 1.5 * wave, 0, 1)
    return light


def _wave(x: Array, period: float, phase: float) -> Array:
    wave: Array = np.cos(_TAU * (x / np.float32(period) + np.float32(phase)))
    return wave


def _blots(u: Array, v: Array, p: float, q: float, width: float) -> Array:
    """Return random blots; the phase is the place in a field that repeats after eight radii."""
    field = _noise(width)
    steps = len(field) // 8  # in a radius
    rows = ((v + np.float32(8 * q)) * steps).astype(np.int64) % len(field)
    columns = ((u + np.float32(8 * p)) * steps).astype(np.int64) % len(field)
    return _edge(field[rows, columns])


@cache
def _noise(width: float) -> Array:
    """Return noise blurred by a Gaussian of this sigma in radii: (512, 512), periodic, std 0.5."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))  # in waves a pixel
    blur = np.exp(-2 * (np.pi * 64 * width * frequency) ** 2)
    blur[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((512, 512))) * blur)
    noise: Array = (0.5 * field / field.std()).astype(np.float32)
    return noise


def _turns(u: Array, v: Array) -> Array:
    return np.arctan2(v, u) / _TAU


TEXTURES: dict[str, Callable[[Array, Array, float, float], Array]] = {
    "plain": lambda u, v, p, q: np.full_like(u, 0.5),
    "stripes": lambda u, v, p, q: _edge(_wave(v, 0.42, p)),
    "waves": lambda u, v, p, q: _edge(_wave(v + 0.15 * _wave(u, 0.6, q), 0.45, p)),
    "checks": lambda u, v, p, q: _edge(2 * _wave(u, 0.66, p) * _wave(v, 0.66, q)),
    "dots": lambda u, v, p, q: _edge(_wave(u, 0.5, p) + _wave(v, 0.5, q) - 0.7),
    "grid": lambda u, v, p, q: _edge(np.maximum(_wave(u, 0.55, p), _wave(v, 0.55, q)) - 0.6),
    "rings": lambda u, v, p, q: _edge(_wave(np.hypot(u, v), 0.42, p)),
    "spokes": lambda u, v, p, q: _edge(_wave(_turns(u, v), 1 / 6, p)),
    "grain": lambda u, v, p, q: _blots(u, v, p, q, 0.035),
    "blots": lambda u, v, p, q: _blots(u, v, p, q, 0.11),
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 45),
    "orange": (255, 140, 20),
    "yellow": (240, 230, 40),
    "green": (50, 190, 50),
    "mint": (70, 235, 160),
    "azure": (60, 185, 245),
    "blue": (50, 70, 240),
    "purple": (150, 50, 220),
    "pink": (250, 110, 200),
    "white": (240, 240, 240),
}
