"""Encoder files: the weights of one sensor's encoder, and all that is needed to use them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from decur.bounded_yaml import parse_json
from decur.encoders.base import Encoder
from decur.encoders.build import architecture_inside, can_be_built
from decur.encoders.header import EncoderHeader, build_to_fit, parse_header
from decur.encoders.stored import read_stored, refuse_non_finite, write_stored
from decur.errors import ConfigError, DataError, reason_of
from decur.modality import Modality
from decur.runs import RunFolder

log = logging.getLogger(__name__)
FORMAT = 1  # format of encoder files; raised when their metadata changes


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
    write_encoder(
        path,
        encoder.name,
        encoder.modality,
        options=encoder.options,
        state=encoder.state_dict(),
        about={} if objective is None else {"objective": dict(objective)},
    )
    return path


def write_encoder(
    path: Path,
    name: str,
    modality: Modality,
    *,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write an encoder that is there only as its weights, such as in a checkpoint.

    Args:
        path: file to write.
        name: of the encoder, as `build_encoder` takes it.
        modality: the sensor.
        options: what else builds the encoder again.
        state: its weights.
        about: its training, for whoever reads the header: "objective", as `Objective.about` gives
            it, and "unfinished", how far it has come where it has not ended.

    Raises:
        ConfigError: if no registered name builds the encoder again.
        DataError: if a weight is not finite.
        WriteError: if the file cannot be written.
    """
    inside = architecture_inside(name, options)
    if not can_be_built(inside):
        raise ConfigError(
            f"{path}: nothing builds an encoder {inside!r}, so the file could not be read; "
            "register what does with decur.encoders.ENCODERS.register"
        )
    header = {
        "format": FORMAT,
        "encoder": name,
        "options": dict(options),
        "modality": modality.to_dict(),
    }
    write_stored(path, "decur", header | dict(about), state)


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
        what = "a folder, no encoder file" if path.is_dir() else "no such encoder file"
        there = [str(file) for file in RunFolder(path).saved_encoders()]
        remedy = (
            f"give {' or '.join(there)}"
            if there
            else "a run writes encoders/<modality>.safetensors"
        )
        raise DataError(f"{path}: {what}; {remedy}")
    stored = read_stored(path, "decur")
    if stored.header is None:
        raise DataError(
            f"{path}: holds weights but no modality, so it is no encoder of decur's; `decur "
            "import` makes one of it"
        )
    values = parse_header(path, stored.header, {}, FORMAT)
    header = EncoderHeader.check(path, values)
    what = f"a {header.name!r} for {', '.join(header.modality.bands)}"
    encoder = build_to_fit(path, header.build, stored.state, what=what)
    refuse_non_finite(encoder.state_dict(), path)
    stored.refuse_damage()
    if modality is not None:
        try:
            encoder.check(modality)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    if unfinished := values.get("unfinished"):
        _tell_unfinished(path.parent, str(unfinished)[:100])
    return encoder.eval()


def read_objective(path: Path) -> Mapping[str, Any] | None:
    """Return what an encoder file says of its training, as `Objective.about` gave it.

    Args:
        path: of a file that `load_encoder` reads.

    Returns:
        The mapping; None where the file tells nothing, as those of version 0.1 do.
    """
    with safe_open(path, framework="pt") as file:
        found = parse_json((file.metadata() or {}).get("decur", "{}")).get("objective")
    return found if isinstance(found, dict) else None


@cache  # once for all encoders of a run, however often they are opened
def _tell_unfinished(folder: Path, place: str) -> None:
    log.info("%s: encoders of a run that has not ended, at %s", folder, place)


# -- files in a folder of any kind, or in a repository of the Hugging Face hub ---------------------

HUB = "hf-hub:"
WEIGHTS = "model.safetensors"  # the name that timm, too, looks for in a folder or repository
_WANTED = [WEIGHTS, f"*/{WEIGHTS}", "encoders/*.safetensors"]


def encoder_files(source: str) -> dict[str, Path]:
    """Return the encoder files that a folder or a repository of the hub holds.

    Args:
        source: the folder of a run, a folder of `decur export --format hub`, or
            "hf-hub:USER/REPO[@REVISION]" of either, which is downloaded to the hub's cache.

    Returns:
        `{sensor: file}`, empty where there is none.

    Raises:
        ConfigError: if the repository cannot be had.
        DataError: if a file of the folder is damaged, or two are for one sensor.
    """
    folder = _download(source) if source.startswith(HUB) else Path(source)
    if found := RunFolder(folder).saved_encoders():
        return {file.stem: file for file in found}
    files: dict[str, Path] = {}
    for file in (folder / WEIGHTS, *sorted(folder.glob(f"*/{WEIGHTS}"))):
        if file.is_file():
            modality = load_encoder(file).modality
            assert modality is not None  # encoder files have one
            if modality.name in files:
                raise DataError(
                    f"{folder}: {files[modality.name].relative_to(folder)} and "
                    f"{file.relative_to(folder)} are both for {modality.name!r}; give one of them"
                )
            files[modality.name] = file
    return files


def _download(source: str) -> Path:
    """Return the folder of the hub's cache that holds a repository's encoders."""
    from huggingface_hub import snapshot_download

    repository, _, revision = source.removeprefix(HUB).partition("@")
    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=_WANTED)
        )
    except Exception as error:  # the hub's client and those below it have dozens of classes
        raise ConfigError(
            f"{source}: cannot be had from the hub ({reason_of(error)}); check the name and the "
            "connection, and log in with `hf auth login` where the repository is private"
        ) from error
