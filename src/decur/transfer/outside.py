"""Encoders of others, as torchgeo and timm carry them, for the bands and values of the data."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from decur.encoders import AdaptedEncoder, Encoder, TimmEncoder
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.transfer.released import Step, bands_of, build, fill, find_weights, plain, steps_of

log = logging.getLogger(__name__)

TIMM = "timm:"
MissingBands = Literal["refuse", "empty"]
_SOURCE = re.compile(r"(?:(\w[\w-]*)=)?(torchgeo:|timm:)(.+?)(@data)?$")


@dataclass(frozen=True)
class Outside:
    """Where the weights of others are: `[SENSOR=]torchgeo:NAME[@data]`, or `timm:`.

    Args:
        text: as it was given.
        carrier: "torchgeo:" or "timm:".
        name: of the weights, as their carrier writes it.
        sensor: what they are for, where that was said.
        by_data: whether values are scaled to [0, 1] as the data's modality says, in place of what
            the weights say.
    """

    text: str
    carrier: str
    name: str
    sensor: str | None
    by_data: bool


def parse(source: str) -> Outside | None:
    """What a source says; None if it is no encoder of others.

    Raises:
        ConfigError: for "@data" of timm's, which are for [0, 1] anyway.
    """
    found = _SOURCE.match(source)
    if found is None:
        return None
    sensor, carrier, name, by_data = found.groups()
    if by_data and carrier == TIMM:
        raise ConfigError(
            f"encoders: {source}: timm's weights are for the data's scaling anyway; leave @data out"
        )
    return Outside(source, carrier, name, sensor, bool(by_data))


def sensor_of(outside: Outside, modalities: Mapping[str, Modality]) -> str:
    """The one sensor that weights are for, by name or by its bands.

    Args:
        outside: the weights.
        modalities: sensors to choose from.

    Raises:
        ConfigError: if none fits, or several do.
    """
    if outside.sensor is not None:
        if outside.sensor not in modalities:
            raise ConfigError(
                f"encoders: {outside.text}: there is no sensor {outside.sensor!r}; choose from "
                f"{', '.join(modalities)}"
            )
        return outside.sensor
    weights = find_weights(outside.name)
    fitting = [name for name, modality in modalities.items() if bands_of(weights, modality)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"encoders: {outside.text} could be for {' or '.join(fitting)}; say which, as in "
            f"{fitting[0]}={outside.text}"
        )
    wanted = weights.meta.get("bands")
    what = ", ".join(wanted) if wanted else f"{weights.meta.get('in_chans', 'other')} bands"
    have = "; ".join(f"{name} {', '.join(m.bands)}" for name, m in modalities.items())
    raise ConfigError(
        f"encoders: {outside.text} is for {what}, and no sensor of the data has those ({have})"
    )


def load_outside(outside: Outside, modality: Modality, missing_bands: MissingBands) -> Encoder:
    """Torchgeo's weights as an encoder for one sensor.

    Bands are found by their names, whatever their order. Values are scaled as the weights' own
    transforms say: the encoder's modality is then not that of the data, and says how. Weights that
    say nothing, and those given with "@data", take [0, 1] as the data's modality scales it, and
    then what their transforms do with pictures in [0, 1] (ImageNet's mean and deviation). A band
    that is missing is 0 where the weights begin.

    Args:
        outside: the weights.
        modality: the sensor of the data.
        missing_bands: whether data without some of the bands is refused.

    Returns:
        The encoder with its modality, in eval mode, on the CPU.

    Raises:
        ConfigError: if there are no such weights, or they cannot be had: the line says which file
            goes where.
        DataError: if a band is missing, or the file holds something else.
    """
    weights = find_weights(outside.name)
    bands = bands_of(weights, modality)
    if bands is None:
        raise DataError(
            f"encoders: {outside.text} is not for {modality.name!r}, which has "
            f"{', '.join(modality.bands)}"
        )
    have = [plain(band) for band in modality.bands]
    rows = [have.index(band) if band in have else None for band in bands]
    if absent := ", ".join(b for b, row in zip(bands, rows, strict=True) if row is None):
        if missing_bands == "refuse":
            raise DataError(
                f"encoders: {outside.text}: {modality.name!r} has no {absent}; with "
                f"--missing_bands empty, {absent} counts as empty"
            )
        log.info("%s: the data has no %s, which counts as empty", modality.name, absent)
    inner = build(weights, bands)
    fill(inner, weights)
    raw, unit = steps_of(weights, len(bands))
    own = modality
    if raw and not outside.by_data:
        mean, std = _composed(raw + unit, len(bands))
        own = _as_the_weights_want(modality, rows, mean, std)
        unit = []
    elif not raw and not outside.by_data:
        log.info("%s: the weights name no scale; pictures are in [0, 1]", outside.text)
    encoder = _adapt(inner, rows, *_composed(unit, len(bands)), modality.channels)
    encoder.modality = own
    return encoder.eval()


def normalised(encoder: Encoder) -> Encoder:
    """Timm's encoder for three bands in [0, 1], its weights' mean and deviation applied inside.

    Red, green and blue are found by name where the bands have such names.

    Args:
        encoder: just made, with its modality.
    """
    if not isinstance(encoder, TimmEncoder) or encoder.options.get("attention"):
        return encoder
    assert encoder.modality is not None
    mean, std = (encoder.backbone.pretrained_cfg.get(key) for key in ("mean", "std"))
    if encoder.modality.channels != 3 or mean is None or len(mean) != 3:
        return encoder
    have = [plain(band) for band in encoder.modality.bands]
    orders = [
        colours for colours in (["R", "G", "B"], ["B4", "B3", "B2"]) if set(colours) == set(have)
    ]
    rows: list[int | None] = [have.index(band) for band in (orders[0] if orders else have)]
    adapted = _adapt(encoder, rows, list(mean), list(std), 3)
    adapted.modality = encoder.modality
    return adapted


def _composed(steps: Sequence[Step], channels: int) -> Step:
    """Several normalisations, one after the other, as one."""
    mean, std = [0.0] * channels, [1.0] * channels
    for m, s in steps:
        mean = [a + b * c for a, b, c in zip(mean, std, m, strict=True)]
        std = [b * c for b, c in zip(std, s, strict=True)]
    return mean, std


def _as_the_weights_want(
    modality: Modality, rows: Sequence[int | None], mean: Sequence[float], std: Sequence[float]
) -> Modality:
    """The sensor, its raw values scaled by the weights' statistics and not clipped."""
    means, stds = [0.0] * modality.channels, [1.0] * modality.channels  # of bands not looked at
    for row, m, s in zip(rows, mean, std, strict=True):
        if row is not None:
            means[row], stds[row] = m, s
    return modality.with_(scaling="zscore", mean=tuple(means), std=tuple(stds), cut=0.0)


def _adapt(
    encoder: Encoder, rows: list[int | None], mean: list[float], std: list[float], bands: int
) -> Encoder:
    """Wrap an encoder, unless the pictures are as it wants them."""
    if rows == list(range(bands)) and not any(mean) and set(std) == {1.0}:
        return encoder
    return AdaptedEncoder(encoder, rows, mean, std)
