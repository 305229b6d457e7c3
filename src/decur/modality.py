"""What a sensor is: the one structure that data, encoders and files on disk agree on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as dataclass_field
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from decur.bounded_yaml import read_yaml
from decur.errors import ConfigError, plain_name
from decur.scaling import (  # people's scripts take two of them from here
    NO_MEASUREMENT,  # noqa: F401
    convert,
    percentiles,  # noqa: F401
    scale,
)

if TYPE_CHECKING:  # torch takes seconds to import, and `decur --help` needs a Modality's name only
    from torch import Tensor

Scaling = Literal["standard", "range", "image", "zscore"]
UNNAMED = re.compile(r"(BAND[_ ]?)?\d+")  # a band that only its number tells from others


@dataclass(frozen=True, repr=False)
class Modality:
    """One sensor: its bands in order, their statistics, and how raw values become [0, 1].

    Everything that must travel with weights to use them rightly. Saved in every checkpoint and
    exported encoder.

    Args:
        name: short name, also the folder's and the dictionary key's ("s1", "rgb").
        bands: names of the bands in the order of the channels.
        mean: of each band, in raw units; needed by `scaling="standard"` and "zscore".
        std: standard deviation of each band, in raw units.
        scaling: how raw values become [0, 1]. "standard": clip((x - mean + 2 std) / (4 std)), the
            8-bit compression of the DeCUR paper (appendix B.1) without its rounding; "range":
            linear from `value_range`; "image": from the minimum to the maximum of each image and
            band, after the cut (what the authors do for elevation tiles); "zscore": (x - mean) /
            std as it is, not in [0, 1]: what weights of others want, and not for pretraining.
        value_range: raw values that become 0 and 1 under `scaling="range"`.
        cut: percentage of the pixels of each image and band that count as outliers, half at either
            end; they are clipped to the rest before scaling (2 for SAR, appendix B.1).
        nodata: raw value that means "no measurement", or several of them; NaN always does. Such
            pixels become 0.5, the mean under "zscore".
        size: height and width in pixels; images of another size are resized to it. None: taken
            from the data.
        augmentation: name of the augmentation recipe that is feasible for this sensor (see
            `decur.views`): "optical", "sar", "dem" or "hha".
        factor: what the numbers of files are multiplied by to give raw units, as 10000 where files
            hold reflectance from 0 to 1 and the statistics digital numbers. In YAML and
            dictionaries its name is `scale`, which in Python is the method.
        offset: what is added to the product, as -1000 for Sentinel-2 since baseline 04.00.
        to_db: whether the result is power, of which raw units are the decibels.
        picks: the bands of files that are taken, by description or number from 1, one for each of
            `bands`. None: `bands` names or numbers them, or the file has just these. In YAML a
            mapping says both: `bands: {red: B04, green: 3}`.
        variable: name of the array in files of several (.npz, .mat, .h5, .zarr).
        guessed: whether mean and std were taken from some of the data, since nobody gave any. Such
            data takes the scaling of an encoder that it is fed to. It is not saved.

    Mean, std, value_range and whatever encoders see are in raw units; only `nodata` is in the
    numbers of files. Numbers may be texts: YAML reads 1e4 as one, and 1.0e+4 as a number.

    Raises:
        ConfigError: if a field is of another type, or the fields contradict each other.
    """

    name: str
    bands: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scaling: Scaling = "standard"
    value_range: tuple[float, float] = (0.0, 255.0)
    cut: float = 0.0
    nodata: float | tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    augmentation: str = "optical"
    factor: float | None = None
    offset: float | None = None
    to_db: bool = False
    picks: tuple[str | int, ...] | None = None
    variable: str | None = None
    guessed: bool = dataclass_field(default=False, compare=False)

    def __post_init__(self) -> None:
        where = f"modality {self.name!r}"
        if not isinstance(self.name, str):
            raise ConfigError(f"{where}: a name is a text; write it in quotes")
        plain_name(self.name, where)
        if not isinstance(self.augmentation, str):
            raise ConfigError(f"{where}: augmentation is a name, not {self.augmentation!r}")
        plain: dict[str, Any] = {
            "bands": _names(f"{where}: bands", self.bands),
            "value_range": _numbers(f"{where}: value_range", self.value_range),
            "cut": _number(f"{where}: cut", self.cut),
            "nodata": _nodata(f"{where}: nodata", self.nodata),
            "size": _size(f"{where}: size", self.size),
        }
        for field in ("mean", "std"):
            if (value := getattr(self, field)) is not None:
                plain[field] = _numbers(f"{where}: {field}", value)
        for field, key in (("factor", "scale"), ("offset", "offset")):
            if (value := getattr(self, field)) is not None:
                plain[field] = _number(f"{where}: {key}", value)
        if self.picks is not None:
            plain["picks"] = _picks(f"{where}: bands", self.picks)
        for field, value in plain.items():
            object.__setattr__(self, field, value)
        if not self.bands:
            raise ConfigError(f"{where}: needs at least one band")
        if self.picks is not None and len(self.picks) != len(self.bands):
            raise ConfigError(f"{where}: picks {len(self.picks)} bands for {len(self.bands)} names")
        if self.factor == 0:
            raise ConfigError(f"{where}: scale is 0, which leaves nothing; leave it out")
        if not isinstance(self.to_db, bool):
            raise ConfigError(f"{where}: to_db is true or false, not {self.to_db!r}")
        if not isinstance(self.variable, str | None):
            raise ConfigError(f"{where}: variable is a name, not {self.variable!r}")
        if self.scaling not in get_args(Scaling):
            raise ConfigError(
                f"{where}: scaling is {self.scaling!r}; choose from {', '.join(get_args(Scaling))}"
            )
        measured = self.scaling in ("standard", "zscore")
        if measured and (self.mean is None or self.std is None):
            raise ConfigError(
                f"{where}: scaling {self.scaling!r} needs mean and std of each band; "
                "`decur stats ROOT` computes them"
            )
        for field in ("mean", "std"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.bands):
                raise ConfigError(
                    f"{where}: {len(value)} values in {field} for {len(self.bands)} bands"
                )
        if self.std is not None and min(self.std) <= 0 and measured:
            flat = self.bands[self.std.index(min(self.std))]
            raise ConfigError(
                f"{where}: band {flat!r} with std 0 carries nothing; drop it or set its std"
            )
        if len(self.value_range) != 2 or self.value_range[0] >= self.value_range[1]:
            raise ConfigError(
                f"{where}: value_range is two numbers and must rise, is {list(self.value_range)}"
            )
        if not 0 <= self.cut < 100:
            raise ConfigError(f"{where}: cut is a percentage in [0, 100), is {self.cut}")

    def __repr__(self) -> str:
        bands = ", ".join(self.bands[:6]) + (", ..." if len(self.bands) > 6 else "")
        size = "any size" if self.size is None else f"{self.size[0]} x {self.size[1]} px"
        count = f"{len(self.bands)} band{'s' * (len(self.bands) > 1)}"
        return f"<{self.name}: {count} ({bands}), {size}, scaling {self.scaling}>"

    @property
    def channels(self) -> int:
        """Number of bands."""
        return len(self.bands)

    @property
    def converts(self) -> bool:
        """Whether the numbers of files differ from raw units."""
        return self.factor is not None or self.offset is not None or self.to_db

    def convert(self, images: Tensor) -> Tensor:
        """Bring the numbers of files into raw units.

        Args:
            images: (..., C, H, W), as files hold them.

        Returns:
            (..., C, H, W): the images themselves where nothing is to be done, else float32, NaN
            where there is no measurement (under `to_db` also where there is no power).
        """
        return convert(images, self) if self.converts else images

    def scale(self, images: Tensor) -> Tensor:
        """Bring raw values into [0, 1] (DeCUR paper, appendix B.1).

        Args:
            images: (..., C, H, W) of any real dtype, in raw units.

        Returns:
            (..., C, H, W) float32 in [0, 1], 0.5 where there is no measurement; under "zscore" of
            any size, and 0 there.

        Raises:
            DataError: if the number of channels is not that of `bands`.
        """
        return scale(images, self)

    def scaled_as(self, other: Modality) -> Modality:
        """Return a copy that takes the scaling of another modality, if its own is a guess."""
        if not self.guessed:
            return self
        taken = ("scaling", "mean", "std", "value_range", "cut")
        return replace(self, **{name: getattr(other, name) for name in taken})

    def with_(self, **changes: Any) -> Modality:
        """Return a copy with some fields changed."""
        return replace(self, **_as_fields(changes))

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for YAML and JSON: no tuples, no unset fields."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        plain["scale"] = plain.pop("factor")
        del plain["guessed"]
        plain["to_db"] = plain["to_db"] or None
        return {k: v for k, v in plain.items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Modality:
        """Invert `to_dict`; `preset: NAME` starts from a preset, other keys change it.

        Raises:
            ConfigError: for unknown keys or presets, or wrong values.
        """
        known = {field.name for field in fields(cls)} - {"factor", "guessed"} | {"scale"}
        unknown = sorted(set(values) - known - {"preset"}, key=str)
        if unknown:
            raise ConfigError(
                f"modality {values.get('name', '?')!r}: unknown key {unknown[0]!r}; "
                f"known are preset, {', '.join(sorted(known))}"
            )
        values = _as_fields(values)
        preset = values.pop("preset", None)
        if preset is not None:
            if not isinstance(preset, str):
                where = f"modality {values.get('name', '?')!r}"
                raise ConfigError(f"{where}: preset is a name, not {preset!r}")
            return _changed_preset(cls.preset(preset), values)
        missing = sorted({"name", "bands"} - set(values))
        if missing:
            raise ConfigError(f"modality {values.get('name', '?')!r}: {missing[0]!r} is missing")
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> Modality:
        """Return a well-known sensor by name; see `PRESETS`.

        Raises:
            ConfigError: if there is no such preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"no modality preset {name!r}; choose from {', '.join(PRESETS)}")
        return PRESETS[name]

    def differences(self, other: Modality) -> list[str]:
        """Say what keeps data of `other` from being fed to an encoder of this modality.

        Names and sizes may differ; bands, their order, and the scaling may not, but for statistics
        that were guessed.
        """
        scaling = ("scaling", "mean", "std", "value_range", "cut", "nodata")
        checked = ("bands", *(() if other.guessed else scaling))
        irrelevant = {
            "standard": ("value_range",),
            "zscore": ("value_range",),
            "range": ("mean", "std"),
            "image": ("mean", "std", "value_range"),
        }[self.scaling]
        return [
            f"{field}: {getattr(self, field)} != {getattr(other, field)}"
            for field in checked
            if field not in irrelevant and getattr(self, field) != getattr(other, field)
        ]


@lru_cache(maxsize=4096)  # each reading of a file looks its bands up
def plain_band(band: str) -> str:
    """Return the name of a band in one spelling: B04 and b8a as B4 and B8A."""
    return re.sub(r"^([A-Z]+)0+(?=\d)", r"\1", band.strip().upper())


# Words in a folder's name that tell the sensor, for the choice of augmentations.
_SENSOR_WORDS = {
    "sar": ("s1", "sentinel1", "sar", "vv", "vh", "radar"),
    "dem": ("dem", "elevation", "dsm", "dtm", "height"),
    "hha": ("hha", "depth"),
}


def guess_augmentation(name: str) -> str:
    """Return the augmentation recipe that a folder's name suggests; "optical" by default."""
    lower = name.lower()
    for augmentation, words in _SENSOR_WORDS.items():
        if any(word in lower for word in words):
            return augmentation
    return "optical"


def preset_of(bands: Sequence[str]) -> str | None:
    """Return the preset of Sentinel-2 that 12 or 13 bands without names may be."""
    if not all(UNNAMED.fullmatch(plain_band(band)) for band in bands):
        return None
    return {13: "sentinel2-l1c", 12: "sentinel2-l2a"}.get(len(bands))


def sentinel2_bands(bands: Sequence[str]) -> set[str]:
    """Return which bands of Sentinel-2 some bands are, by their names or their number."""
    preset = preset_of(bands)
    names = PRESETS[preset].bands if preset else [plain_band(band) for band in bands]
    return set(names) & set(_S2_BANDS)


def load_modalities(source: str | Path | Mapping[str, Any] | None) -> dict[str, Modality]:
    """Load modalities by name from YAML (as `decur stats` writes it), a mapping, or nothing.

    Args:
        source: a YAML file, a mapping `{name: preset name or fields}`, or None.

    Returns:
        `{name: Modality}`, in the order given; empty for None.

    Raises:
        ConfigError: naming the file or key that is wrong.
    """
    if source is None:
        return {}
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"{path}: no such file of modalities; `decur stats ROOT` writes one")
        loaded = read_yaml(path)
        if not isinstance(loaded, Mapping):
            raise ConfigError(f"{path}: must hold a mapping of modality names to their fields")
        source = loaded
    if not isinstance(source, Mapping):
        raise ConfigError(f"modalities: a YAML file, or a mapping of names, not {source!r}")
    modalities: dict[str, Modality] = {}
    for name, value in source.items():
        if not isinstance(name, str):  # YAML reads 1, yes and 2024-01-01 as no text
            raise ConfigError(f"modality {name!r}: a name is a text; write it in quotes")
        if isinstance(value, Modality):
            modalities[name] = value.with_(name=name)
        elif isinstance(value, str):
            modalities[name] = Modality.preset(value).with_(name=name)
        elif isinstance(value, Mapping):
            modalities[name] = Modality.from_dict({**value, "name": name})
        else:
            raise ConfigError(f"modality {name!r}: needs a preset's name or a mapping of fields")
    return modalities


def _as_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a modality that values of YAML stand for."""
    made = dict(values)
    if "scale" in made:
        made["factor"] = made.pop("scale")
    if isinstance(made.get("bands"), Mapping):
        made["picks"] = list(made["bands"].values())
        made["bands"] = list(made["bands"])
    return made


def _changed_preset(preset: Modality, changes: dict[str, Any]) -> Modality:
    """Return a preset with other fields; statistics follow where it keeps some of its bands."""
    if "bands" in changes:
        bands = _names("bands", changes["bands"])
        if set(bands) <= set(preset.bands):
            rows = [preset.bands.index(band) for band in bands]
            for field in ("mean", "std"):
                if (values := getattr(preset, field)) is not None:
                    changes = {field: tuple(values[row] for row in rows), **changes}
    return preset.with_(**changes)


def _number(where: str, value: Any, finite: bool = True) -> float:
    """Return a number as it is, or that which a text says."""
    number = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ConfigError(f"{where} takes a number, not {value!r}")
    if finite and not math.isfinite(number):
        raise ConfigError(f"{where} takes a finite number, not {value!r}")
    return number if isinstance(number, int | float) else float(number)


def _numbers(where: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):  # YAML and JSON have no tuples
        raise ConfigError(f"{where} is a list of numbers, not {values!r}")
    return tuple(_number(where, value) for value in values)


def _nodata(where: str, value: Any) -> float | tuple[float, ...] | None:
    several = isinstance(value, list | tuple)
    values = value if several else () if value is None else (value,)
    numbers = [float(_number(where, number, finite=False)) for number in values]
    # NaN always is no measurement, and would make a modality differ from itself.
    numbers = [number for number in numbers if not math.isnan(number)]
    return (tuple(numbers) if several else numbers[0]) if numbers else None


def _size(where: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    numbers = _numbers(where, value if isinstance(value, list | tuple) else ())
    if len(numbers) != 2 or any(number < 1 or number != int(number) for number in numbers):
        raise ConfigError(f"{where} is height and width in whole pixels, [16, 16], not {value!r}")
    return (int(numbers[0]), int(numbers[1]))


def _names(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{where} is a list of names, [VV, VH], not {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ConfigError(f"{where}: {value!r} is no name; write it in quotes")
    return tuple(str(value) for value in values)  # YAML reads 1 as a number


def _picks(where: str, values: Any) -> tuple[str | int, ...]:
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{where}: names or numbers of a file's bands, not {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int) or value in (0, ""):
            raise ConfigError(
                f"{where}: {value!r} is neither the name of a file's band nor its number from 1"
            )
    return tuple(values)


# Statistics in raw units, each with its source.
# SSL4EO-S12 (Wang et al. 2023), as in the DeCUR authors' code: S1 in dB, S2 L1C in DN.
_S2_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")

PRESETS: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality(
            name="sentinel1",
            bands=("VV", "VH"),
            mean=(-12.548, -20.192),
            std=(5.257, 5.912),
            cut=2.0,
            augmentation="sar",
        ),
        Modality(
            name="sentinel2-l1c",
            bands=_S2_BANDS,
            mean=(1605.575, 1390.782, 1314.873, 1363.524, 1549.444, 2091.749, 2371.717)
            + (2299.905, 2560.295, 830.066, 22.104, 2177.072, 1524.065),
            std=(786.787, 850.348, 875.065, 1138.850, 1122.178, 1161.592, 1274.392)
            + (1248.429, 1345.527, 577.316, 51.154, 1336.099, 1136.538),
        ),
        # BigEarthNet v1 (Sumbul et al. 2019), statistics of its authors' bigearthnet-models.
        Modality(
            name="sentinel2-l2a",
            bands=tuple(band for band in _S2_BANDS if band != "B10"),
            mean=(340.767, 429.943, 614.217, 590.236, 950.684, 1792.463, 2075.468)
            + (2218.946, 2266.460, 2246.061, 1594.427, 1009.327),
            std=(554.813, 572.416, 582.879, 675.887, 729.898, 1096.015, 1273.454)
            + (1365.456, 1356.138, 1302.329, 1079.191, 818.867),
        ),
        Modality(name="rgb", bands=("R", "G", "B"), scaling="range"),
        # Elevation has no scale that fits both a plain and a mountain: each tile to its own
        # percentiles 1 and 99, as the DeCUR authors do for GeoNRW.
        Modality(name="dem", bands=("height",), scaling="image", cut=2.0, augmentation="dem"),
        Modality(
            name="hha",
            bands=("disparity", "height", "angle"),
            scaling="range",
            augmentation="hha",
        ),
        # Metres; SUN RGB-D clips at 8 m, and 0 is a hole.
        Modality(
            name="depth",
            bands=("depth",),
            scaling="range",
            value_range=(0.0, 8.0),
            nodata=0.0,
            augmentation="hha",
        ),
    )
}
