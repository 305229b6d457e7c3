"""Run folders and encoder files: what a run leaves behind, and how it is opened again."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decur.errors import ConfigError, DataError
from decur.modality import Modality

if TYPE_CHECKING:
    from decur.encoders import Encoder

log = logging.getLogger(__name__)

FORMAT = 1  # of encoder files; raised when their metadata changes


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything.

    Args:
        path: the folder; made when something is first written.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration; running it again repeats the run."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Whole training states, to resume from."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """One self-contained page."""
        return self.path / "report.html"

    @property
    def bad_samples(self) -> Path:
        """Files that could not be read, and why."""
        return self.path / "bad_samples.csv"

    def list_bad(self, bad: Sequence[tuple[str, str]]) -> None:
        """Write `bad_samples` anew, and say so; no file where all could be read.

        Args:
            bad: file and reason of each.
        """
        self.bad_samples.unlink(missing_ok=True)
        if bad:
            with atomic(self.bad_samples) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([("file", "reason"), *bad])
            log.warning("%d samples cannot be read, see %s", len(bad), self.bad_samples)

    def encoder(self, modality: str) -> Path:
        """The trained encoder of one sensor."""
        return self.path / "encoders" / f"{modality}.safetensors"

    def saved_encoders(self) -> list[Path]:
        """Files of encoders, by the name of their sensor."""
        return sorted((self.path / "encoders").glob("*.safetensors"))

    def saved_checkpoints(self) -> list[Path]:
        """Checkpoints from the newest to the oldest, by the step in their name."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)


def make_folder(path: Path, key: str) -> None:
    """Make a folder that was asked for, where it is not there yet.

    Args:
        path: of it.
        key: the option that asked for it, as "--run".

    Raises:
        ConfigError: naming both and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key} {path}: cannot be made ({error.strerror})") from error


@contextmanager
def writing(path: Path, key: str = "--out") -> Iterator[None]:
    """Around what writes: tells in one line why it cannot.

    Args:
        path: what was asked for, file or folder.
        key: the option that asked for it.

    Raises:
        ConfigError: naming both and the reason.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise ConfigError(f"{key} {path}: cannot be written ({reason}); choose another") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary name, renames it at the end.

    Args:
        path: the final name; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on empty blocks
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> Path:
    """Write values as JSON, whole or not at all.

    Args:
        path: of the file; its folder is made.
        values: of what JSON holds.

    Returns:
        The path.
    """
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
    return path


def save_encoder(encoder: Encoder, path: str | Path) -> Path:
    """Write an encoder with its modality, as safetensors.

    Args:
        encoder: its `modality` must be set.
        path: file to write, `.safetensors`.

    Returns:
        The path.

    Raises:
        ConfigError: if the encoder has no modality: its weights could not be used rightly.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if encoder.modality is None:
        raise ConfigError(f"{path}: the encoder has no modality; set encoder.modality first")
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
    from safetensors import SafetensorError, safe_open

    from decur.encoders import build_encoder

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
    header = _header(path, metadata)
    encoder = build_encoder(
        header["encoder"], Modality.from_dict(header["modality"]), **header["options"]
    )
    try:
        encoder.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DataError(
            f"{path}: the weights do not fit a {header['encoder']!r} for "
            f"{header['modality']['bands']}: {' '.join(str(error).split())[:300]}"
        ) from error
    if modality is not None:
        try:
            encoder.check(modality)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return encoder.eval()


def _header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "decur" not in metadata:
        raise DataError(f"{path}: holds weights but no modality, so it is no encoder of decur's")
    try:
        header = json.loads(metadata["decur"])
        lacking = {"format", "encoder", "options", "modality"} - set(header)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: its header is damaged ({error}); copy it anew") from error
    if lacking:
        raise DataError(f"{path}: its header lacks {', '.join(sorted(lacking))}; copy it anew")
    if header["format"] > FORMAT:
        raise DataError(f"{path}: written by a newer decur (format {header['format']}); upgrade")
    return header
