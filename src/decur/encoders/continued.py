"""Pretraining that goes on from the weights of an encoder file, also with other bands."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from decur.encoders.bands import first_weights
from decur.encoders.base import Encoder
from decur.encoders.build import plain_band
from decur.encoders.files import load_encoder
from decur.encoders.hub import HUB, encoder_files
from decur.errors import ConfigError

log = logging.getLogger(__name__)


def start_from(encoder: Encoder, source: str | Path) -> None:
    """Give an encoder the weights of a file, its bands matched by name.

    Bands that both know keep their filters; a band that is new starts from the mean of all
    filters. A line in the log says which, and how the pictures are scaled now where the file's
    encoder was trained on others.

    Args:
        encoder: with its modality; changed in place.
        source: an encoder file, or the folder of a run, an export or "hf-hub:USER/REPO", of which
            the encoder of the same sensor is taken.

    Raises:
        ConfigError: if there is no such file, or it holds another architecture.
        DataError: if the file is damaged.
    """
    assert encoder.modality is not None
    wanted = encoder.modality
    path = _file(str(source), wanted.name)
    given = load_encoder(path)
    assert given.modality is not None  # every encoder file has one
    if given.name != encoder.name:
        raise ConfigError(
            f"encoder.weights: {path} holds a {given.name}, encoder.name is {encoder.name}; give "
            f"--encoder.name {given.name}"
        )
    known = [plain_band(band) for band in given.modality.bands]
    rows = [known.index(b) if b in known else None for b in map(plain_band, wanted.bands)]
    state = given.state_dict()
    if rows != list(range(len(known))):
        for key, value in first_weights(given).items():  # (out, bands, height, width)
            mean = value.mean(1)
            state[key] = torch.stack([mean if r is None else value[:, r] for r in rows], 1)
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"encoder.weights: {path} holds another {given.name} than encoder.options and "
            f"encoder.attention make ({reason})"
        ) from error
    _say(path, encoder, given, rows)


def _file(source: str, sensor: str) -> Path:
    """Return the encoder file that a person means."""
    path = Path(source)
    if path.is_dir() or source.startswith(HUB):
        found = encoder_files(source)
        if sensor in found:
            return found[sensor]
        there = f"has encoders of {', '.join(found)} alone" if found else "holds no encoder"
        raise ConfigError(f"encoder.weights: {source}: {there}; give {{{sensor}: FILE}}")
    if not path.is_file():
        raise ConfigError(
            f"encoder.weights: {path}: no such file; give an encoder file, {HUB}USER/REPO, the "
            f"folder of a run that has an encoder of {sensor!r}, or {{{sensor}: FILE}}"
        )
    return path


def _say(path: Path, encoder: Encoder, given: Encoder, rows: list[int | None]) -> None:
    """Say in one line which bands keep their filters, and whether pictures are scaled otherwise."""
    now, before = encoder.modality, given.modality
    assert now is not None and before is not None
    new = [band for band, row in zip(now.bands, rows, strict=True) if row is None]
    kept = len(rows) - len(new)
    parts = [f"{kept} of {len(rows)} bands keep their filters"]
    if new:
        parts.append(f"{', '.join(new)} start from the mean of all")
    if now.scaling != before.scaling:
        parts.append(
            f"pictures were scaled by {before.scaling!r} in its training, now by {now.scaling!r}"
        )
    log.info("%s starts from %s: %s", now.name, path, "; ".join(parts))
