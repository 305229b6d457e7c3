"""Where encoders come from: a run's folder, files, or fresh weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from decur.checkpoint import RunFolder, load_encoder
from decur.encoders import Encoder, build_encoder
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.pretrain import EncoderSettings

RANDOM = "random"


def gather_encoders(
    source: str | Sequence[str],
    modalities: Mapping[str, Modality],
    wanted: Sequence[str] | None = None,
    settings: EncoderSettings | None = None,
    seed: int = 0,
) -> dict[str, Encoder]:
    """An encoder for each sensor that is used.

    Args:
        source: the folder of a run, encoder files, or "random" for fresh weights.
        modalities: those of the data.
        wanted: sensors to use; None for all of the data that the source has an encoder for.
        settings: the architecture of fresh weights.
        seed: of fresh weights.

    Returns:
        `{modality: encoder}` in the order of the data, in eval mode, on the CPU.

    Raises:
        ConfigError: if a wanted sensor is not in the data.
        DataError: if a sensor has no encoder, a file cannot be read, or an encoder was trained on
            other bands than the data has.
    """
    for name in wanted or ():
        if name not in modalities:
            raise ConfigError(
                f"modalities: the data has no {name!r}; choose from {', '.join(modalities)}"
            )
    chosen = [name for name in modalities if not wanted or name in wanted]
    if dotted := [name for name in chosen if "." in name]:
        raise ConfigError(f"modality {dotted[0]!r}: a name must not hold a dot; rename it")
    sources = [source] if isinstance(source, str) else list(source)
    if sources == [RANDOM]:
        settings = settings or EncoderSettings()
        torch.manual_seed(seed)
        return {
            name: build_encoder(
                settings.of(name),
                modalities[name],
                pretrained=settings.pretrained,
                **settings.options,
            ).eval()
            for name in chosen
        }
    files = _files(sources)
    if not wanted:
        chosen = [name for name in chosen if name in files]
    missing = [name for name in wanted or chosen or modalities if name not in files]
    if missing:
        raise DataError(
            f"encoders: none for modality {missing[0]!r} in {', '.join(sources)}, which has "
            f"{', '.join(files)}; choose others with --modalities, or name the data's sensors alike"
        )
    return {name: load_encoder(files[name], modalities[name]) for name in chosen}


def _files(sources: Sequence[str]) -> dict[str, Path]:
    """Encoder files by the modality they are for."""
    files: dict[str, Path] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(RunFolder(path).encoder("*").parent.glob("*.safetensors"))
            if not found:
                raise DataError(
                    f"encoders: {path} holds no encoders/*.safetensors; give a finished run's "
                    f"folder, encoder files, or {RANDOM!r}"
                )
            named = {file.stem: file for file in found}
        elif path.is_file():
            modality = load_encoder(path).modality
            assert modality is not None  # else it is no encoder file
            named = {modality.name: path}
        else:
            raise DataError(
                f"encoders: {path}: no such file or folder; give a run's folder, encoder files, "
                f"or {RANDOM!r}"
            )
        for name, file in named.items():
            if name in files:
                raise ConfigError(
                    f"encoders: {files[name]} and {file} are both for {name!r}; give one"
                )
            files[name] = file
    return files
