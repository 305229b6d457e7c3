"""Start pretraining from existing weights, decur's or other people's, for any bands."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from decur.encoders.bands import first_weights
from decur.encoders.base import Encoder
from decur.encoders.build import build_encoder
from decur.encoders.files import HUB, encoder_files, load_encoder
from decur.encoders.pretrained import TIMM, Step, parse_source, plain_torchgeo
from decur.encoders.timm_models import TimmEncoder
from decur.errors import ConfigError, DataError, reason_of
from decur.modality import UNNAMED, Modality, plain_band

log = logging.getLogger(__name__)
_COLOURS = {
    **{"R": "R", "G": "G", "B": "B", "RED": "R", "GREEN": "G", "BLUE": "B"},
    **{"B4": "R", "B3": "G", "B2": "B"},  # of Sentinel-2
}
_NEW = (0.5, 0.25)  # mean and deviation of a band in [0, 1] that the weights do not know


@dataclass(frozen=True)
class _Start:
    """An encoder that training starts from.

    Args:
        source: where it is from, for messages.
        encoder: with its own bands.
        bands: their names, in one spelling.
        normalisation: mean and deviation of each band that pictures in [0, 1] are normalised by;
            None: they are not.
    """

    source: object
    encoder: Encoder
    bands: list[str]
    normalisation: Step | None


def start_from(encoder: Encoder, source: str | Path) -> None:
    """Give an encoder the weights of another one, its bands matched by name.

    Bands that both know keep their filters; a band that is new starts from the mean of all
    filters. Bands that have only numbers for names are matched by their order, if there are equally
    many. Pictures are normalised as the weights of other people were trained. A line in the log
    says all this, and how pictures are scaled where those of an encoder file were not.

    Args:
        encoder: with its modality; changed in place.
        source: an encoder file; the folder of a run, an export, or "hf-hub:USER/REPO" of encoders,
            of which that of the same sensor is taken; "timm:NAME", "torchgeo:NAME", or
            "hf-hub:USER/REPO" of a model of timm's.

    Raises:
        ConfigError: if there are no such weights, or they are of another architecture.
        DataError: if a file is damaged.
    """
    assert encoder.modality is not None
    wanted = encoder.modality
    start = _find(str(source), wanted)
    given = start.encoder
    if given.name != encoder.name:
        raise ConfigError(
            f"encoder.weights: {start.source} holds a {given.name}, encoder.name is "
            f"{encoder.name}; give --encoder.name {given.name}"
        )
    have = [plain_band(band) for band in wanted.bands]
    if start.bands == ["R", "G", "B"]:
        have = [_COLOURS.get(band, band) for band in have]
    rows = [start.bands.index(band) if band in start.bands else None for band in have]
    unnamed = any(all(map(UNNAMED.fullmatch, bands)) for bands in (have, start.bands))
    if in_order := unnamed and len(have) == len(start.bands) and have != start.bands:
        rows = list(range(len(have)))
    state = given.state_dict()
    if rows != list(range(len(start.bands))):
        for key, value in first_weights(given).items():  # (out, bands, height, width)
            mean = value.mean(1)
            state[key] = torch.stack([mean if r is None else value[:, r] for r in rows], 1)
    if start.normalisation is not None:
        _normalise(encoder, start.normalisation, rows, start.source)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"encoder.weights: {start.source} holds another {given.name} than encoder.options and "
            f"encoder.attention make ({reason})"
        ) from error
    _say(start, encoder, rows, in_order)


def _find(source: str, wanted: Modality) -> _Start:
    """Return what a person means by a source."""
    if source.startswith(HUB) and (files := _files_of_hub(source)) is None:
        return _of_timm(source, source, wanted)
    if source.startswith(HUB):
        return _of_file(_named(files or {}, wanted.name, source))
    given = parse_source(source)
    if given is None:
        path = Path(source)
        if path.is_dir():
            path = _named(encoder_files(source), wanted.name, source)
        if not path.is_file():
            raise ConfigError(
                f"encoder.weights: {path}: no such file; give an encoder file, the folder of a run "
                f"that has an encoder of {wanted.name!r}, {{{wanted.name}: FILE}}, timm:NAME, "
                f"torchgeo:NAME or {HUB}USER/REPO"
            )
        return _of_file(path)
    if given.carrier == TIMM:
        return _of_timm(source, given.name, wanted)
    encoder, (mean, std), is_raw = plain_torchgeo(given, wanted)
    assert encoder.modality is not None
    bands = [plain_band(band) for band in encoder.modality.bands]
    if is_raw:
        known = [plain_band(band) for band in wanted.bands]
        mean, std = _in_unit(
            mean, std, [known.index(b) if b in known else None for b in bands], wanted
        )
    return _Start(source, encoder, bands, (mean, std))


def _named(files: Mapping[str, Path], sensor: str, source: str) -> Path:
    if sensor in files:
        return files[sensor]
    there = f"has encoders of {', '.join(files)} alone" if files else "holds no encoder"
    raise ConfigError(f"encoder.weights: {source}: {there}; give {{{sensor}: FILE}}")


def _of_file(path: Path) -> _Start:
    encoder = load_encoder(path)
    assert encoder.modality is not None  # every encoder file has one
    found = encoder.options.get("normalisation")
    bands = [plain_band(band) for band in encoder.modality.bands]
    return _Start(path, encoder, bands, (found["mean"], found["std"]) if found else None)


def _files_of_hub(source: str) -> dict[str, Path] | None:
    """Return the encoder files of a repository; None where it holds something else."""
    try:
        return encoder_files(source) or None
    except DataError:  # weights without a header of decur's
        return None


def _of_timm(source: str, name: str, wanted: Modality) -> _Start:
    """Return a model of timm's, by its name there or as a repository of the hub."""
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client and those below it have dozens of classes
        raise ConfigError(
            f"encoder.weights: {source} cannot be had ({reason_of(error)}); check the name and the "
            "connection, or load it once where there is one, and timm finds it in its cache"
        ) from error
    config = model.pretrained_cfg
    architecture = str(config.get("architecture") or name).split(".")[0]
    channels = int(config.get("input_size", (3,))[0])
    encoder = build_encoder(architecture, channels)
    encoder.load_state_dict(model.state_dict())
    bands = ["R", "G", "B"] if channels == 3 else [plain_band(band) for band in wanted.bands]
    if len(bands) != channels:
        raise ConfigError(
            f"encoder.weights: {source} is for {channels} bands without names, and {wanted.name!r} "
            f"has {wanted.channels}"
        )
    encoder.modality = Modality(wanted.name, tuple(bands), scaling="range", value_range=(0, 1))
    found = [list(config.get(key) or ()) for key in ("mean", "std")]
    known = all(len(values) == channels for values in found)
    return _Start(source, encoder, bands, (found[0], found[1]) if known else None)


def _in_unit(
    mean: Sequence[float], std: Sequence[float], rows: Sequence[int | None], modality: Modality
) -> Step:
    """Return mean and deviation of raw values as those of the pictures in [0, 1] of a sensor.

    A picture y in [0, 1] stands for the raw value a + b y, so that (a + b y - m) / s is
    (y - (m - a) / b) / (s / b). What scaling clips stays clipped.

    Args:
        mean: of each band of the weights, in raw units.
        std: of each.
        rows: for each band of the weights that of the sensor, None for one it lacks.
        modality: the sensor.

    Raises:
        ConfigError: if the sensor scales each picture by itself, so that no raw values are known.
    """
    if modality.scaling == "image":
        raise ConfigError(
            f"encoder.weights: these weights are for raw values, and {modality.name!r} scales each "
            "picture by itself; give it the scaling standard or range, or add @data to their name"
        )
    means, stds = [], []
    for m, s, row in zip(mean, std, rows, strict=True):
        if row is None:
            m, s = _NEW
        elif modality.scaling == "range":
            low, high = modality.value_range
            m, s = (m - low) / (high - low), s / (high - low)
        else:
            assert modality.mean is not None and modality.std is not None  # it is scaled by them
            centre, width = modality.mean[row], modality.std[row]
            a, b = (
                (centre - 2 * width, 4 * width)
                if modality.scaling == "standard"
                else (centre, width)
            )
            m, s = (m - a) / b, s / b
        means.append(m)
        stds.append(s)
    return means, stds


def _normalise(
    encoder: Encoder, normalisation: Step, rows: Sequence[int | None], source: object
) -> None:
    """Let an encoder normalise its pictures as the weights want it; new bands by [0, 1]."""
    if not isinstance(encoder, TimmEncoder):
        raise ConfigError(
            f"encoder.weights: {source}: training starts from ResNets, ViTs and other models of "
            f"timm's, {encoder.name} is none"
        )
    mean, std = normalisation
    found = [_NEW if row is None else (mean[row], std[row]) for row in rows]
    encoder.normalise({"mean": [m for m, _ in found], "std": [s for _, s in found]})


def _say(start: _Start, encoder: Encoder, rows: Sequence[int | None], in_order: bool) -> None:
    """Say in one line which bands keep their filters, and how pictures are scaled."""
    now, before = encoder.modality, start.encoder.modality
    assert now is not None and before is not None
    new = [band for band, row in zip(now.bands, rows, strict=True) if row is None]
    kept = len(rows) - len(new)
    parts = [f"{kept} of {len(rows)} bands keep their filters"]
    if in_order:
        parts.append(
            f"{', '.join(now.bands)} are taken for {', '.join(start.bands)}, as they have no names"
        )
    if new:
        parts.append(f"{', '.join(new)} start from the mean of all")
    if start.normalisation is not None:
        parts.append("pictures are normalised as in its training")
    elif now.scaling != before.scaling:
        parts.append(
            f"pictures were scaled by {before.scaling!r} in its training, now by {now.scaling!r}"
        )
    log.info("%s starts from %s: %s", now.name, start.source, "; ".join(parts))
