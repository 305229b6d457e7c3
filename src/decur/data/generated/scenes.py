"""Generated scenes seen by three sensors, with every factor known.

The default data set and the test bed: what the sensors share (a land-cover map) and what only one
of them sees (clouds, soil moisture, relief) are drawn independently of each other, so that what
an encoder holds can be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from decur.data.base import DATASETS, PairedDataset
from decur.data.generated import structure as structures
from decur.data.sample import Sample, Target
from decur.errors import ConfigError
from decur.modality import Modality

CLASSES = ("water", "forest", "crop", "grass", "bare", "built")
WATER, FOREST, CROP, GRASS, BARE, BUILT = range(6)
SOILS = (CROP, GRASS, BARE)

PRESENT_SHARE = 0.02  # a class that covers less of a scene does not count as present

# Surface reflectance by class (rows) and band (columns).
OPTICAL_BANDS = ("blue", "green", "red", "red edge", "nir", "swir")
NOISE = "noise"
_REFLECTANCE = np.array(
    [
        [0.060, 0.065, 0.045, 0.035, 0.025, 0.015],
        [0.028, 0.048, 0.030, 0.110, 0.290, 0.130],
        [0.090, 0.120, 0.140, 0.190, 0.260, 0.290],  # ripe; green crop is next
        [0.050, 0.085, 0.070, 0.150, 0.270, 0.230],
        [0.110, 0.150, 0.200, 0.240, 0.280, 0.350],
        [0.140, 0.150, 0.160, 0.170, 0.190, 0.210],
    ],
    dtype=np.float32,
)
_GREEN_CROP = np.array([0.035, 0.075, 0.040, 0.160, 0.440, 0.180], dtype=np.float32)
_CLOUD = np.array([0.62, 0.62, 0.63, 0.64, 0.65, 0.45], dtype=np.float32)
# Strength of the texture by class, relative to the reflectance.
_TEXTURE = np.array([0.03, 0.16, 0.06, 0.08, 0.07, 0.25], dtype=np.float32)
# Spread of the tone between fields by class, likewise.
_FIELD_TONE = np.array([0.0, 0.0, 0.08, 0.08, 0.08, 0.0], dtype=np.float32)

# Backscatter by class in dB at the mean moisture, and what it gains over the range of moisture.
SAR_BANDS = ("VV", "VH")
_BACKSCATTER = np.array(
    [[-20.0, -9.0, -12.5, -13.5, -14.0, -4.5], [-28.0, -14.0, -20.5, -21.0, -23.0, -11.0]],
    dtype=np.float32,
)
_MOISTURE_GAIN = np.array(
    [[0.0, 1.0, 7.0, 6.0, 9.0, 0.0], [0.0, 0.5, 4.0, 3.0, 5.0, 0.0]], dtype=np.float32
)
_BIOMASS_GAIN = 4.0  # dB in VH from ripe to green crop
_LOOKS = 4
_NOISE_FLOOR = 10**-3.0  # noise-equivalent backscatter, -30 dB

MOISTURE = (0.05, 0.45)  # volume of water in a volume of soil
RELIEF = (2.0, 40.0)  # standard deviation of the terrain in metres
_BASE = (0.0, 60.0)  # metres above the local datum
_FOREST_HEIGHT = (12.0, 25.0)
_BUILT_HEIGHT = (5.0, 15.0)

# Of 20,000 scenes of 64 px, seed 1.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "optical": (
        (0.1401, 0.1649, 0.1693, 0.2185, 0.3036, 0.2476),
        (0.1706, 0.1629, 0.1713, 0.1585, 0.1538, 0.1196),
    ),
    "sar": ((-13.058, -20.050), (4.637, 4.579)),
    "elevation": ((32.69,), (30.25,)),
}
_BANDS = {"optical": OPTICAL_BANDS, "sar": SAR_BANDS, "elevation": ("height",)}
_AUGMENTATION = {"optical": "optical", "sar": "sar", "elevation": "dem"}
# Of scenes of structure, whose factors have bands of their own; with those of pairs one band each.
_STRUCTURE_BANDS = _BANDS | {"elevation": ("height", "roughness")}
_PAIR_BANDS = {
    "optical": ("blue", "green", "red", "nir"),
    "sar": ("HH", "HV", "VH", "VV"),
    "elevation": ("height", "roughness", "slope", "curvature"),
}
_SEEN_BY = {"cloud": "optical", "moisture": "sar", "relief": "elevation"}


@DATASETS.register("SyntheticScenes")
class SyntheticScenes(PairedDataset):
    """Scenes of land cover as an optical sensor, a radar and an elevation model see them.

    Shared by all sensors: the map of six classes. Optical and radar also share how green each
    field is. Each sensor alone sees: optical, clouds with their shadows and the illumination;
    radar, soil moisture; elevation, how strong the relief is and how high the place lies.

    Values are surface reflectance, backscatter in dB and metres. A scene depends on nothing but
    `seed` and `start + index`, whatever the worker, the order, and the other sensors. Another
    `size` gives scenes of the same make at another resolution.

    Targets: `cover` (multilabel: classes on at least 2 % of the scene), `mask` (class of each
    pixel), `cloud` (scalar: share of the scene in [0, 1], optical only), `moisture` (scalar:
    0.05-0.45, radar only), `relief` (scalar: standard deviation of the terrain in m, 2-40,
    elevation only). Those of a sensor that is left out are left out with it.

    Args:
        samples: Number of scenes.
        size: Height and width in pixels, at least 16.
        seed: Seed of all scenes.
        modalities: Sensors: any of "optical", "sar", "elevation", in order.
        start: Index of the first scene; sets that shall not overlap start at different places.
        noise: Give the optical sensor one more band, "noise", that tells nothing of the scene:
            independent numbers between 0 and 1. What explains an encoder must find it unimportant.
        structure: Draw other scenes, whose factors a network with random weights hardly finds. All
            sensors share which way strips of fields run, `layout`; each alone sees, in bands of
            their own, which way its own strips run: `streets` of clouds, rows of `tillage`, or
            `ridges` (class: level, slanted or upright). These are the only targets. Strips have
            their width in pixels, so that another `size` shows more or less of them. Heights
            have two bands then, "height" and "roughness".
        pair_factors: Add to scenes of `structure` one factor for each two of the three sensors,
            which the third does not see: which way rows of `orchards` (optical and radar), steps of
            `terraces` (optical and elevation) and `ditches` under trees (radar and elevation) run.
            Each sensor has four bands then, in this order: the layout, its two pairs' factors, its
            own. A sensor that is left out changes nothing that the others show: the factor of a
            pair is a target as long as one of the two is there. Of two sensors alone, their pair's
            factor is one that all share, and each sees that of its pair with the absent one alone.

    Raises:
        ConfigError: for unknown modalities, numbers out of range, or `pair_factors` without
            `structure`.
    """

    def __init__(
        self,
        samples: int = 2048,
        size: int = 64,
        *,
        seed: int = 0,
        modalities: Sequence[str] = ("optical", "sar", "elevation"),
        start: int = 0,
        noise: bool = False,
        structure: bool = False,
        pair_factors: bool = False,
    ) -> None:
        unknown = [name for name in modalities if name not in _BANDS]
        if unknown or not modalities or len(set(modalities)) < len(modalities):
            raise ConfigError(
                f"SyntheticScenes: modalities are {list(modalities)}; "
                f"choose from {', '.join(_BANDS)}, each once"
            )
        for name, value, least in (
            ("samples", samples, 1),
            ("size", size, 16),
            ("seed", seed, 0),
            ("start", start, 0),
        ):
            if value < least:
                raise ConfigError(f"SyntheticScenes: {name} must be at least {least}, is {value}")
        if pair_factors and not structure:
            raise ConfigError(
                "SyntheticScenes: pair_factors are of scenes of structure; set structure to true"
            )
        self.size, self.seed, self.start, self.noise = size, seed, start, noise
        self.structure, self.pair_factors = structure, pair_factors
        bands = _PAIR_BANDS if pair_factors else _STRUCTURE_BANDS if structure else _BANDS
        counts = {name: len(own) for name, own in bands.items()}
        statistics = structures.statistics(counts) if structure else _STATISTICS
        self.modalities = {
            name: Modality(
                name=name,
                bands=bands[name],
                mean=statistics[name][0],
                std=statistics[name][1],
                size=(size, size),
                augmentation=_AUGMENTATION[name],
            )
            for name in modalities
        }
        if noise and "optical" in modalities:
            plain = self.modalities["optical"]
            assert plain.mean is not None
            assert plain.std is not None
            self.modalities["optical"] = plain.with_(
                bands=(*plain.bands, NOISE), mean=(*plain.mean, 0.5), std=(*plain.std, 12**-0.5)
            )
        self.ids = [f"{start + index:07d}" for index in range(samples)]
        self.present = {name: np.ones(samples, dtype=bool) for name in modalities}
        if structure:
            self.targets = {
                factor: Target("class", structures.DIRECTIONS, sensors)
                for factor, sensors in structures.seen_by(modalities, pair_factors).items()
            }
            return
        self.targets = {"cover": Target("multilabel", CLASSES), "mask": Target("mask", CLASSES)}
        for name, sensor in _SEEN_BY.items():
            if sensor in modalities:
                self.targets[name] = Target("scalar", modalities=(sensor,))

    def read(self, index: int) -> Sample:
        """Make one scene."""
        if self.structure:
            return self._read_structure(index)
        land = self._land(index)
        images: dict[str, np.ndarray] = {}
        factors: dict[str, float] = {}
        for name in self.modalities:
            rng = self._stream(index, name)
            if name == "optical":
                images[name], clouds = _see_optical(rng, land)
                factors["cloud"] = float(clouds.mean())
                images[name] = self._with_noise(rng, images[name])
            elif name == "sar":
                images[name], factors["moisture"] = _see_sar(rng, land)
            else:
                images[name], factors["relief"] = _see_elevation(rng, land)
        shares = np.bincount(land.cover.ravel(), minlength=len(CLASSES)) / land.cover.size
        return {
            "id": self.ids[index],
            "images": {name: torch.from_numpy(image) for name, image in images.items()},
            "target": {
                "cover": torch.from_numpy((shares >= PRESENT_SHARE).astype(np.float32)),
                "mask": torch.from_numpy(land.cover),
                **{name: torch.tensor(value) for name, value in factors.items()},
            },
        }

    def _read_structure(self, index: int) -> Sample:
        ground = self._ground(index)
        fields = structures.draw_strips(ground, self.size)
        # Those of all pairs are drawn, so that a sensor that is left out changes nothing.
        pairs = structures.PAIRS if self.pair_factors else {}
        of_pairs = {pair: structures.draw_strips(ground, self.size) for pair in pairs}
        directions = {structures.LAYOUT: fields.direction}
        directions |= {pairs[pair]: strips.direction for pair, strips in of_pairs.items()}
        images = {}
        for name, modality in self.modalities.items():
            rng = self._stream(index, name)
            count = sum(band != NOISE for band in modality.bands)
            shared = [fields, *(strips for pair, strips in of_pairs.items() if name in pair)]
            image, directions[structures.OWN[name]] = structures.see(rng, shared, name, count)
            if name == "optical":
                image = self._with_noise(rng, image)
            images[name] = torch.from_numpy(image)
        factors = structures.seen_by(list(self.modalities), self.pair_factors)
        target = {factor: torch.tensor(directions[factor]) for factor in factors}
        return {"id": self.ids[index], "images": images, "target": target}

    def _with_noise(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Return (C, H, W) with the band of noise, where there shall be one."""
        if not self.noise:
            return image
        extra = rng.random((1, self.size, self.size), dtype=np.float32)
        return np.concatenate([image, extra])

    def clouds(self, index: int) -> Tensor:
        """Return where clouds hide the ground from the optical sensor: (H, W) bool.

        Raises:
            ConfigError: for scenes of `structure`, which have none.
        """
        if self.structure:
            raise ConfigError("SyntheticScenes: scenes of structure have no clouds that hide")
        _, clouds = _see_optical(self._stream(index, "optical"), self._land(index))
        return torch.from_numpy(clouds)

    def _land(self, index: int) -> _Land:
        return _draw_land(self._ground(index), self.size)

    def _ground(self, index: int) -> np.random.Generator:
        """Return the random numbers of what all sensors see."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return np.random.default_rng([self.seed, self.start + index])

    def _stream(self, index: int, sensor: str) -> np.random.Generator:
        """Return the random numbers of one sensor, which do not depend on the other sensors."""
        number = 1 + list(_BANDS).index(sensor)
        return np.random.default_rng([self.seed, self.start + index, number])


@dataclass(frozen=True)
class _Land:
    """The ground of a scene, the same for every sensor; arrays are (H, W)."""

    cover: np.ndarray  # int64, index of CLASSES
    green: np.ndarray  # of the field a pixel lies in, 0 ripe to 1 green
    tone: np.ndarray  # of the field a pixel lies in, standard normal
    texture: np.ndarray  # fine structure of canopies, roofs and soils, mean 0, std 1
    hills: np.ndarray  # shape of the terrain, mean 0, std 1; water lies in its lows


def _draw_land(rng: np.random.Generator, size: int) -> _Land:
    hills, woods, town, texture = _fields(rng, size, ((2.0, 1), (1.8, 2), (2.0, 1), (0.4, 4)))
    cover, green, tone = _draw_fields_of_farms(rng, size)
    # Each layer is there or not by the toss of a coin, whatever the others are.
    there = rng.random(3) < 0.5
    shares = rng.uniform((0.1, 0.06, 0.06), (0.45, 0.35, 0.3))
    if there[0]:
        cover[woods > _upper(woods, shares[0])] = FOREST
    if there[1]:
        cover[town > _upper(town, shares[1])] = BUILT
    if there[2]:
        cover[hills < -_upper(-hills, shares[2])] = WATER
    built = cover == BUILT
    if built.any():
        texture = np.where(built, _streets(rng, size), texture)
    return _Land(cover, green, tone, texture, hills)


def _draw_fields_of_farms(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw strips of fields at an angle: class, greenness and tone of each pixel's field."""
    across, along = _rotated(rng, size)
    height, width = rng.uniform(0.10, 0.25), rng.uniform(0.14, 0.4)
    row = np.floor(across / height).astype(np.int64) % 32
    shift = rng.random(32).astype(np.float32)
    column = np.floor(along / width + shift[row]).astype(np.int64) % 32
    kinds = np.flatnonzero(rng.random(3) < 0.6)
    soils = np.array(SOILS)[kinds] if len(kinds) else np.array([rng.choice(SOILS)])
    kind = soils[rng.integers(0, len(soils), (32, 32))]
    green = rng.random((32, 32), dtype=np.float32)
    tone = rng.standard_normal((32, 32), dtype=np.float32)
    return kind[row, column], green[row, column], tone[row, column]


def _streets(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw blocks of houses between streets: about 1.2 on roofs, -1.2 on streets."""
    across, along = _rotated(rng, size)
    block = rng.uniform(0.07, 0.11)
    street = (across / block % 1 < 0.3) | (along / (1.4 * block) % 1 < 0.22)
    roofs = rng.standard_normal((size, size), dtype=np.float32)
    return np.where(street, np.float32(-1.2), 0.9 + 0.7 * roofs).astype(np.float32)


def _see_optical(rng: np.random.Generator, land: _Land) -> tuple[np.ndarray, np.ndarray]:
    """Return reflectance (6, H, W), and where clouds are, (H, W) bool."""
    size = len(land.cover)
    image = np.take(_REFLECTANCE.T, land.cover, axis=1)  # (6, H, W)
    green = np.where(land.cover == CROP, land.green, np.float32(0))
    image += green * (_GREEN_CROP - _REFLECTANCE[CROP])[:, None, None]
    image *= 1 + _TEXTURE[land.cover] * land.texture + _FIELD_TONE[land.cover] * land.tone
    illumination = rng.uniform(0.8, 1.2)
    share = rng.uniform(0.02, 0.5) if rng.random() < 0.5 else 0.0
    clouds = np.zeros((size, size), dtype=bool)
    if share:
        (field,) = _fields(rng, size, ((2.4, 1),))
        field -= _upper(field, share)  # positive in the cloud
        cloud = np.clip(0.5 + 1.5 * field, 0, 1)
        drift = rng.integers(size // 12, size // 6, 2)
        shadow = np.roll(cloud, tuple(drift), (0, 1))  # the field is periodic
        image *= 1 - 0.55 * shadow
        white = cloud * (0.9 + 0.1 * np.clip(field, -1, 2))
        image += (_CLOUD[:, None, None] - image) * white
        clouds = field > 0
    image *= illumination
    image += 0.014 * (rng.random(image.shape, dtype=np.float32) - 0.5)  # quantisation, std 0.004
    return np.maximum(image, 0.001, dtype=np.float32), clouds


def _see_sar(rng: np.random.Generator, land: _Land) -> tuple[np.ndarray, float]:
    """Return backscatter in dB (2, H, W), and the soil moisture."""
    moisture = rng.uniform(*MOISTURE)
    level = (moisture - np.mean(MOISTURE)) / (MOISTURE[1] - MOISTURE[0])  # -0.5 to 0.5
    table = _BACKSCATTER + np.float32(level) * _MOISTURE_GAIN
    decibel = np.take(table, land.cover, axis=1)  # (2, H, W)
    crop = land.cover == CROP
    decibel[1] += crop * (_BIOMASS_GAIN * (land.green - 0.5))
    # Roofs and streets: corners send everything back, smooth roads nothing.
    decibel += np.where(land.cover == BUILT, 2.5, 0.7).astype(np.float32) * land.texture
    power = np.exp(decibel * np.float32(np.log(10) / 10))
    speckle = rng.standard_gamma(_LOOKS, power.shape, dtype=np.float32) / _LOOKS
    return 10 * np.log10(power * speckle + np.float32(_NOISE_FLOOR)), moisture


def _see_elevation(rng: np.random.Generator, land: _Land) -> tuple[np.ndarray, float]:
    """Return the height of the surface in metres (1, H, W), and the relief."""
    relief = rng.uniform(*RELIEF)
    height = rng.uniform(*_BASE) + relief * land.hills  # (H, W)
    water = land.cover == WATER
    if water.any():
        height[water] = height[water].mean()
    tree, house = rng.uniform(*_FOREST_HEIGHT), rng.uniform(*_BUILT_HEIGHT)
    height += (land.cover == FOREST) * (tree * (1 + 0.15 * land.texture))
    height += (land.cover == BUILT) * (house * np.clip(land.texture, 0, 2))
    height += 0.3 * rng.standard_normal(height.shape, dtype=np.float32)
    return height[None].astype(np.float32), relief


def _fields(
    rng: np.random.Generator, size: int, kinds: tuple[tuple[float, int], ...]
) -> np.ndarray:
    """Draw smooth periodic random fields with power-law spectra, each of mean 0 and std 1.

    Args:
        rng: source of randomness.
        size: height and width.
        kinds: for each field the exponent of the amplitude's fall with frequency, and the lowest
            frequency in waves a scene.

    Returns:
        (len(kinds), H, W) float32.
    """
    filters = _filters(size, kinds)  # (F, H, W // 2 + 1)
    noise = rng.standard_normal((*filters.shape, 2), dtype=np.float32)
    spectra = noise.view(np.complex64)[..., 0] * filters
    fields = np.fft.irfft2(spectra, s=(size, size), axes=(-2, -1)).astype(np.float32)
    scaled: np.ndarray = fields / fields.std(
        axis=(1, 2), keepdims=True
    )  # the mean is 0: no zero frequency
    return scaled


@cache
def _filters(size: int, kinds: tuple[tuple[float, int], ...]) -> np.ndarray:
    fy, fx = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    frequency = np.hypot(fy[:, None], fx)
    frequency[0, 0] = 1
    filters = np.stack(
        [np.where(frequency < lowest, 0, frequency**-exponent) for exponent, lowest in kinds]
    )
    filters[:, 0, 0] = 0
    return filters.astype(np.float32)


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the pixels in [-0.5, 0.5], (H, 1) and (1, W)."""
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    return axis[:, None], axis[None]


def _rotated(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates at a random angle and offset, two (H, W) of unit scale."""
    y, x = _grid(size)
    angle, dy, dx = rng.uniform(0, (np.pi, 1, 1))
    sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return cos * y - sin * x + np.float32(dy), sin * y + cos * x + np.float32(dx)


def _upper(field: np.ndarray, share: float) -> float:
    """Return the value that a share of the field lies above."""
    flat = field.ravel()
    rank = int((1 - share) * (flat.size - 1))
    return float(np.partition(flat, rank)[rank])
