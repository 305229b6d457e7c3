"""Pretrained weights of timm and torchgeo, as encoders for the bands and values of the data."""

from __future__ import annotations

import difflib
import logging
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from decur.encoders.base import AdaptedEncoder, Encoder
from decur.encoders.build import build_encoder
from decur.encoders.geo import TORCHGEO, require_torchgeo
from decur.errors import ConfigError, DataError
from decur.modality import Modality, plain_band

if TYPE_CHECKING:
    from decur.encoders.settings import MissingBands

log = logging.getLogger(__name__)

TIMM = "timm:"
_SOURCE = re.compile(r"(?:(\w[\w-]*)=)?(torchgeo:|timm:)(.+?)(@data)?$")
Step = tuple[list[float], list[float]]  # mean and std of each channel

# CROMA's two halves; its repository names them, torchgeo's weights do not.
_OPTICAL = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12"]
_HALVES = {"optical": _OPTICAL, "sar": ["VV", "VH"]}
# Micrometres: ESA's central wavelengths of Sentinel-2 and, of C-band radar, DOFA's own number.
_WAVELENGTHS = {
    **dict(
        zip(_OPTICAL, (0.443, 0.49, 0.56, 0.665, 0.705, 0.74, 0.783, 0.842, 0.865), strict=False)
    ),
    **{"B9": 0.945, "B10": 1.375, "B11": 1.61, "B12": 2.19, "R": 0.665, "G": 0.56, "B": 0.49},
    **{"VV": 5.405, "VH": 5.405},
}
# Mean and deviation of pictures that are mean - 2 std at 0 and mean + 2 std at 1.
_Z_SCORE = (0.5, 0.25)
_ABSENT = re.compile(r"(norm|fc_norm)\.(weight|bias)")  # torchgeo lets weights lack these
_CLASSIFIER = re.compile(r"(fc|head)\.")


@dataclass(frozen=True)
class PretrainedSource:
    """Pretrained weights as a person names them: `[SENSOR=]torchgeo:NAME[@data]`, or `timm:`.

    Args:
        text: what the person wrote.
        carrier: the library that has the weights: "torchgeo:" or "timm:".
        name: of the weights, as the library writes it.
        sensor: the sensor that the weights are for; None where the person named none.
        by_data: whether values are scaled to [0, 1] as the data's modality says, in place of what
            the weights say.
    """

    text: str
    carrier: str
    name: str
    sensor: str | None
    by_data: bool


def parse_source(source: str) -> PretrainedSource | None:
    """Parse the name of pretrained weights; return None if the source names a file or folder.

    Raises:
        ConfigError: for "@data" with timm's weights, which take values in [0, 1] anyway.
    """
    found = _SOURCE.match(source)
    if found is None:
        return None
    sensor, carrier, name, by_data = found.groups()
    if by_data and carrier == TIMM:
        raise ConfigError(
            f"encoders: {source}: timm's weights are for the data's scaling anyway; leave @data out"
        )
    return PretrainedSource(source, carrier, name, sensor, bool(by_data))


def sensor_of(given: PretrainedSource, modalities: Mapping[str, Modality]) -> str:
    """Return the sensor that weights are for: the one that was named, or whose bands they take.

    Args:
        given: the weights.
        modalities: sensors to choose from.

    Raises:
        ConfigError: if none fits, or several do.
    """
    if given.sensor is not None:
        if given.sensor not in modalities:
            raise ConfigError(
                f"encoders: {given.text}: there is no sensor {given.sensor!r}; choose from "
                f"{', '.join(modalities)}"
            )
        return given.sensor
    weights = find_weights(given.name)
    fitting = [name for name, modality in modalities.items() if bands_of(weights, modality)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"encoders: {given.text} could be for {' or '.join(fitting)}; say which, as in "
            f"{fitting[0]}={given.text}"
        )
    wanted = weights.meta.get("bands")
    what = ", ".join(wanted) if wanted else f"{weights.meta.get('in_chans', 'other')} bands"
    have = "; ".join(f"{name} {', '.join(m.bands)}" for name, m in modalities.items())
    raise ConfigError(
        f"encoders: {given.text} is for {what}, and no sensor of the data has those ({have})"
    )


def load_torchgeo(
    given: PretrainedSource, modality: Modality, missing_bands: MissingBands
) -> Encoder:
    """Return torchgeo's weights as an encoder for one sensor.

    Bands are found by their names, whatever their order. Values are scaled as the transforms of
    the weights say; the encoder's modality then differs from that of the data. Weights without
    transforms, and those named with "@data", take values in [0, 1] as the data's modality scales
    them; transforms that are for [0, 1] (ImageNet's mean and deviation) are applied after that. A
    band that is missing enters the first layer as 0.

    Args:
        given: the weights.
        modality: the sensor of the data.
        missing_bands: whether data without some of the bands is refused.

    Returns:
        The encoder with its modality, in eval mode, on the CPU.

    Raises:
        ConfigError: if there are no such weights, or they cannot be had: the line says which file
            goes where.
        DataError: if a band is missing, or the file holds something else.
    """
    weights = find_weights(given.name)
    bands = bands_of(weights, modality)
    if bands is None:
        raise DataError(
            f"encoders: {given.text} is not for {modality.name!r}, which has "
            f"{', '.join(modality.bands)}"
        )
    have = [plain_band(band) for band in modality.bands]
    rows = [have.index(band) if band in have else None for band in bands]
    if absent := ", ".join(b for b, row in zip(bands, rows, strict=True) if row is None):
        if missing_bands == "refuse":
            raise DataError(
                f"encoders: {given.text}: {modality.name!r} has no {absent}; with "
                f"--missing_bands empty, {absent} counts as empty"
            )
        log.info("%s: the data has no %s, which counts as empty", modality.name, absent)
    inner = _build(weights, bands)
    _load(inner, weights)
    raw, unit = normalisations(weights, len(bands))
    own = modality
    if raw and not given.by_data:
        mean, std = _composed(raw + unit, len(bands))
        own = _as_the_weights_want(modality, rows, mean, std)
        unit = []
    elif not raw and not given.by_data:
        log.info("%s: the weights name no scale; pictures are in [0, 1]", given.text)
    encoder = _adapt(inner, rows, *_composed(unit, len(bands)), modality.channels)
    encoder.modality = own
    return encoder.eval()


def plain_torchgeo(given: PretrainedSource, modality: Modality) -> tuple[Encoder, Step, bool]:
    """Return torchgeo's weights as they are, to be trained on.

    Args:
        given: the weights.
        modality: the sensor of the data.

    Returns:
        The encoder, whose modality names the bands of the weights; mean and deviation that its
        pictures are normalised by; whether these are for raw values, else for values in [0, 1].

    Raises:
        ConfigError: as `load_torchgeo` does, and if the weights are for other bands altogether.
        DataError: if the file holds something else.
    """
    weights = find_weights(given.name)
    bands = bands_of(weights, modality)
    if bands is None:
        raise ConfigError(
            f"encoder.weights: {given.text} is not for {modality.name!r}, which has "
            f"{', '.join(modality.bands)}"
        )
    encoder = _build(weights, bands)
    _load(encoder, weights)
    raw, unit = normalisations(weights, len(bands))
    is_raw = bool(raw) and not given.by_data
    steps = raw + unit if is_raw else unit
    encoder.modality = Modality(modality.name, tuple(bands), scaling="range", value_range=(0, 1))
    return encoder, _composed(steps, len(bands)), is_raw


def _composed(steps: Sequence[Step], channels: int) -> Step:
    """Return one normalisation that does what several do one after the other."""
    mean, std = [0.0] * channels, [1.0] * channels
    for m, s in steps:
        mean = [a + b * c for a, b, c in zip(mean, std, m, strict=True)]
        std = [b * c for b, c in zip(std, s, strict=True)]
    return mean, std


def _as_the_weights_want(
    modality: Modality, rows: Sequence[int | None], mean: Sequence[float], std: Sequence[float]
) -> Modality:
    """Return the sensor with raw values scaled by the weights' statistics, not clipped."""
    means, stds = [0.0] * modality.channels, [1.0] * modality.channels  # of bands not looked at
    for row, m, s in zip(rows, mean, std, strict=True):
        if row is not None:
            means[row], stds[row] = m, s
    return modality.with_(scaling="zscore", mean=tuple(means), std=tuple(stds), cut=0.0)


def _adapt(
    encoder: Encoder, rows: list[int | None], mean: list[float], std: list[float], bands: int
) -> Encoder:
    """Wrap an encoder so that it selects and normalises bands, unless that changes nothing."""
    if rows == list(range(bands)) and not any(mean) and set(std) == {1.0}:
        return encoder
    return AdaptedEncoder(encoder, rows, mean=mean, std=std)


def find_weights(name: str) -> Any:
    """Return torchgeo's weights of a name, as "ResNet50_Weights.SENTINEL2_ALL_MOCO".

    Raises:
        ConfigError: if there are none (it gives the closest names), decur does not know their
            architecture, or torchgeo is not installed.
    """
    known = {str(member): member for _, enum in weights_by_architecture() for member in enum}
    if name in known:
        if not is_known_architecture(architecture(known[name])):
            raise ConfigError(
                f"encoders: torchgeo:{name} is for another architecture than those taken here: "
                "ResNets, ViTs, Swin Transformers, CROMA and DOFA"
            )
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    close = [full for full in known if full.endswith(f".{name}")] or close
    hint = f"did you mean {' or '.join(close[:4])}?" if close else "see torchgeo.models"
    raise ConfigError(f"encoders: torchgeo has no weights {name!r}; {hint}")


def weights_by_architecture() -> Iterable[tuple[str, Any]]:
    """Yield each architecture of torchgeo with the enumeration of its weights."""
    models = require_torchgeo()
    for name in models.list_models():
        try:
            yield name, models.get_model_weights(name)
        except KeyError:  # none are released
            continue


def bands_of(weights: Any, modality: Modality) -> list[str] | None:
    """Return the bands of weights in their order; None if they are not for this sensor.

    Args:
        weights: of torchgeo.
        modality: the sensor; its bands count as equal where `plain_band` makes them so.
    """
    have = [plain_band(band) for band in modality.bands]
    name = architecture(weights)
    if name.startswith("dofa_"):
        return have if set(have) <= set(_WAVELENGTHS) else None
    if name.startswith("croma_"):
        return next((half for half in _HALVES.values() if set(half) & set(have)), None)
    if "bands" not in weights.meta:
        return have if weights.meta.get("in_chans") == len(have) else None
    bands = [plain_band(band) for band in weights.meta["bands"]]
    # Landsat's bands are numbered as Sentinel-2's, and others; B8A tells them apart.
    foreign = "LANDSAT" in weights.name and "B8A" in have
    return bands if set(bands) & set(have) and not foreign else None


def is_known_architecture(name: str) -> bool:
    """Tell whether decur has an architecture of torchgeo, and it takes nothing but pictures."""
    return timm.is_model(name) or name.startswith(("croma_", "dofa_", "swin_"))


def architecture(weights: Any) -> str:
    """Return the name of the architecture that weights are for, as torchgeo lists it."""
    return next(name for name, enum in weights_by_architecture() if isinstance(weights, enum))


def _build(weights: Any, bands: Sequence[str]) -> Encoder:
    """Build the architecture of weights, which are not loaded yet."""
    name, options = architecture(weights), {}
    if timm.is_model(name):
        if "img_size" in weights.meta:
            options["img_size"] = weights.meta["img_size"]
        return build_encoder(name, len(bands), **options)
    if name.startswith("croma_"):
        options["sensor"] = "optical" if len(bands) > 2 else "sar"
    elif name.startswith("dofa_"):
        options["wavelengths"] = [_WAVELENGTHS[band] for band in bands]
    return build_encoder(f"{TORCHGEO}{name}", len(bands), **options)


def _load(encoder: Encoder, weights: Any) -> None:
    """Load weights into an encoder; they are downloaded where they are not on disk.

    Raises:
        ConfigError: if they cannot be downloaded; the line says which file goes where.
        DataError: if the file holds something else.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        # nothing of others is unpickled beyond tensors
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise ConfigError(
            f"encoders: torchgeo:{weights} cannot be downloaded "
            f"({' '.join(str(error).split())[:120]}); put {weights.url} into {file}"
        ) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise DataError(
            f"{file}: not the weights of torchgeo:{weights} "
            f"({' '.join(str(error).split())[:120]}); remove it, and put {weights.url} there"
        ) from error
    found, expected = _renamed_keys(encoder, state), encoder.state_dict()
    wrong = [key for key in found if key not in expected or found[key].shape != expected[key].shape]
    wrong += [key for key in expected if key not in found and not _ABSENT.search(key)]
    if wrong:
        raise DataError(
            f"{file}: not the weights of torchgeo:{weights} ({wrong[0]} is missing, or not one of "
            f"them); remove it, and put {weights.url} there"
        )
    encoder.load_state_dict({**expected, **found})


def _renamed_keys(encoder: Encoder, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return torchgeo's weights under the keys of the encoder, without a classifier's."""
    if encoder.name.startswith(f"{TORCHGEO}croma_"):
        sensor = "s2" if encoder.options["sensor"] == "optical" else "s1"
        parts = {"transformer": f"{sensor}_encoder", "pool": f"{sensor}_GAP_FFN"}
        return {
            f"{own}.{key}": value
            for own, theirs in parts.items()
            for key, value in state.get(theirs, {}).items()
        }
    prefix = "backbone." if encoder.name.startswith(f"{TORCHGEO}dofa_") else ""
    return {f"{prefix}{k}": v for k, v in state.items() if not _CLASSIFIER.match(k)}


def normalisations(weights: Any, channels: int) -> tuple[list[Step], list[Step]]:
    """Return the normalisations in the transforms of weights, in their order.

    ImageNet's mean and deviation are for values in [0, 1]; all others are for raw values.

    Args:
        weights: of torchgeo.
        channels: number of bands.

    Returns:
        Those of raw values, and those of values in [0, 1].
    """
    if architecture(weights).startswith("dofa_"):  # torchgeo leaves it out, as each sensor's own
        return [], [([_Z_SCORE[0]] * channels, [_Z_SCORE[1]] * channels)]
    transforms: Any = weights.transforms
    layers = transforms.modules() if isinstance(transforms, nn.Module) else [transforms]
    raw: list[Step] = []
    unit: list[Step] = []
    layer: Any
    for layer in layers:
        if type(layer).__name__ != "Normalize":
            continue
        mean, std = (
            [float(v) for v in values] * (channels if len(values) == 1 else 1)
            for values in (layer.mean, layer.std)
        )
        of_unit = all(0 < value < 1 for value in mean)
        (unit if of_unit else raw).append((mean, std))
    return raw, unit
