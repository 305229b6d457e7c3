"""Run folders: the places of a run's files, and files that are written whole or not at all."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decur.bounded_yaml import parse_yaml, read_text
from decur.errors import ConfigError, DataError
from decur.registry import refuse_foreign

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and the places of its files.

    Args:
        path: the folder, which is made when something is first written.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration; running it again repeats the run."""
        return self.path / "config.yaml"

    def configuration(self) -> dict[str, Any]:
        """Return the configuration that the run has kept, as it is written.

        Raises:
            DataError: if there is none, or none that can be used; it says how to trust one that
                names modules other than decur's.
        """
        if not self.config.is_file():
            raise DataError(
                f"{self.config}: no such file; `decur pretrain` writes its configuration there"
            )
        try:
            values = parse_yaml(read_text(self.config), "its YAML")
            if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
                raise ConfigError("it is no mapping of keys to values")
        except ConfigError as error:
            raise DataError(f"{self.config}: not the configuration of a run ({error})") from error
        refuse_foreign(values, self.config)
        return values

    @property
    def metrics(self) -> Path:
        """Metrics, one row an epoch."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """States of the training, to resume from."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"

    @property
    def bad_samples(self) -> Path:
        """List of files that could not be read, and why."""
        return self.path / "bad_samples.csv"

    def list_bad(self, bad: Sequence[tuple[str, str]]) -> None:
        """Write the list of bad samples anew, and log it; no file where all could be read.

        Args:
            bad: file and reason of each.
        """
        self.bad_samples.unlink(missing_ok=True)
        if bad:
            with atomic(self.bad_samples) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([("file", "reason"), *bad])
            log.warning("%d samples cannot be read, see %s", len(bad), self.bad_samples)

    def encoder(self, modality: str) -> Path:
        """Return the file of the trained encoder of one sensor."""
        return self.path / "encoders" / f"{modality}.safetensors"

    def saved_encoders(self) -> list[Path]:
        """Return the files of encoders, by the name of their sensor."""
        return sorted((self.path / "encoders").glob("*.safetensors"))

    def saved_checkpoints(self) -> list[Path]:
        """Return the checkpoints from the newest to the oldest, by the step in their name."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    def newest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that can be read; a damaged one is passed over, and logged.

        Raises:
            DataError: if there are checkpoints and none can be read.
        """
        import torch

        saved = self.saved_checkpoints()
        for path in saved:
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch raises many kinds for damaged files
                reason = " ".join(str(error).split())[:120]
                log.warning("%s is damaged (%s); going back to the one before", path, reason)
            else:
                return path
        if saved:
            raise DataError(
                f"{self.checkpoints}: none of the {len(saved)} checkpoints can be read; "
                "start anew with --overwrite"
            )
        return None


def make_folder(path: Path, key: str) -> None:
    """Make the folder that an option names, where there is none yet.

    Args:
        path: of the folder.
        key: the option, such as "--run".

    Raises:
        ConfigError: naming the option, the folder and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key} {path}: cannot be made ({error.strerror})") from error


@contextmanager
def writing(path: Path, key: str = "--out") -> Iterator[None]:
    """Turn the errors of a block that writes into one line.

    Args:
        path: the file or folder that is written.
        key: the option that names it.

    Raises:
        ConfigError: naming the option, the path and the reason.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise ConfigError(f"{key} {path}: cannot be written ({reason}); choose another") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yield a temporary name, and rename it at the end.

    Args:
        path: the final name; its folder is made.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return the name under which a file is written until it is whole; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is written and closed its final name, once it has reached the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())  # else a power cut can leave the new name on empty blocks
    temporary.replace(path)


def write_text(path: Path, text: str) -> Path:
    """Write a text file (UTF-8), whole or not at all.

    Args:
        path: of the file; its folder is made.
        text: what it will hold.

    Returns:
        The path.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, values: Any) -> Path:
    """Write values as JSON, whole or not at all.

    Args:
        path: of the file; its folder is made.
        values: anything that JSON can hold.

    Returns:
        The path.
    """
    return write_text(path, json.dumps(values, indent=2) + "\n")
