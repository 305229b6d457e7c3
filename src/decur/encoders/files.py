"""Encoder files: the weights of one sensor's encoder, and all that is needed to use them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from decur.encoders.base import Encoder
from decur.encoders.build import architecture_inside, can_be_built
from decur.encoders.header import EncoderHeader, build_to_fit, parse_header
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.runs import atomic

FORMAT = 1  # of encoder files; raised when their metadata changes


def save_encoder(encoder: Encoder, path: str | Path) -> Path:
    """Write an encoder with its modality, as safetensors.

    Args:
        encoder: its `modality` must be set.
        path: file to write, `.safetensors`.

    Returns:
        The path.

    Raises:
        ConfigError: if the encoder has no modality, without which its weights cannot be used, or
            if no registered name builds it again.
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
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    with atomic(path) as temporary:
        save_file(state, temporary, metadata={"decur": json.dumps(header)})
    return path


def load_encoder(path: str | Path, modality: Modality | None = None) -> Encoder:
    """Read an encoder that `save_encoder` or a run wrote.

    Args:
        path: a `.safetensors` file.
        modality: that of the data it is meant for; checked against the encoder's own.

    Returns:
        The encoder in eval mode on the CPU, with its `.modality`.

    Raises:
        DataError: if the file is missing, truncated or no encoder of ours, or was trained for
            other bands than `modality` has.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such encoder file; a run writes encoders/<modality>.safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from error
    if "decur" not in metadata:
        raise DataError(f"{path}: holds weights but no modality, so it is no encoder of decur's")
    header = EncoderHeader.check(path, parse_header(path, metadata["decur"], {}, FORMAT))
    what = f"a {header.name!r} for {', '.join(header.modality.bands)}"
    encoder = build_to_fit(path, header.build, state, what=what)
    if modality is not None:
        try:
            encoder.check(modality)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return encoder.eval()
