"""Encoder files: the weights of one sensor's encoder, and all that is needed to use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decur.encoders.base import Encoder
from decur.encoders.build import architecture_inside, can_be_built
from decur.encoders.header import EncoderHeader, build_to_fit, parse_header
from decur.encoders.stored import read_stored, refuse_non_finite, write_stored
from decur.errors import ConfigError, DataError
from decur.modality import Modality

FORMAT = 1  # of encoder files; raised when their metadata changes


def save_encoder(
    encoder: Encoder, path: str | Path, *, objective: Mapping[str, Any] | None = None
) -> Path:
    """Write an encoder with its modality, as safetensors.

    Args:
        encoder: its `modality` must be set.
        path: file to write, `.safetensors`.
        objective: what it was trained with, as `Objective.about` gives it; kept in the header for
            whoever reads it.

    Returns:
        The path.

    Raises:
        ConfigError: if the encoder has no modality, without which its weights cannot be used, or
            if no registered name builds it again.
        DataError: if a weight is not finite.
        WriteError: if the file cannot be written.
    """
    path = Path(path)
    if encoder.modality is None:
        raise ConfigError(f"{path}: the encoder has no modality; set encoder.modality first")
    name = architecture_inside(encoder.name, encoder.options)
    if not can_be_built(name):
        raise ConfigError(
            f"{path}: nothing builds an encoder {name!r}, so the file could not be read; register "
            "what does with decur.encoders.ENCODERS.register"
        )
    header = {
        "format": FORMAT,
        "encoder": encoder.name,
        "options": encoder.options,
        "modality": encoder.modality.to_dict(),
    }
    header |= {} if objective is None else {"objective": dict(objective)}
    write_stored(path, "decur", header, encoder.state_dict())
    return path


def load_encoder(path: str | Path, modality: Modality | None = None) -> Encoder:
    """Read an encoder that `save_encoder` or a run wrote.

    Args:
        path: a `.safetensors` file.
        modality: that of the data it is meant for; checked against the encoder's own.

    Returns:
        The encoder in eval mode on the CPU, with its `.modality`.

    Raises:
        DataError: if the file is missing, damaged or no encoder of ours, if a weight is not
            finite, or if it was trained for other bands than `modality` has.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such encoder file; a run writes encoders/<modality>.safetensors"
        )
    stored = read_stored(path, "decur")
    if stored.header is None:
        raise DataError(f"{path}: holds weights but no modality, so it is no encoder of decur's")
    header = EncoderHeader.check(path, parse_header(path, stored.header, {}, FORMAT))
    what = f"a {header.name!r} for {', '.join(header.modality.bands)}"
    encoder = build_to_fit(path, header.build, stored.state, what=what)
    refuse_non_finite(stored.state, path)
    stored.refuse_damage()
    if modality is not None:
        try:
            encoder.check(modality)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return encoder.eval()
