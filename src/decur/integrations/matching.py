"""Encoders for the channels that another tool hands over, found by the names of their bands."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from decur.encoders import Encoder, load_encoder, select_bands
from decur.encoders.files import encoder_files
from decur.errors import ConfigError
from decur.modality import plain_band

log = logging.getLogger(__name__)

_COLOURS = {"BLUE": ("B", "B2"), "GREEN": ("G", "B3"), "RED": ("R", "B4")}


class Channels(nn.Module):
    """An encoder, and where its bands are among the channels of a tool.

    Args:
        encoder: with its modality.
        group: the tool's name of the channels that hold its bands.
        columns: the place of each of its bands among them.
    """

    def __init__(self, encoder: Encoder, group: str, columns: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.group, self.columns = encoder, group, list(columns)

    def scaled(self, images: Tensor) -> Tensor:
        """Return what the encoder takes: raw values (B, C, H, W) of the tool to [0, 1]."""
        assert self.encoder.modality is not None
        return self.encoder.modality.scale(images[:, self.columns])


def open_as_modules(source: str) -> dict[str, Encoder]:
    """Return the encoders of a file, a run, an export, or "hf-hub:USER/REPO", by their sensor.

    Raises:
        ConfigError: if there is none.
        DataError: if a file is damaged.
    """
    files = [Path(source)] if Path(source).is_file() else list(encoder_files(source).values())
    if not files:
        raise ConfigError(f"encoders: {source} holds none; give a run's folder or an encoder file")
    opened = [load_encoder(file) for file in files]
    return {encoder.modality.name: encoder for encoder in opened if encoder.modality is not None}


def match(source: str, offered: Mapping[str, Sequence[str]]) -> list[Channels]:
    """Return the encoders of a source whose bands a tool has.

    An encoder takes the group of channels with most of its bands, one of its own name first. Bands
    that are missing there count as empty, which a line in the log says, and an encoder of which all
    are missing is left out.

    Args:
        source: as `open_as_modules` takes it.
        offered: `{group: its channels by name}`, as `{"s2": ["B02", "B03"]}`.

    Raises:
        ConfigError: if no encoder has any band there.
    """
    matched, encoders = [], open_as_modules(source)
    for name, encoder in encoders.items():
        assert encoder.modality is not None
        bands = encoder.modality.bands
        found = {group: _places(bands, channels) for group, channels in offered.items()}
        group = max(found, key=lambda g: (len(found[g]), g == name), default="")
        if not group or not found[group]:
            log.info("%s: none of its bands %s is there; it is left out", name, ", ".join(bands))
            continue
        if absent := [band for band in bands if band not in found[group]]:
            log.info("%s: there is no %s, which counts as empty", name, ", ".join(absent))
            encoder = select_bands(encoder, list(found[group]))
        log.info("%s takes %s of %s", name, ", ".join(found[group]), group)
        matched.append(Channels(encoder, group, list(found[group].values())))
    if not matched:
        there = "; ".join(f"{group}: {', '.join(names)}" for group, names in offered.items())
        raise ConfigError(f"encoders: {source}: no band of {', '.join(encoders)} is in {there}")
    return matched


def _places(bands: Sequence[str], channels: Sequence[str]) -> dict[str, int]:
    """Return the places of bands among channels, of those that are there, in the bands' order."""
    places: dict[str, int] = {}
    for place, channel in enumerate(channels):
        plain = plain_band(channel)
        for name in (plain, *_COLOURS.get(plain, ())):
            places.setdefault(name, place)
    return {band: places[plain_band(band)] for band in bands if plain_band(band) in places}
