"""Encoder files in a folder of any kind, or in a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from decur.encoders.files import load_encoder
from decur.errors import ConfigError, DataError, reason_of
from decur.runs import RunFolder

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
